"""What batches need of a provider: send many calls at once, look how far they are, fetch what came of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm.call import Call
from llamaduo.service_llm.sending import Reply, SendFailed


@dataclass(frozen=True)
class BatchLook:
    """How far a batch is, in calls. `status` is the provider's word.

    `lost`: the provider knows it no more. `rejected`: why the provider took none of it, "" where it did. `full`: only
    because too much is waiting there already.
    """

    status: str
    ended: bool
    done: int
    failed: int
    total: int
    lost: bool = False
    rejected: str = ""
    full: bool = False


class SendBatches(Protocol):
    """Where batches go. All methods raise SendFailed or ServiceLLMMisconfigured."""

    async def start(self, llm: ServiceLLM, tag: str, calls: Sequence[Call], /) -> str:
        """Send calls of one service LLM as one batch that carries `tag`; its id."""
        ...

    async def find(self, llm: ServiceLLM, tag: str, since: float, /) -> str | None:
        """The id of the batch with this tag, sent no earlier than `since` (seconds since the epoch)."""
        ...

    async def look(self, llm: ServiceLLM, batch: str, /) -> BatchLook:
        """How far it is."""
        ...

    async def cancel(self, llm: ServiceLLM, batch: str, /) -> None:
        """Have it stopped; what is done by then can be fetched once it has ended. No effect on one that has."""
        ...

    async def replies(
        self, llm: ServiceLLM, batch: str, calls: Mapping[str, Call], /
    ) -> Mapping[str, Reply | SendFailed]:
        """What came of the calls of a batch that has ended, by call key; those that were not done are left out."""
        ...

    async def close(self) -> None:
        """Close connections that are open."""
        ...
