"""The client of a service that is declared before it is connected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamaduo.service_llm.client import ServiceLLMClient

if TYPE_CHECKING:
    from llamaduo.bus.connection import Bus
    from llamaduo.bus.mirror import Mirror


class ClientOnBus:
    """Opened with its service, closed with it; in between `get` gives the client."""

    def __init__(self) -> None:
        self._client: ServiceLLMClient | None = None

    async def open(self, bus: Bus, _mirror: Mirror) -> None:
        """Make the client over the bus's buckets."""
        self._client = await ServiceLLMClient.on_bus(bus)

    async def close(self) -> None:
        """Wait for requests on their way and write their answers down."""
        if self._client is not None:
            await self._client.close()

    def get(self) -> ServiceLLMClient:
        """The client. RuntimeError before `open`."""
        if self._client is None:
            raise RuntimeError("the service LLM's client is asked for before the service has opened")
        return self._client
