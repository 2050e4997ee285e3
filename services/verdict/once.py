"""`python -m services.verdict.once`: whether marks pass a gate, with no bus, from JSON on standard input.

What is asked and given back: `llamaduo.single_steps`. `llamaduo judge` starts it after the marks.
"""

from __future__ import annotations

from llamaduo.errors import UserInputError
from llamaduo.migrations.resolution import alpha_of_round
from llamaduo.migrations.spec import MigrationSpec
from llamaduo.single_steps import MarksDone, VerdictAsked, VerdictDone, serve_step
from services.verdict.judging import judge_round, marks_with_intervals
from services.verdict.marks import ranges_of, rows_of


async def decide_once(asked: VerdictAsked) -> VerdictDone:
    """The marks as round 0 of a migration would take them, all in one shard and each asked for once.

    UserInputError where the gate names a metric that its evaluator does not give.
    """
    spec, given = asked.spec, asked.marks
    try:
        # Both ends at the error that the verdict may spend, so that a pass lies above its gate.
        alpha = 2 * alpha_of_round(spec.gate.confidence, 0)
        marks = marks_with_intervals(rows_of({0: given.scored}), ranges_of(given.scored), alpha)
        if note := undecidable(spec, given):
            return VerdictDone(marks=marks, verdict=None, note=note)
        local = [one for one in given.scored if one.evaluator in spec.awaited]
        bar = [one for one in given.bar if one.evaluator in spec.required]
        once = spec.model_copy(update={"marking": spec.marking.model_copy(update={"repeats": 0})})
        outcome = judge_round(once, 0, 1, {0: local}, {0: bar} if bar else {})
    except ValueError as error:
        raise UserInputError(str(error), field="gate") from error
    assert outcome.verdict != "waiting"
    if outcome.verdict == "passed" and spec.gate.serving is not None and spec.gate.serving.limits:
        note = "the marks pass; gate.serving asks how fast the adapter is served, which a migration measures"
        return VerdictDone(marks=marks, verdict=None, note=note)
    return VerdictDone(marks=marks, verdict=outcome.verdict, note=outcome.note, failures=outcome.failures)


def undecidable(spec: MigrationSpec, given: MarksDone) -> str:
    """What the gate asks for and these marks do not have; "" where nothing is missing."""
    marked = {one.evaluator for one in given.scored}
    if missing := [name for name in spec.awaited if name not in marked]:
        return f"{', '.join(missing)} did not mark"
    if spec.gate.parity is not None and not given.bar:
        return "parity compares with the service LLM's own answers (--bar)"
    return ""


if __name__ == "__main__":
    raise SystemExit(serve_step(VerdictAsked, decide_once))
