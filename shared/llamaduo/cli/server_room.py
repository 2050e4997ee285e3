"""nats-server on a disk that ran full: started anew once there is room, for it does not recover by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable

from llamaduo.cli.processes import Child

ROOM_BYTES = 64 * 1024**2
"""So much has to be free before it is worth a try."""
LOOK_EVERY_S = 1.0
COMPLAINTS = (b"no space left on device", b"file resource limits exceeded")
"""What its log says where a stream broke for want of room, and where its own limit is reached: three quarters of what
was free at its start, which a new start counts anew."""


async def restart_when_there_is_room(server: Child, say: Callable[[str], None]) -> None:
    """Watch the server's log for as long as it is supervised; runs until it is cancelled."""
    log, at, full = server.program.log, _size(server), False
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        size = _size(server)
        if size != at:
            with contextlib.suppress(OSError), log.open("rb") as file:
                file.seek(at if size > at else 0)  # a log that has grown large is begun anew
                said = file.read()
                complained = any(complaint in said for complaint in COMPLAINTS)
                if complained and not full:
                    say("the disk is full: services wait; make room there, the rest happens by itself")
                full = full or complained
            at = size
        if full and shutil.disk_usage(log.parent).free > ROOM_BYTES and server.pid is not None:
            say("there is room on the disk again: nats-server is started anew")
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGTERM)
            full = False


def _size(server: Child) -> int:
    try:
        return server.program.log.stat().st_size
    except OSError:
        return 0
