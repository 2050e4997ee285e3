"""When two labels are the same label: the spelling that does not count."""

from __future__ import annotations

import re
import unicodedata

LONGEST_LABEL = 60
"""Characters up to which a text may be told as a label; what is longer is no label but text."""

_SEPARATORS = re.compile(r"(?<=[^\W_])[\s_-]+(?=[^\W_])")
_LABEL = re.compile(r"[^\W_][\w ./&+#-]*")
_AROUND = "\"'`“”‘’«»„* \t\r\n"


def bare(label: str) -> str:
    """A label without width, quotes and a full stop around it, else as it is spelled."""
    return unicodedata.normalize("NFKC", label).strip(_AROUND).removesuffix(".").strip(_AROUND)


def normalised(label: str) -> str:
    """A label without what is mere spelling: case, width, spaces, quotes, a last full stop, `_` or `-` for space."""
    return _SEPARATORS.sub(" ", bare(label)).casefold()


def is_short_label(text: str) -> bool:
    """Whether a bare text looks like a label: short, one line, begins with a letter or digit, no punctuation."""
    return len(text) <= LONGEST_LABEL and _LABEL.fullmatch(text) is not None
