"""`python -m services.judge.once`: marks for a file of answers with no bus, from JSON on standard input.

What is asked and given back: `llamaduo.single_steps`. `llamaduo judge` starts it.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamaduo.datasets import ShardRow
from llamaduo.evaluating import marks_of, slices_of
from llamaduo.evaluators import FREE, Evaluator, Scored, Task
from llamaduo.event_parts import Candidate
from llamaduo.events import EvalScored
from llamaduo.single_steps import MarksAsked, MarksDone, buying, serve_step
from services.judge.catalogue import make

ANSWERS, BAR = Candidate(kind="adapter", round=0), Candidate(kind="service")


async def judge_once(asked: MarksAsked) -> MarksDone:
    """All marks by all evaluators that are asked for. UserInputError for one that does not come with LlamaDuo."""
    paid = sum(make(name, None).cost_per_row != FREE for name in asked.evaluators)
    answers = sum(len(row.answers) for row in [*asked.answers, *asked.bar])
    done = MarksDone(scored=[])
    async with buying(asked, "judge", paid * answers) as (client, job):
        for name in asked.evaluators:
            evaluator = make(name, client)
            done.scored.append(await _marked(evaluator, asked.answers, asked, ANSWERS, job))
            if asked.bar:
                done.bar.append(await _marked(evaluator, asked.bar, asked, BAR, job))
    return done


async def _marked(
    evaluator: Evaluator, rows: Sequence[ShardRow], asked: MarksAsked, candidate: Candidate, job: str
) -> EvalScored:
    task = Task(
        migration=asked.task,
        spec=asked.spec,
        candidate=candidate.key,
        split="test",
        shard=0,
        repeat=0,
        job=job,
        options=asked.spec.options_of(evaluator.name),
    )
    result = await evaluator.score(rows, task)
    scored = result if isinstance(result, Scored) else Scored(scores=result)
    return EvalScored(
        migration=asked.task,
        candidate=candidate,
        split="test",
        shard=0,
        of=1,
        evaluator=evaluator.name,
        version=evaluator.version,
        noisy=evaluator.noisy,
        metrics=evaluator.metrics,
        marks=marks_of(evaluator, rows, scored.scores),
        slices=slices_of(rows, asked.spec.gate.slices),
        calls=scored.calls,
        work=scored.work,
    )


if __name__ == "__main__":
    raise SystemExit(serve_step(MarksAsked, judge_once))
