"""What many answers cost together, for a result event."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from llamaduo.errors import LlamaDuoError, ServiceLLMRefused
from llamaduo.event_parts import CallCounts, WorkSpan
from llamaduo.service_llm.call import Answer, RefusedInWords

_ONE_SPAN = timedelta(milliseconds=50)


def count_calls(answers: Iterable[Answer | LlamaDuoError]) -> CallCounts:
    """Calls behind one job's result.

    A call the job bought counts as made, also if that was before a kill, so a run under kills counts as one
    without; an answer that other work had bought, or that the same job uses again, counts as from the ledger. What
    was wrong with an answer is counted where it was made.
    """
    total, seen = CallCounts(), set[str]()
    for one in answers:
        answer = one.answer if isinstance(one, RefusedInWords) else one
        if isinstance(answer, LlamaDuoError):
            total += CallCounts(failed=1, refused=int(isinstance(answer, ServiceLLMRefused)))
        elif not answer.own or answer.key in seen:
            total += CallCounts(from_ledger=1)
        else:
            seen.add(answer.key)
            refused = isinstance(one, RefusedInWords)
            total += CallCounts(
                made=1,
                batched=int(answer.batched),
                rebought=int(answer.rebought),
                failed=answer.failed,
                limited=answer.limited,
                refused=int(refused),
                cut=int(answer.finish_reason == "length"),
                empty=int(not refused and not answer.text.strip()),
                odd=int(not refused and answer.shape == "odd"),
                unreadable=int(not refused and answer.shape == "unreadable"),
                input_tokens=answer.input_tokens,
                output_tokens=answer.output_tokens,
                money=answer.money,
            )
    return total


def work_spans(answers: Iterable[Answer | LlamaDuoError]) -> list[WorkSpan]:
    """When any of the job's requests was under way: merged spans in order, those under 50 ms apart as one."""
    given = [one.answer if isinstance(one, RefusedInWords) else one for one in answers]
    times = sorted((one.began, one.ended) for one in given if isinstance(one, Answer) and one.own)
    spans: list[WorkSpan] = []
    for began, ended in times:
        if spans and began <= spans[-1].ended + _ONE_SPAN:
            spans[-1] = spans[-1].model_copy(update={"ended": max(spans[-1].ended, ended)})
        else:
            spans.append(WorkSpan(kind="service_llm", began=began, ended=ended))
    return spans
