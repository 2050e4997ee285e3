"""What the client needs of a provider: one request, one reply or one of four kinds of failure, no retries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from llamaduo.errors import ServiceLLMRefused, UserInputError
from llamaduo.service_llm.call import Call, FinishReason

FailureKind = Literal["refused", "limited", "failed", "unknown"]


@dataclass(frozen=True)
class Reply:
    """A provider's answer; tokens as the provider counted them."""

    text: str
    finish_reason: FinishReason
    input_tokens: int
    output_tokens: int


class SendFailed(Exception):
    """A request that brought no answer.

    `refused`: it never will (key, quota, bad request). `limited`: the provider asks for patience. `failed`: it
    was not done, and not paid. `unknown`: sent, and nobody can say whether it was done and paid. `retry_after` is
    in seconds, as the provider asked.
    """

    def __init__(self, kind: FailureKind, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.retry_after = retry_after


class ServiceLLMMisconfigured(UserInputError, ServiceLLMRefused):
    """A key, package or name that a person has to supply; permanent, and names what to do."""


class Send(Protocol):
    """Where calls go."""

    async def __call__(self, call: Call, idempotency_key: str, /) -> Reply:
        """Send a call once with this idempotency key. Raises SendFailed or ServiceLLMMisconfigured."""
        ...

    async def close(self) -> None:
        """Close connections that are open."""
        ...
