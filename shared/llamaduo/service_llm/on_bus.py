"""The client of a service that is declared before it is connected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamaduo.bus.progress import Progress
from llamaduo.service_llm.client import ServiceLLMClient

if TYPE_CHECKING:
    from llamaduo.bus.connection import Bus
    from llamaduo.bus.mirror import Mirror
    from llamaduo.service_llm.call import Call
    from llamaduo.service_llm.sending_batches import BatchLook


class ClientOnBus:
    """Opened with its service, closed with it; in between `get` gives the client."""

    def __init__(self) -> None:
        self._client: ServiceLLMClient | None = None

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

        self._client = await ServiceLLMClient.on_bus(bus, ended, tell)

    async def close(self) -> None:
        """Wait for requests on their way and write their answers down."""
        if self._client is not None:
            await self._client.close()

    def get(self) -> ServiceLLMClient:
        """The client. RuntimeError before `open`."""
        if self._client is None:
            raise RuntimeError("the service LLM's client is asked for before the service has opened")
        return self._client
