"""Folders for the while of a process, in the system's place for them, and what killed processes left there."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path


def make_scratch(kind: str) -> Path:
    """A new folder that its owner alone can enter; its name says which process made it, and when that began.

    What processes left that are no more is removed before.
    """
    remove_stale(kind)
    pid = os.getpid()
    return Path(tempfile.mkdtemp(prefix=f"llamaduo-{kind}-{pid}-{_began(pid) or 0}-"))


def remove_stale(kind: str) -> list[Path]:
    """Remove folders of this kind that are this user's own and whose process has ended; which they were."""
    named = re.compile(rf"llamaduo-{re.escape(kind)}-(\d+)-(\d+)-\w+")
    gone = []
    for folder in Path(tempfile.gettempdir()).glob(f"llamaduo-{kind}-*"):
        match = named.fullmatch(folder.name)
        if match is None or folder.is_symlink() or not folder.is_dir():
            continue
        if folder.stat().st_uid == os.getuid() and not _lives(int(match[1]), int(match[2])):
            shutil.rmtree(folder, ignore_errors=True)
            gone.append(folder)
    return gone


def _lives(pid: int, began: int) -> bool:
    """Whether that very process still runs: a number is given to another one some day."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    now = _began(pid)
    return began == 0 or now is None or now == began


def _began(pid: int) -> int | None:
    """When a process began, in the kernel's ticks; None where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])
