"""The evaluators this service can run, by name. One process runs one of them."""

from __future__ import annotations

from collections.abc import Callable

from llamaduo.built_in_evaluators import CHRF, ROUGE_L
from llamaduo.errors import UserInputError
from llamaduo.evaluators import Evaluator
from llamaduo.names import did_you_mean
from llamaduo.service_llm import ServiceLLMClient
from services.judge import (
    embedding,
    exact_match,
    json_schema,
    label_accuracy,
    llm_judge,
    overlap,
    pairwise,
    tool_call,
)

_FACTORIES: dict[str, Callable[[ServiceLLMClient | None], Evaluator]] = {
    exact_match.NAME: lambda _: exact_match.exact_match(),
    label_accuracy.NAME: lambda _: label_accuracy.label_accuracy(),
    embedding.NAME: lambda _: embedding.embedding(),
    json_schema.NAME: lambda _: json_schema.json_schema(),
    tool_call.NAME: lambda _: tool_call.tool_call(),
    ROUGE_L: lambda _: overlap.rouge_l_evaluator(),
    CHRF: lambda _: overlap.chrf_evaluator(),
    llm_judge.NAME: llm_judge.llm_judge,
    pairwise.NAME: pairwise.pairwise,
}

NAMES = tuple(sorted(_FACTORIES))


def make(name: str, client: ServiceLLMClient | None) -> Evaluator:
    """The evaluator of that name; one that asks a service LLM only declares itself where there is no client.

    UserInputError names the known ones.
    """
    factory = _FACTORIES.get(name)
    if factory is None:
        raise UserInputError(
            f"no evaluator is called {name!r}",
            field="evaluator",
            hint=did_you_mean(name, NAMES) or f"known: {', '.join(NAMES)}",
        )
    return factory(client)
