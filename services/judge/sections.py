"""A judge's prompt in sections: texts of strangers between tags that only we can write.

A text is left as it is but for the opening character of what a reader could take for one of our tags, or for the
marks by which a chat template ends a turn; that becomes an entity.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping

from llamaduo.datasets import ShardRow
from llamaduo.identity import canonical_json
from llamaduo.tools_in_words import tool_lines

_OPENERS = "<＜﹤‹〈〈⟨❬❮❰《«⋖≺˂ᐸ"
"""Less-than and what looks like it."""
_SLASHES = "/／⁄∕╱⧸\\＼|!"
_LOOKS_LIKE = str.maketrans(
    "асԁеіоԛгѕтпрսոօουαιντερıᴀᴄᴅᴇɪɴᴏʀᴛᴜꜰꜱ",
    "acdeioqrstnpunoouaivtepiacdeinortufs",
)
"""Cyrillic, Armenian, Greek and small capital letters by the Latin ones that they look like."""
_LONGEST_TAG = 80
_TURN_ENDS = re.compile(
    r"<(?=\s*[|｜])|<(?=\s*/?\s*(?:s|bos|eos|start_of_turn|end_of_turn)\s*>)|<(?=<\s*/?\s*SYS)|\[(?=\s*/?\s*INST\s*\])",
    re.IGNORECASE,
)
_ENTITIES = {"<": "&lt;", "[": "&#91;"}


def sections(texts: Mapping[str, str]) -> str:
    """The texts, each between tags of its name, in order."""
    return "\n\n".join(f"<{name}>\n{harmless(text, texts)}\n</{name}>" for name, text in texts.items())


def instruction_of(row: ShardRow) -> str:
    """What was asked for: the user's one message, or all messages with their roles; the tools, the answer's form."""
    if len(row.messages) == 1 and row.messages[0].role != "assistant":
        said = row.messages[0].content
    else:
        said = "\n\n".join(f"{message.role}: {message.text}" for message in row.messages)
    if row.tools:
        said = "\n".join([f"{said}\n\ntools that may be called:", *tool_lines(row.tools)])
    if row.response_format is None:
        return said
    return f"{said}\n\nresponse_format: {canonical_json(row.response_format)}"


def harmless(text: str, names: Collection[str]) -> str:
    """The text with no opening or closing tag of these names in it, and none that looks like one."""
    opened = re.compile(f"[{re.escape(_OPENERS)}]")
    text = opened.sub(lambda found: _entity(text, found, names), text)
    return _TURN_ENDS.sub(lambda found: _ENTITIES[found[0]], text)


def _entity(text: str, found: re.Match[str], names: Collection[str]) -> str:
    after = text[found.end() : found.end() + _LONGEST_TAG]
    return "&lt;" if _name_at_start(after) in names else found[0]


def _name_at_start(text: str) -> str:
    """The word that a reader sees first, in plain Latin letters: after spaces and slashes, without what is unseen."""
    word = ""
    for char in text:
        if unicodedata.category(char) in ("Cf", "Cc", "Mn", "Me") and char not in "\n\t\r":
            continue
        if not word and (char.isspace() or char in _SLASHES):
            continue
        bare = "".join(one for one in unicodedata.normalize("NFKD", char) if unicodedata.category(one) != "Mn")
        letters = bare.casefold().translate(_LOOKS_LIKE)
        if not letters.isalnum() and letters != "_":
            break
        word += letters
    return word
