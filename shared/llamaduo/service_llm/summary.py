"""What many answers cost together, for a result event."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from llamaduo.errors import LlamaDuoError
from llamaduo.events import CallCounts, WorkSpan
from llamaduo.service_llm.call import Answer

_ONE_SPAN = timedelta(milliseconds=50)


def count_calls(answers: Iterable[Answer | LlamaDuoError]) -> CallCounts:
    """Calls behind one job's result.

    A call the job bought counts as made, also if that was before a kill, so a run under kills counts as one
    without; an answer that other work had bought, or that the same job uses again, counts as from the ledger.
    """
    total, seen = CallCounts(), set()
    for answer in answers:
        if isinstance(answer, LlamaDuoError):
            total += CallCounts(failed=1)
        elif not answer.own or answer.key in seen:
            total += CallCounts(from_ledger=1)
        else:
            seen.add(answer.key)
            total += CallCounts(
                made=1,
                rebought=int(answer.rebought),
                failed=answer.failed,
                input_tokens=answer.input_tokens,
                output_tokens=answer.output_tokens,
                money=answer.money,
            )
    return total


def work_spans(answers: Iterable[Answer | LlamaDuoError]) -> list[WorkSpan]:
    """When any of the job's requests was under way: merged spans in order, those under 50 ms apart as one."""
    times = sorted((one.began, one.ended) for one in answers if isinstance(one, Answer) and one.own)
    spans: list[WorkSpan] = []
    for began, ended in times:
        if spans and began <= spans[-1].ended + _ONE_SPAN:
            spans[-1] = spans[-1].model_copy(update={"ended": max(spans[-1].ended, ended)})
        else:
            spans.append(WorkSpan(kind="service_llm", began=began, ended=ended))
    return spans
