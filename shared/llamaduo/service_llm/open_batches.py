"""Which batches are under way, in one record: those of a migration that ended while nobody had its work in hand, as
after a kill, are cancelled by whoever comes next."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pydantic import BaseModel, TypeAdapter

from llamaduo.bus.kv import KeyValue
from llamaduo.errors import LlamaDuoError, describe
from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm.cas import change, read
from llamaduo.service_llm.clock import Clock
from llamaduo.service_llm.sending import SendFailed
from llamaduo.service_llm.sending_batches import SendBatches

log = logging.getLogger(__name__)

_KEY = "batches"


class OpenBatch(BaseModel):
    """Where to look for a batch, and whose it is; `began` in seconds since the epoch."""

    migration: str
    llm: ServiceLLM
    began: float


_OPEN = TypeAdapter(dict[str, OpenBatch])


class OpenBatches:
    """The record, by the tag of each batch."""

    def __init__(self, kv: KeyValue, clock: Clock) -> None:
        self._kv, self._clock = kv, clock

    async def add(self, tag: str, batch: OpenBatch) -> None:
        """This batch is about to be sent."""
        await self._change(lambda there: {**there, tag: batch})

    async def remove(self, tag: str) -> None:
        """This batch has ended."""
        await self._change(lambda there: {key: one for key, one in there.items() if key != tag})

    async def cancel_left(self, send: SendBatches, ended: Callable[[str], bool]) -> list[str]:
        """Have the batches of migrations that ended cancelled; their tags.

        Where that does not work now, for want of a key or an answer, it is left for the next time.
        """
        stored = await read(self._kv, _KEY, self._clock)
        cancelled: list[str] = []
        for tag, one in _parsed(stored.value if stored else None).items():
            if not ended(one.migration):
                continue
            try:
                batch = await send.find(one.llm, tag, one.began)
                if batch is not None:
                    await send.cancel(one.llm, batch)
            except (LlamaDuoError, SendFailed) as error:
                log.warning(
                    "a batch of %s, which has ended, could not be cancelled: %s", one.migration, describe(error)
                )
                continue
            await self.remove(tag)
            cancelled.append(tag)
        return cancelled

    async def _change(self, made: Callable[[dict[str, OpenBatch]], dict[str, OpenBatch]]) -> None:
        def step(value: bytes | None) -> tuple[bytes | None, None]:
            before = _parsed(value)
            after = made(before)
            return (None if after == before else _OPEN.dump_json(after)), None

        await change(self._kv, _KEY, step, self._clock)


def _parsed(value: bytes | None) -> dict[str, OpenBatch]:
    return {} if value is None else _OPEN.validate_json(value)
