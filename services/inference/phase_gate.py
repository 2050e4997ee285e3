"""Keeps base and adapter requests out of one batch.

vLLM's CPU kernels take the last adapter slot's weights for base requests that share a batch with adapter requests
when every slot is filled, and a slot stays filled after its adapter is unloaded. The answers are then wrong without
any error, so the two kinds take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

log = logging.getLogger(__name__)

Phase = Literal["base", "adapter"]


class PhaseGate:
    """Many requests of one kind at a time; once the other kind waits, newcomers queue behind it.

    `settle` is awaited before the kind changes if a request left early (cancelled, timed out, failed), for the
    engine may still be computing it. It must not raise.
    """

    def __init__(self, settle: Callable[[], Awaitable[None]], *, enabled: bool = True) -> None:
        self._settle = settle
        self._enabled = enabled
        self._phase: Phase = "base"
        self._inside = 0
        self._queue: deque[tuple[Phase, asyncio.Future[None]]] = deque()
        self._left_early = False
        self._settling: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def hold(self, phase: Phase) -> AsyncIterator[None]:
        """Inside, only requests of this kind are under way."""
        if not self._enabled:
            yield
            return
        await self._enter(phase)
        try:
            yield
        except BaseException:
            self._left_early = True
            raise
        finally:
            self._leave()

    async def _enter(self, phase: Phase) -> None:
        if phase == self._phase and not self._queue and self._settling is None:
            self._inside += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((phase, turn))
        self._advance()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            else:
                self._advance()
            raise

    def _leave(self) -> None:
        self._inside -= 1
        self._advance()

    def _advance(self) -> None:
        """Lets in who may come in now."""
        self._queue = deque(waiting for waiting in self._queue if not waiting[1].cancelled())
        if not self._queue or self._settling is not None:
            return
        wanted = self._queue[0][0]
        if wanted != self._phase:
            if self._inside:
                return
            if self._left_early:
                self._settling = asyncio.ensure_future(self._settle_then_advance())
                return
            self._phase = wanted
        admitted = [turn for phase, turn in self._queue if phase == wanted]
        self._queue = deque((phase, turn) for phase, turn in self._queue if phase != wanted)
        for turn in admitted:
            self._inside += 1
            turn.set_result(None)

    async def _settle_then_advance(self) -> None:
        try:
            await self._settle()
        except Exception:
            # A gate that stays shut would hold up every request for good.
            log.exception("it is not known whether the engine has settled")
        self._left_early, self._settling = False, None
        self._advance()
