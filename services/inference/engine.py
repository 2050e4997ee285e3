"""What an inference engine is: it holds one base model and serves LoRA adapters of it under names of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llamaduo.errors import PermanentError, RetryableError, UserInputError
from llamaduo.tool_calls import ToolWording

DIGEST_IN_NAME = 12

# What a request may ask beside its prompt, limits and seed. `prompt_logprobs` with an adapter ends vLLM's engine.
OPTIONS = frozenset(
    {"top_p", "top_k", "min_p", "stop", "response_format", "repetition_penalty", "tools", "tool_choice", "cache_salt"}
)


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter on this machine's disk.

    `name` is its served name, `digest` the SHA-256 over its sorted (file name, file SHA-256) pairs. `rank` and
    `base_digest` are what its maker says of it; None where that is not known. `tool_wording` is how it was
    shown tools.
    """

    name: str
    folder: Path
    digest: str
    rank: int | None = None
    base_digest: str | None = None
    tool_wording: ToolWording = "text"


@dataclass(frozen=True)
class GenerationRequest:
    """`k` answers to one prompt.

    `model` is an adapter's served name, or None for the untrained base. `seed` holds one seed for each of the `k`
    samples. `reference` is read by the fake engine only. `options` are further sampling settings (see OPTIONS).

    Raises UserInputError for a wrong number of seeds or an option that is not allowed.
    """

    row: str
    messages: Sequence[Mapping[str, Any]]
    model: str | None
    k: int
    max_tokens: int
    temperature: float
    seed: Sequence[int]
    reference: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.k < 1 or len(self.seed) != self.k:
            raise UserInputError(f"row {self.row}: {self.k} answers need as many seeds, not {len(self.seed)}")
        if unknown := sorted(set(self.options) - OPTIONS):
            raise UserInputError(
                f"row {self.row}: the option {unknown[0]} is not passed on",
                hint=f"allowed: {', '.join(sorted(OPTIONS))}",
            )


@dataclass(frozen=True)
class Generation:
    """The answers to one prompt, one for each sample, each with why it ended (`stop`, `length`).

    A prompt that does not fit the model has empty answers that ended by `prompt_too_long`. Token counts are
    sums over what was generated: equal samples at temperature 0 are generated, and counted, once.
    """

    row: str
    answers: list[str]
    finish_reasons: list[str]
    prompt_tokens: int
    completion_tokens: int


class EngineNotReady(RetryableError):
    """The engine is down or starting; the message says what is known, with the last lines of its log."""


class WrongBaseModel(PermanentError):
    """An engine that is not ours serves another base model than the migration is for."""


class InferenceEngine(Protocol):
    """Serves one base model and adapters of it."""

    @property
    def base_url(self) -> str:
        """Where the OpenAI API is served to others, ending in `/v1`."""
        ...

    async def start(self) -> None:
        """Ready on return. EngineNotReady where it cannot be started in time."""
        ...

    async def stop(self) -> None:
        """Everything this engine started is gone on return; adapters are remembered for the next start."""
        ...

    async def load(self, adapter: AdapterFiles) -> str:
        """Check, serve and probe an adapter; gives back its served name. Loading it again changes nothing.

        AdapterRejected where it must not be served; RetryableError where the engine cannot do it now.
        """
        ...

    def pin(self, names: frozenset[str]) -> None:
        """These adapters never make room for another; replaces what was pinned before."""
        ...

    async def unload(self, name: str) -> None:
        """Serve this adapter no longer and forget its files; nothing happens if it is not known."""
        ...

    async def generate(self, prompts: Sequence[GenerationRequest]) -> list[Generation]:
        """Answers in the order of the prompts. RetryableError if any could not be made now."""
        ...

    def healthy(self) -> bool:
        """Whether it can answer now with all that it should serve."""
        ...

    async def metrics(self) -> str:
        """Its server's own figures as Prometheus reads them, "" where it has none. RetryableError while down."""
        ...


def served_name(migration: str, round_number: int, digest: str) -> str:
    """The name of an adapter: never used for other content, since it holds the start of the content's digest."""
    return f"{migration}-r{round_number}-{digest[:DIGEST_IN_NAME]}"
