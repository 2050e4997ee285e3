"""Ids that say what is asked, never what came out.

An id is the SHA-256, in lower-case hex, of its fields as UTF-8 joined by single newlines, after a first line
that names the scheme. Any language can compute it; `docs/contract/ids.json` holds test vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SCHEME = "llamaduo/1"


def identity(*fields: str | int) -> str:
    """SHA-256 hex of the scheme and `fields`, one a line. ValueError if a field holds a newline."""
    lines = [SCHEME, *(str(field) for field in fields)]
    for line in lines:
        if "\n" in line:
            raise ValueError(f"an identity field must not hold a newline: {line!r}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_digest(value: Any) -> str:
    """SHA-256 hex of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def adapter_digest(files: Mapping[str, str]) -> str:
    """SHA-256 hex over an adapter's files: the lines `name`, `SHA-256 of the file`, sorted by name."""
    listing = "".join(f"{name}\n{sha256}\n" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def seed_of(*fields: str | int) -> int:
    """A sampling seed in [0, 2**31) from what is sampled, e.g. (migration, round, row, sample)."""
    return int(identity("seed", *fields)[:8], 16) & 0x7FFFFFFF
