"""A small disk of its own for nats-server: a file with ext4 in it, mounted, that can be filled and stalled.

A stall is the kernel's own: `fsfreeze` makes every write to the file system wait.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

MIB = 1024 * 1024
SIZE = 64 * MIB


class Disk:
    """Mounted at `place` until `close`."""

    def __init__(self, image: Path, place: Path) -> None:
        self._image, self._place = image, place
        self._filler = place / "filler"
        self._stalled = False
        with image.open("wb") as file:
            file.truncate(SIZE)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", str(image))
        place.mkdir(parents=True, exist_ok=True)
        _run("mount", "-o", "loop", str(image), str(place))

    def fill(self) -> None:
        """Take every free byte."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            for size in (MIB, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    def free(self) -> None:
        """Give all of that back."""
        self._filler.unlink(missing_ok=True)

    def stall(self) -> None:
        """Every write waits."""
        if not self._stalled:
            _run("fsfreeze", "--freeze", str(self._place))
            self._stalled = True

    def go_on(self) -> None:
        """No write waits."""
        if self._stalled:
            _run("fsfreeze", "--unfreeze", str(self._place))
            self._stalled = False

    def close(self) -> None:
        """Unmount; whoever wrote here must have ended."""
        self.go_on()
        _run("umount", "--lazy", str(self._place))
        self._image.unlink()


def why_not() -> str | None:
    """Why no such disk can be made here; None where it can."""
    tools = [tool for tool in ("mkfs.ext4", "mount", "fsfreeze") if shutil.which(tool) is None]
    if tools:
        return f"{', '.join(tools)} not installed"
    if os.geteuid() != 0:
        return "mounting needs root"
    try:
        with tempfile.TemporaryDirectory(prefix="llamaduo-disk-") as folder:
            disk = Disk(Path(folder) / "image", Path(folder) / "place")
            disk.stall()
            disk.close()
    except subprocess.CalledProcessError as error:
        return f"{error.cmd[0]} is not allowed here: {error.stderr.decode(errors='replace').strip()}"
    return None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=20)
