"""The provider's limit on requests a minute, over a sliding window."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import ceil

_WINDOW_S = 60.0


class RateLimit:
    """Admits at most `per_minute` requests in any 60 seconds (None: all); `clock` gives seconds."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._admitted: deque[float] = deque()

    def admit(self) -> int | None:
        """None where the request is admitted, else the whole seconds until one would be (at least 1)."""
        if self._per_minute is None:
            return None
        now = self._clock()
        while self._admitted and self._admitted[0] <= now - _WINDOW_S:
            self._admitted.popleft()
        if len(self._admitted) < self._per_minute:
            self._admitted.append(now)
            return None
        return max(1, ceil(self._admitted[0] + _WINDOW_S - now))
