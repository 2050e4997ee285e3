"""Runs a command and takes it down, with all it started, when whoever started this goes away. Run as a script.

    python vllm_guard.py COMMAND...      with a pipe as stdin, in a session of its own

vLLM is three processes, and a parent that is killed outright leaves them running with their memory. The parent
holds the other end of stdin; when that closes, or on SIGTERM, the command is asked to end, and after the grace
time everything in this process group is killed. Standard library only, so that any interpreter can run it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

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
    # What is left: a command that does not end, and children that outlived it. This process is in the group too.
    sys.stderr.write(f"vllm_guard: the command ended with {child.poll()}; ending its group\n")
    sys.stderr.flush()
    os.killpg(os.getpgrp(), signal.SIGKILL)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
