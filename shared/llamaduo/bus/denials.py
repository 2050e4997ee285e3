"""What the server denies this user: heard as an error of the connection, told to whoever waits for an answer.

The server drops a denied message and says so on the side; without this its sender would wait for an answer that
never comes.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from llamaduo.errors import PermanentError

log = logging.getLogger(__name__)
T = TypeVar("T")

_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE)
RECENT_S = 60.0


class Denied(PermanentError):
    """This user of the bus has no right to do that."""


class Denials:
    """Of one connection, whose user is `user`."""

    def __init__(self, user: str) -> None:
        self._user = user
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._last: tuple[float, str] | None = None

    def hear(self, error: Exception) -> bool:
        """Take an error of the connection; whether it was a denial."""
        found = _DENIED.search(str(error))
        if found is None:
            return False
        subject = found[2]  # nats-py tells it in small letters
        what = "publish on" if found[1].lower() == "publish" else "hear"
        said = f"the bus denies user {self._user} to {what} {subject}"
        log.error("%s", said)
        self._last = (time.monotonic(), said)
        for waiting in self._waiting.get(subject.lower(), ()):
            if not waiting.done():
                waiting.set_exception(Denied(said))
        return True

    @property
    def recent(self) -> str | None:
        """What was denied within the last minute, in words."""
        return self._last[1] if self._last is not None and time.monotonic() - self._last[0] < RECENT_S else None

    async def watch(self, subject: str, request: Coroutine[Any, Any, T]) -> T:
        """The answer to a request on this subject; Denied as soon as the server says so."""
        denied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        key = subject.lower()
        self._waiting.setdefault(key, set()).add(denied)
        asking = asyncio.ensure_future(request)
        try:
            ends: set[asyncio.Future[Any]] = {asking, denied}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                denied.result()
            return asking.result()
        finally:
            asking.cancel()
            denied.cancel()
            self._waiting[key].discard(denied)
            if not self._waiting[key]:
                del self._waiting[key]
