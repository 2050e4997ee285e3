"""Compare-and-set keys in a folder, for commands that run without a bus.

One file a key: a line with the revision, then the value. Every change is made under one lock of the folder, which the
system lets go when its holder dies, and is renamed into place: a reader, and whoever comes after a kill or a power
cut, finds the old value or the new one, never half of one.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from urllib.parse import quote, unquote

from llamaduo.bus.kv import Entry, KeyConflict
from llamaduo.errors import PermanentError

_ENDING = ".entry"


class FolderKeyValue:
    """A `KeyValue` in `folder`, shared by all processes of this machine that name it. Made where it is missing.

    OSError where the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    async def get(self, key: str) -> Entry | None:
        return await asyncio.to_thread(_read, self._path(key))

    async def create(self, key: str, value: bytes) -> int:
        return await asyncio.to_thread(self._write, key, value, None)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        return await asyncio.to_thread(self._write, key, value, revision)

    async def keys(self, prefix: str) -> list[str]:
        names = await asyncio.to_thread(lambda: [path.name for path in self._folder.glob(f"*{_ENDING}")])
        found = [unquote(name.removesuffix(_ENDING)) for name in names]
        return sorted(key for key in found if key.startswith(prefix))

    def _path(self, key: str) -> Path:
        return self._folder / f"{quote(key, safe='')}{_ENDING}"

    def _write(self, key: str, value: bytes, revision: int | None) -> int:
        path = self._path(key)
        with (self._folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            entry = _read(path)
            if (entry.revision if entry else None) != revision:
                raise KeyConflict(key)
            new = (revision or 0) + 1
            # The name is the lock holder's alone; what a killed one left there is written over.
            fresh = self._folder / "new"
            with fresh.open("wb") as file:
                file.write(b"%d\n" % new + value)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            _sync_folder(self._folder)
            return new


def _read(path: Path) -> Entry | None:
    try:
        revision, _, value = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if not revision.isdigit():
        raise PermanentError(f"{path} is damaged: nothing that this program wrote")
    return Entry(value, int(revision))


def _sync_folder(folder: Path) -> None:
    """A rename is in the folder's own data: without this a power cut may undo it."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
