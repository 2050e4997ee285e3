"""Runs a command and takes it down, with all it started, when whoever started this goes away. Run as a script.

    python vllm_guard.py COMMAND...      with a pipe as stdin, in a session of its own

vLLM is three processes, and a parent that is killed outright leaves them running with their memory. The parent
holds the other end of stdin; when that closes, or on SIGTERM, the command is asked to end, and after the grace
time everything that it started is killed. The guard ends last: when it is gone, all of it is. Standard library
only, so that any interpreter can run it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

GRACE_S = 8.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: int) -> None:
    """Linux only; elsewhere the closing pipe must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def main(command: list[str]) -> int:
    # Grandchildren whose parent died become ours, and stay in our group.
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    signal.signal(signal.SIGINT, lambda *_: ending.set())
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        # If this process itself is killed, the command is too. Nothing but this thread runs here yet.
        preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
    )

    def wait_for_end_of_parent() -> None:
        while os.read(0, 4096):
            pass
        ending.set()

    threading.Thread(target=wait_for_end_of_parent, daemon=True).start()
    while child.poll() is None and not ending.wait(0.2):
        pass
    code = child.poll()
    if code is None:
        child.terminate()
        deadline = time.monotonic() + GRACE_S
        while child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    # What is left: a command that does not end, and children that outlived it.
    sys.stderr.write(f"vllm_guard: the command ended with {child.poll()}; ending what is left\n")
    sys.stderr.flush()
    end_all()
    return 1


def end_all() -> None:
    """Kill everything that was started here and return when the last of it is gone, not before.

    Whoever's parent dies becomes our child, so there is always one to wait for while anything is left.
    """
    if not Path("/proc/self/stat").exists():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    while True:
        for pid in ours():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def ours() -> list[int]:
    """Ids of our children and of all others in our process group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # Behind the name, which may hold anything: state, parent, group.
            _, parent, group = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[:3]
            if int(folder.name) != os.getpid() and (int(parent) == os.getpid() or int(group) == os.getpgrp()):
                found.append(int(folder.name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
