"""The client of a service that is declared before it is connected."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from llamaduo.bus.mirror import ENDS
from llamaduo.bus.progress import Progress
from llamaduo.errors import describe
from llamaduo.event_parts import CallCounts
from llamaduo.events import CancelRequested
from llamaduo.service_llm.batches import LEAVING_S
from llamaduo.service_llm.client import ServiceLLMClient

if TYPE_CHECKING:
    from llamaduo.bus.connection import Bus
    from llamaduo.bus.mirror import Mirror
    from llamaduo.events import AnyEvent
    from llamaduo.service_llm.call import Call
    from llamaduo.service_llm.sending_batches import BatchLook

log = logging.getLogger(__name__)

BEFORE_TIDYING_S = 2 * LEAVING_S
"""After the end of a migration: whoever has its work in hand cancels its batches, and knows more of them."""


class ClientOnBus:
    """Opened with its service, closed with it; in between `get` gives the client."""

    def __init__(self) -> None:
        self._client: ServiceLLMClient | None = None
        self._tidying: set[asyncio.Task[None]] = set()

    async def open(self, bus: Bus, mirror: Mirror) -> None:
        """Make the client over the bus's buckets."""

        def ended(migration: str) -> bool:
            view = mirror.get(migration)
            return mirror.has_ended(migration) or (view is not None and view.cancel is not None)

        async def tell(call: Call, look: BatchLook, batch: str) -> None:
            await bus.progress(
                Progress(
                    service=bus.name,
                    migration=call.migration,
                    stage="batch",
                    done=look.done + look.failed,
                    total=look.total,
                    note=f"{batch}: {look.status}; answers may take up to {call.llm.batch_wait_s / 3600:g} h",
                )
            )

        def tidy(event: AnyEvent | None) -> None:
            if event is None or isinstance(event, (*ENDS, CancelRequested)):
                task = asyncio.create_task(_tidied(client, 0.0 if event is None else BEFORE_TIDYING_S))
                self._tidying.add(task)
                task.add_done_callback(self._tidying.discard)

        self._client = client = await ServiceLLMClient.on_bus(bus, ended, tell)
        mirror.on_event(tidy)
        tidy(None)

    async def close(self) -> None:
        """Wait for requests on their way and write their answers down."""
        for task in list(self._tidying):
            task.cancel()
        if self._client is not None:
            await self._client.close()

    def get(self) -> ServiceLLMClient:
        """The client. RuntimeError before `open`."""
        if self._client is None:
            raise RuntimeError("the service LLM's client is asked for before the service has opened")
        return self._client

    def bought_by(self, job: str) -> CallCounts:
        """What a job that is in hand no more has bought; see `ServiceLLMClient.bought_by`."""
        return CallCounts() if self._client is None else self._client.bought_by(job)


async def _tidied(client: ServiceLLMClient, wait_s: float) -> None:
    """Nothing waits for this, so that it did not work can only be written down."""
    await asyncio.sleep(wait_s)
    try:
        await client.cancel_left_batches()
    except Exception as error:
        log.warning("batches of migrations that ended may be left: %s", describe(error))
