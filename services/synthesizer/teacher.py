"""The teacher that is a real service LLM: prompts become calls of the one client, answers what synthesis reads."""

from __future__ import annotations

from llamaduo.errors import BudgetExhausted, LlamaDuoError, ServiceLLMRefused
from llamaduo.event_parts import CallCounts
from llamaduo.migrations.spec import Budgets, ServiceLLM
from llamaduo.service_llm import Answer, Call, ServiceLLMClient, count_calls, parse_items, work_spans
from services.synthesizer.asking import Pair, PairCheck, PairChecks, TeacherAnswer, TeacherPrompt

MAX_TOKENS = 4096


class ServiceTeacher:
    """See `Teacher`. `job` is the id of the event whose work the calls are."""

    def __init__(
        self, client: ServiceLLMClient, llm: ServiceLLM, budgets: Budgets, *, migration: str, job: str
    ) -> None:
        self._client, self._llm, self._budgets = client, llm, budgets
        self._migration, self._job = migration, job
        self._bought = CallCounts()

    async def ask(self, prompts: list[TeacherPrompt]) -> list[TeacherAnswer]:
        """Ask all of `prompts`; what can never be answered is an error in its place, all else is raised."""
        results = await self._client.ask_all([self._call(prompt) for prompt in prompts], self._budgets)
        self._bought += count_calls(results)
        failed = [result for result in results if isinstance(result, LlamaDuoError)]
        ends: list[LlamaDuoError] = [one for one in failed if isinstance(one, BudgetExhausted)]
        ends += [one for one in failed if not isinstance(one, ServiceLLMRefused)]
        if ends:
            ends[0].calls = self._bought
            raise ends[0]
        return [_answer(prompt, result) for prompt, result in zip(prompts, results, strict=True)]

    def _call(self, prompt: TeacherPrompt) -> Call:
        return Call(
            messages=[message.model_dump() for message in prompt.messages],
            llm=self._llm,
            migration=self._migration,
            job=self._job,
            purpose=prompt.job,
            schema=prompt.output,
            max_tokens=prompt.max_tokens or MAX_TOKENS,
            temperature=prompt.temperature,
            seed=prompt.seed,
            sample=prompt.sample,
            response_format=prompt.response_format,
            tools=prompt.tools,
        )


def _answer(prompt: TeacherPrompt, result: Answer | LlamaDuoError) -> TeacherAnswer:
    counts = count_calls([result])
    if isinstance(result, LlamaDuoError):
        return TeacherAnswer(error=str(result), counts=counts)
    spans = work_spans([result])
    work = spans[0] if spans else None
    if prompt.output is None:
        return TeacherAnswer(text=result.text, counts=counts, work=work)
    if prompt.output is PairChecks:
        checks, problems = parse_items(result.text, PairCheck, "checks")
        return TeacherAnswer(checks=checks, error="; ".join(problems), counts=counts, work=work)
    pairs, problems = parse_items(result.text, Pair, "pairs")
    return TeacherAnswer(pairs=pairs, error="; ".join(problems), counts=counts, work=work)
