"""The evaluators this service can run, by name. One process runs one of them."""

from __future__ import annotations

from collections.abc import Callable

from llamaduo.errors import UserInputError
from llamaduo.evaluators import Evaluator
from llamaduo.names import did_you_mean
from llamaduo.service_llm import ServiceLLMClient
from services.judge import exact_match, llm_judge

_FACTORIES: dict[str, Callable[[ServiceLLMClient | None], Evaluator]] = {
    exact_match.NAME: lambda _: exact_match.exact_match(),
    llm_judge.NAME: llm_judge.llm_judge,
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
