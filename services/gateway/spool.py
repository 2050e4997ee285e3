"""Captured rows on disk until the bus has them: append-only files of JSON lines, locked by whoever writes them.

A row is written before its answer ends, so a killed process loses none that a caller has seen the end of. The kernel
frees the lock of a killed process, and its file is shipped by whoever comes next. A power cut may cost the rows since
the last `sync`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".jsonl"


class SpoolFull(Exception):
    """As much is waiting for the bus as the settings allow."""


@dataclass
class _Segment:
    handle: int
    size: int
    opened: float
    synced: bool = True


class Spool:
    """The rows of one gateway process in `folder`, a file at a time for each alias; others may share the folder.

    A file is closed at `segment_bytes` or `segment_s` seconds after its first row. Safe to use from several threads.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        segment_bytes: int,
        segment_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self._max_bytes, self._segment_bytes, self._segment_s = max_bytes, segment_bytes, segment_s
        self._clock, self._lock = clock, threading.Lock()
        self._open: dict[str, _Segment] = {}
        self._full: list[_Segment] = []
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.used = used_bytes(folder)

    def write(self, alias: str, line: bytes) -> None:
        """Append one row, which ends in its only newline. SpoolFull, or OSError; either leaves no part of it."""
        with self._lock:
            if self.used + len(line) > self._max_bytes:
                raise SpoolFull(f"{self.used} bytes wait for the bus")
            segment = self._open.get(alias) or self._begin(alias)
            try:
                written = 0
                while written < len(line):
                    written += os.write(segment.handle, line[written:])
            except OSError:
                # What cannot be taken back is the end of its file, where a part of a row is left out.
                with contextlib.suppress(OSError):
                    os.ftruncate(segment.handle, segment.size)
                self._close(alias)
                raise
            segment.size += len(line)
            segment.synced = False
            self.used += len(line)
            if segment.size >= self._segment_bytes:
                self._close(alias)

    def _begin(self, alias: str) -> _Segment:
        folder = self.folder / alias
        folder.mkdir(exist_ok=True, mode=0o700)
        name = f"{time.time_ns():020}-{uuid.uuid4().hex[:8]}"
        # Under another name until it is locked, so that nobody takes it for one that was left behind.
        temp = folder / f".{name}"
        handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        temp.rename(folder / f"{name}{SUFFIX}")
        self._open[alias] = _Segment(handle, 0, self._clock())
        return self._open[alias]

    def _close(self, alias: str) -> None:
        """No more is written to it. `sync` closes it, since whoever writes must not wait for the disk."""
        self._full.append(self._open.pop(alias))

    def sync(self) -> None:
        """Have the disk hold what was written, and close what is large or old enough to be shipped. Blocks."""
        with self._lock:
            now = self._clock()
            for alias in [a for a, s in self._open.items() if now >= s.opened + self._segment_s]:
                self._close(alias)
            full, self._full = self._full, []
            unsynced = [segment for segment in self._open.values() if not segment.synced]
            # Copies, which a segment may outlive or not.
            handles = [segment.handle for segment in full] + [os.dup(segment.handle) for segment in unsynced]
            for segment in unsynced:
                segment.synced = True
        for handle in handles:
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        used = used_bytes(self.folder)
        with self._lock:
            self.used = used

    def close(self) -> None:
        """Close all files; what is in them can be shipped now."""
        with self._lock:
            for alias in list(self._open):
                self._close(alias)
        self.sync()


def used_bytes(folder: Path) -> int:
    """Bytes of all rows that wait."""
    total = 0
    for path in folder.glob(f"*/*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def segments(folder: Path) -> list[Path]:
    """All files of rows, oldest first, also those that are still written to."""
    return sorted(folder.glob(f"*/*{SUFFIX}"), key=lambda path: path.name)


@contextmanager
def shippable(path: Path) -> Iterator[bool]:
    """Whether a file is closed and now ours alone; while within, nobody else ships it.

    A last line that was cut off by a kill is taken out: its caller never saw the end of that answer.
    """
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        if os.fstat(handle).st_nlink == 0:  # shipped by another process between the look and the lock
            yield False
            return
        body = path.read_bytes()
        whole = body.rfind(b"\n") + 1
        if whole < len(body):
            os.ftruncate(handle, whole)
            os.fsync(handle)
        if whole == 0:
            path.unlink()
        yield whole > 0
    finally:
        os.close(handle)
