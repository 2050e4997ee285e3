"""Seeded chance: the same parts always give the same draws, on any machine and after any restart."""

from __future__ import annotations

import hashlib
import random


def digest(*parts: object) -> str:
    """Hex SHA-256 of the parts' texts joined by newlines."""
    return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()


def draws(*parts: object) -> random.Random:
    """A random source that depends on the parts alone."""
    return random.Random(int(digest(*parts)[:16], 16))  # noqa: S311 - replayable on purpose, guards nothing


def share(*parts: object) -> float:
    """One number in [0, 1) that depends on the parts alone."""
    return int(digest(*parts)[:13], 16) / 16**13
