"""Files and folders that people name: what is wrong with them, in one line."""

from __future__ import annotations

import errno
from pathlib import Path

from llamaduo.errors import UserInputError
from llamaduo.names import did_you_mean

_WORDS = {
    errno.ENOENT: "no such file or folder",
    errno.EISDIR: "is a folder, not a file",
    errno.ENOTDIR: "a file is in the way where a folder is needed",
    errno.EEXIST: "a file is in the way where a folder is needed",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "this disk is read-only",
    errno.ENOSPC: "no room is left on this disk",
    errno.ENAMETOOLONG: "this name is too long",
}


def os_words(error: OSError) -> str:
    """What the system says, in plain words."""
    return _WORDS.get(error.errno or 0, (error.strerror or str(error) or type(error).__name__).lower())


def of_os_error(error: OSError) -> UserInputError | None:
    """A refusal by the system that is about a path, as an error that names it; None for one about something else."""
    if not isinstance(error.filename, str | bytes | Path):
        return None
    name = error.filename.decode(errors="replace") if isinstance(error.filename, bytes) else str(error.filename)
    return UserInputError(os_words(error), file=name)


def why_unreadable(path: Path) -> tuple[str, str | None] | None:
    """(what is wrong, hint) of a file that should be read; None where it can be."""
    try:
        if path.is_dir():
            return "is a folder, not a file", None
        if not path.exists():
            return "no such file", _beside(path)
        with path.open("rb"):
            return None
    except (OSError, ValueError) as error:
        return os_words(error) if isinstance(error, OSError) else "this can be no file's name", None


def _beside(path: Path) -> str | None:
    """The file or folder with the nearest name beside this path."""
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder}"
    return did_you_mean(path.name, sorted(one.name for one in folder.iterdir()))


def read_text(path: Path) -> str:
    """A file's text in UTF-8. UserInputError names what is wrong with it."""
    if problem := why_unreadable(path):
        raise UserInputError(problem[0], file=str(path), hint=problem[1])
    body = path.read_bytes()
    if other := other_encoding(body):
        raise UserInputError(other, file=str(path), hint="save it as UTF-8")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserInputError(
            f"is not UTF-8 text (byte 0x{body[error.start]:02x})",
            file=str(path),
            line=body.count(b"\n", 0, error.start) + 1,
            hint="save it as UTF-8",
        ) from error


def other_encoding(head: bytes) -> str | None:
    """What a file is that does not begin as UTF-8 text does; None where nothing speaks against it."""
    for mark, what in _BEGINNINGS.items():
        if head.startswith(mark):
            return what
    return "is UTF-16 text" if head[:200].count(b"\0") > len(head[:200]) // 4 else None


_BEGINNINGS = {
    b"\x1f\x8b": "is compressed (gzip)",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd)",
    b"BZh": "is compressed (bzip2)",
    b"\xfd7zXZ": "is compressed (xz)",
    b"PK\x03\x04": "is a ZIP archive or a spreadsheet",
    b"PAR1": "is a Parquet file",
    b"\xff\xfe": "is UTF-16 text",
    b"\xfe\xff": "is UTF-16 text",
}
