"""Secrets that this process knows, kept out of what it writes about errors: logs, dead letters, events, the terminal.

A provider may well repeat a key in what it says of it. What was learnt here is replaced wherever it turns up, also as
base64, in a URL or in JSON.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote, urlsplit

MASK = "***"
SHORTEST = 6
"""Characters; a shorter one would mask words that are no secret."""
_LARGEST_FILE = 64 * 1024
_PATHS = re.compile(r"LLAMADUO_(NATS|HTTP|EMULATOR_TLS)_KEY", re.IGNORECASE)
"""Variables that say where a key of TLS lies."""
_SECRET_NAME = re.compile(r"(KEY|SECRET|TOKEN|PASSWORD)(_FILE)?", re.IGNORECASE)


class _Secrets:
    """What was learnt, and a pattern of all its forms."""

    known: ClassVar[set[str]] = set()
    pattern: ClassVar[re.Pattern[str] | None] = None


def learn(secret: str | None) -> None:
    """Mask this from now on, in all its forms."""
    secret = (secret or "").strip()
    if len(secret) < SHORTEST or secret in _Secrets.known:
        return
    _Secrets.known.add(secret)
    forms = {form for one in _Secrets.known for form in forms_of(one)}
    # The longest first: one secret may begin with another.
    _Secrets.pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)))


def learn_environment(environment: Mapping[str, str]) -> None:
    """Mask what variables hold whose last words say that it is a secret, what files hold that they name, and the
    passwords in URLs.
    """
    for name, value in environment.items():
        if is_secret_name(name):
            if name.upper().endswith("_FILE"):
                learn(_in_file(value))
            elif not _is_file(value):  # where a key of TLS lies is no secret
                learn(value)
        elif "@" in value:
            with contextlib.suppress(ValueError):
                learn(urlsplit(value).password)


def is_secret_name(name: str) -> bool:
    """Whether a variable or setting of this name holds a secret, or names the file of one: by its last words."""
    words = "_".join(name.split("_")[-(2 if name.upper().endswith("_FILE") else 1) :])
    return _SECRET_NAME.fullmatch(words) is not None and _PATHS.fullmatch(name) is None


def masked(text: str) -> str:
    """The text without the secrets that this process knows."""
    return _Secrets.pattern.sub(MASK, text) if _Secrets.pattern is not None else text


def forms_of(secret: str) -> set[str]:
    """How a secret may be written: as it is, in a URL, in JSON, and in base64 at any place of a longer text."""
    body = secret.encode("utf-8", "surrogateescape")
    forms = {secret, json.dumps(secret)[1:-1], quote(secret, safe="", errors="surrogateescape")}
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + body).decode()
        # The first and the last characters hold bits of what stands beside it.
        inner = coded[(0, 2, 3)[before] : len(coded.rstrip("=")) - ((before + len(body)) % 3 != 0)]
        if len(inner) >= SHORTEST:
            forms |= {inner, inner.replace("+", "-").replace("/", "_")}
    return forms


def _is_file(value: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return Path(value).is_file()
    return False


def _in_file(name: str) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        file = Path(name)
        if file.is_file() and file.stat().st_size <= _LARGEST_FILE:
            return file.read_text("utf-8")
    return None
