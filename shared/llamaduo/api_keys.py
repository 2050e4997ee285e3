"""Keys that callers of our HTTP APIs show: made here, shown once, and kept as digests in a file.

A key has 256 random bits, so that its plain SHA-256 tells nobody what it was. A line of the file is a name, when it
was made, and the digest. Only the file's owner may read it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llamaduo.errors import UserInputError

PREFIX = "ld-"
"""What every key begins with, so that a search for leaked ones finds them."""
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_LINE = re.compile(rf"({NAME_PATTERN}) (\S+) sha256:([0-9a-f]{{64}})")
_LONGEST_KEY = 512
_RANDOM_BYTES = 32


@dataclass(frozen=True)
class ApiKey:
    """What is kept of a key: whose it is, when it was made (ISO 8601), and its SHA-256 in hex."""

    name: str
    made: str
    digest: str


def new_key(file: Path, name: str) -> str:
    """Make a key for this name and add it to the file; the key itself is nowhere but in what is returned.

    UserInputError for a name that is taken or cannot be one, and for a file that is none of keys.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise UserInputError(
            f"{name!r} cannot be a key's name", hint="letters, digits, dots, dashes and underscores, 64 at most"
        )
    key = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    with _held(file):
        known = read_keys(file) if file.exists() else []
        if any(one.name == name for one in known):
            raise UserInputError(f"there is a key {name!r} already", file=str(file), hint="drop it first")
        _write(file, [*known, ApiKey(name, datetime.now(UTC).isoformat(timespec="seconds"), digest_of(key))])
    return key


def drop_key(file: Path, name: str) -> None:
    """Take a key out of the file; it opens nothing from now on. UserInputError where there is none of this name."""
    with _held(file):
        known = read_keys(file)
        kept = [one for one in known if one.name != name]
        if len(kept) == len(known):
            names = ", ".join(one.name for one in known) or "none"
            raise UserInputError(f"there is no key {name!r}", file=str(file), hint=f"there are: {names}")
        _write(file, kept)


def read_keys(file: Path) -> list[ApiKey]:
    """What the file holds. UserInputError where it cannot be read, others may read it, or a line is no key."""
    try:
        if (mode := stat.S_IMODE(file.stat().st_mode)) & 0o077:
            raise UserInputError(
                f"others can read or write this file of keys (mode {mode:03o})",
                file=str(file),
                hint=f"chmod 600 {file}",
            )
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserInputError(f"the keys cannot be read: {type(error).__name__}", file=str(file)) from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not (match := _LINE.fullmatch(line)):
            raise UserInputError("this is no line of a file of keys", file=str(file), line=number)
        found.append(ApiKey(*match.groups()))
    return found


def digest_of(key: str) -> str:
    """What is kept of a key: its SHA-256 in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class KeyFile:
    """The keys in a file, read again when it changes, so that a new or dropped key counts at once.

    UserInputError at the start where it cannot be read. One that becomes unreadable later lets nobody in.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._keys = read_keys(file)
        self._seen = _mark_of(file)

    def owner_of(self, shown: str) -> str | None:
        """Whose key this is; None where it is nobody's. Takes as long for a wrong key as for a right one."""
        if (mark := _mark_of(self._file)) != self._seen:
            try:
                self._keys = read_keys(self._file)
            except UserInputError:
                self._keys = []
            self._seen = mark
        digest, owner = digest_of(shown[:_LONGEST_KEY]), None
        for one in self._keys:
            if hmac.compare_digest(one.digest, digest):
                owner = one.name
        return owner


def key_to_show(environment: Mapping[str, str]) -> str | None:
    """The key with which our command line calls our APIs: LLAMADUO_API_KEY, or the file LLAMADUO_API_KEY_FILE names.

    UserInputError where that file cannot be read or is empty.
    """
    if key := environment.get("LLAMADUO_API_KEY", "").strip():
        return key
    if not (file := environment.get("LLAMADUO_API_KEY_FILE")):
        return None
    try:
        key = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserInputError(
            f"the key cannot be read: {type(error).__name__}", file=file, field="LLAMADUO_API_KEY_FILE"
        ) from error
    if not key:
        raise UserInputError("the key is empty", file=file, field="LLAMADUO_API_KEY_FILE")
    return key


def _mark_of(file: Path) -> tuple[int, int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode


@contextlib.contextmanager
def _held(file: Path) -> Iterator[None]:
    """One writer at a time; the lock dies with its holder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _write(file: Path, keys: list[ApiKey]) -> None:
    """Renamed into place, so that no reader sees half of it, and never readable by others."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.writelines(f"{one.name} {one.made} sha256:{one.digest}\n" for one in keys)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)
