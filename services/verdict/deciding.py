"""What the verdict has to publish now: one pure function of the folded log and the clock.

Everything it returns carries the id of the question it answers, so saying it twice changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from llamaduo.errors import PermanentError, describe
from llamaduo.event_parts import Candidate, MarkedSplit
from llamaduo.events import (
    AdapterPromoted,
    Command,
    DatasetReady,
    EvalFailed,
    EvalPassed,
    EvalScored,
    Event,
    MarksRequested,
    MigrationCancelled,
    MigrationCompleted,
    MigrationStopped,
    ReferencesRequested,
    ResponsesGenerated,
    ResponsesRequested,
    ResumeRequested,
    ServingRequested,
    TrainingRequested,
)
from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.next_step import Stop, after_failure
from llamaduo.migrations.spec import Marking, MigrationSpec
from services.verdict.bases import lost_bases, trained_or_answered, turn_of
from services.verdict.judging import Outcome, marks_with_intervals
from services.verdict.marks import prefix_length, ranges_of, rows_of, shards_marked

MOST_SHARDS = 20_000
"""Of one split: each is an event of its own, and all of the baselines' are asked for at once."""
SERVICE = Candidate(kind="service")
NEAREST = Candidate(kind="nearest")


def due(view: MigrationView, now: datetime) -> list[Event]:
    """The events to publish, in order; none of them is in the log yet."""
    if view.request is None or view.ended is not None:
        return []
    if view.cancel is not None:
        ended = MigrationCancelled(
            migration=view.migration, reason=f"cancelled by {view.cancel.by or 'an operator'}: {view.cancel.why}"
        )
        return [ended]
    try:
        spec = view.spec
        assert spec is not None
        events = [*_baselines(view, spec), *_rounds(view, spec), *_confirmation(view, spec, now)]
        # A round that was just decided is in the log before any rule is asked: the rules need to know of it.
        if not any(isinstance(e, MigrationCompleted | EvalPassed | EvalFailed) for e in events):
            stop = _stop(view, spec, now)
            events += [stop] if stop else []
    except (ValueError, PermanentError) as error:
        events = [MigrationStopped(migration=view.migration, rule="error", reason=str(error))]
    except Exception as error:  # the log says the same at every try: what it does not let us decide is said and ends
        reason = f"its events cannot be judged: {describe(error)}"
        events = [MigrationStopped(migration=view.migration, rule="error", reason=reason)]
    return [event for event in events if event.id not in view.events]


def _shards(rows: int, size: int) -> int:
    """ValueError where they are too many to be asked for."""
    shards = max(1, -(-rows // size))
    if shards > MOST_SHARDS:
        raise ValueError(f"{rows} rows are {shards} shards, and at most {MOST_SHARDS} are asked for")
    return shards


def _ask(
    view: MigrationView, data: DatasetReady, candidate: Candidate, split: MarkedSplit, numbers: Sequence[int]
) -> list[Event]:
    spec = view.spec
    assert spec is not None
    model = ReferencesRequested if candidate in (SERVICE, NEAREST) else ResponsesRequested
    return [
        model(
            migration=view.migration,
            candidate=candidate,
            split=split,
            shard=number,
            of=_shards(data.rows[split], spec.marking.shard_rows),
            rows=data.splits[split],
            size=spec.marking.shard_rows,
            answers_per_prompt=spec.generation.answers,
            max_tokens=spec.generation.max_tokens,
            temperature=spec.generation.temperature,
            evaluators=[e.name for e in spec.evaluators],
        )
        for number in numbers
    ]


def _baselines(view: MigrationView, spec: MigrationSpec) -> list[Event]:
    """The untrained base, the service LLM itself and the nearest train rows answer the test split once, at first."""
    data = view.dataset(0)
    if data is None:
        return []
    size, rows = spec.marking.shard_rows, data.rows["test"]
    return [
        *_ask(view, data, SERVICE, "test", range(_shards(rows, size))),
        *_ask_untrained(view, data, 0),
        *_ask(view, data, NEAREST, "test", range(_shards(rows, size))),
    ]


def _ask_untrained(view: MigrationView, data: DatasetReady, base: int) -> list[Event]:
    spec = view.spec
    assert spec is not None
    rows = min(data.rows["test"], spec.marking.baseline_rows or data.rows["test"])
    candidate = Candidate(kind="base", base=base)
    return _ask(view, data, candidate, "test", range(_shards(rows, spec.marking.shard_rows)))


def _rounds(view: MigrationView, spec: MigrationSpec) -> list[Event]:
    """Training of further base models, waves of shards, and the verdict, for every round that is not decided."""
    events: list[Event] = []
    for number in view.rounds:
        data = view.dataset(number)
        if data is None or view.decision(number) is not None:
            continue
        for base in range(1, len(spec.bases)):
            events.append(TrainingRequested(migration=view.migration, round=number, base=base))
        events += _round(view, spec, number, data)
    return events


def _round(view: MigrationView, spec: MigrationSpec, number: int, data: DatasetReady) -> list[Event]:
    of = _shards(data.rows["test"], spec.marking.shard_rows)
    turn = turn_of(view, spec, number, of)
    if turn is None:
        return []
    candidate, outcome = turn.candidate, turn.outcome
    if outcome.verdict == "waiting":
        if outcome.repeat:
            return _ask_again(view, spec, candidate, outcome, of)
        local = shards_marked(view, candidate.key, "test", spec.awaited)
        ahead = prefix_length(local) + shards_ahead(spec.marking, outcome)
        return _ask(view, data, candidate, "test", range(min(of, ahead)))
    if outcome.verdict == "passed" and spec.gate.serving is not None:
        measured = view.measured(number, candidate.base)
        if measured is None:
            return [_measure(view, spec, number, candidate, data)]
    shared = {
        "migration": view.migration,
        "round": number,
        "marks": outcome.marks,
        "gate": spec.gate.model_dump(mode="json"),
        "rows": outcome.rows,
        "sure_after": outcome.sure_after,
        "note": outcome.note,
    }
    if len(spec.bases) > 1:
        shared |= {"base": candidate.base, "bases": turn.told(), "note": turn.note(spec.bases)}
    if outcome.verdict == "passed":
        return [EvalPassed(**shared, verdict="passed", candidate=candidate)]
    return [EvalFailed(**shared, verdict=outcome.verdict, failures=outcome.failures)]


def _measure(
    view: MigrationView, spec: MigrationSpec, number: int, candidate: Candidate, data: DatasetReady
) -> ServingRequested:
    """Have the adapter measured as it is served; the marks are sure by now, so it is asked once."""
    serving = spec.gate.serving
    assert serving is not None
    return ServingRequested(
        migration=view.migration,
        round=number,
        candidate=candidate,
        rows=data.splits["test"],
        requests=serving.requests,
        concurrency=serving.concurrency,
        max_tokens=spec.generation.max_tokens,
        temperature=spec.generation.temperature,
    )


def _ask_again(
    view: MigrationView, spec: MigrationSpec, candidate: Candidate, outcome: Outcome, of: int
) -> list[Event]:
    """Repeats of marks: one shard first, to learn how noisy the judge is, then as far ahead as a verdict takes."""
    done = outcome.seen[-1].shard + 1 if outcome.seen else 0
    ahead = shards_ahead(spec.marking, outcome) if done else 1
    events: list[Event] = []
    for shard, answered in sorted(view.generated(candidate.key, "test").items()):
        if shard >= min(of, done + ahead) or answered.responses is None:
            continue
        for name in outcome.noisy:
            events.append(
                MarksRequested(
                    **answered.place(), evaluator=name, repeat=outcome.repeat, responses=answered.responses
                )
            )
    return events


def shards_ahead(marking: Marking, outcome: Outcome) -> int:
    """How many shards beyond the marked ones to ask for: as many as a verdict seems to take, at most two waves.

    One wave before anything is marked: some of it is answered while the rest is judged, and a clear case wastes
    little. Near the end only what is missing, since what is asked for beyond a verdict is paid in vain.
    """
    if not outcome.seen:
        return marking.wave_shards
    if math.isinf(outcome.more):
        return 2 * marking.wave_shards
    return max(1, min(2 * marking.wave_shards, math.ceil(outcome.more / marking.shard_rows)))


def _confirmation(view: MigrationView, spec: MigrationSpec, now: datetime) -> list[Event]:
    """After a pass: one look at the holdout, the baselines' marks and the promotion; then the end."""
    passed = view.passed
    if passed is None:
        return []
    data = view.dataset(passed.round)
    assert data is not None
    size = spec.marking.shard_rows
    holdout = data.rows.get("holdout", 0)
    events: list[Event] = []
    waiting = False
    if holdout:
        of = _shards(holdout, size)
        events += _ask(view, data, passed.candidate, "holdout", range(of))
        waiting = not _complete(view, spec, passed.candidate, "holdout", range(of), now)
    base = passed.candidate.base
    if base:  # the first one's was asked for at the start; of the others only the winner's is of interest
        untrained = _ask_untrained(view, data, base)
        events += untrained
        waiting = waiting or any(event.id not in view.events for event in untrained)
    for candidate in (Candidate(kind="base", base=base), SERVICE, NEAREST):
        # Only what the split has: a shard beyond it is none that we asked for, and need never be answered.
        asked = [shard for shard in view.asked(candidate.key, "test") if shard < _shards(data.rows["test"], size)]
        waiting = waiting or not _complete(view, spec, candidate, "test", asked, now)
    promoted = spec.promotion == "manual" or passed.round in {e.round for e in view.of_type(AdapterPromoted)}
    late = not view.paused and _hours(view, now) >= spec.budgets.hours
    if promoted and (late or not waiting):
        shards = shards_marked(view, passed.candidate.key, "holdout", spec.awaited)
        scored = [s for group in shards.values() for s in group]
        alpha = 1 - spec.gate.confidence
        events.append(
            MigrationCompleted(
                migration=view.migration,
                round=passed.round,
                reason=f"round {passed.round} passed its gate"
                + ("; not all marks of the holdout and of those it is compared with came in time" if waiting else ""),
                marks=passed.marks,
                holdout=marks_with_intervals(rows_of(shards), ranges_of(scored), alpha),
            )
        )
    return events


def _complete(
    view: MigrationView,
    spec: MigrationSpec,
    candidate: Candidate,
    split: MarkedSplit,
    shards: Iterable[int],
    now: datetime,
) -> bool:
    """Whether every mark of these shards that can still come is there.

    An advisory evaluator is waited for only as long as a required one may stay silent.
    """
    lost = _lost(view)
    patience = timedelta(seconds=spec.silence_s)
    asked, generated = view.asked(candidate.key, split), view.generated(candidate.key, split)
    for shard in shards:
        answered = generated.get(shard)
        if answered is None:
            if shard in asked and asked[shard].id in lost:
                continue
            return False
        for choice in spec.evaluators:
            given_up = choice.role == "advisory" and now - answered.at > patience
            if shard in view.scored(candidate.key, split, choice.name) or answered.id in lost or given_up:
                continue
            return False
    return True


def _lost(view: MigrationView) -> set[str]:
    """Ids of events whose work went to the dead letters or was refused: it never comes.

    An evaluator that the spec does not name, or of work that is not an evaluator's, has nothing to say of it.
    """
    named = {f"evaluator-{choice.name}" for choice in view.spec.evaluators} if view.spec is not None else set()
    lost = {refusal.job for refusal in view.refusals}
    for failure in view.failures:
        to_mark = isinstance(view.events.get(failure.job), ResponsesGenerated | MarksRequested)
        if not failure.consumer.startswith("evaluator-") or (failure.consumer in named and to_mark):
            lost.add(failure.job)
    return lost


def _hours(view: MigrationView, now: datetime) -> float:
    """Hours since the submission."""
    assert view.request is not None
    return (now - view.request.at).total_seconds() / 3600


def _stop(view: MigrationView, spec: MigrationSpec, now: datetime) -> MigrationStopped | None:
    """A named rule that ends the migration now, if one does."""

    def stopped(stop: Stop) -> MigrationStopped:
        last = view.rounds[-1] if view.rounds else None
        return MigrationStopped(migration=view.migration, rule=stop.rule, reason=stop.reason, round=last)

    for number in view.rounds:
        if isinstance(view.decision(number), EvalFailed) and view.dataset(number + 1) is None:
            step = after_failure(view, number)
            if isinstance(step, Stop):
                return stopped(step)
    if view.passed is None and view.refusals:
        refusal = view.refusals[0]
        reason = f"the {refusal.what} budget of {refusal.limit:g} is used up ({refusal.spent:g} spent or reserved)"
        return stopped(Stop("budget", reason))
    if (failure := _fatal(view, spec)) is not None:
        return stopped(Stop("error", failure))
    if view.paused:  # a clock that runs on would end what an operator only halted
        return None
    hours = _hours(view, now)
    if hours >= spec.budgets.hours:
        unserved = f"; round {view.passed.round} passed and was not served" if view.passed is not None else ""
        reason = f"{hours:.1f} hours have gone by, {spec.budgets.hours:g} were allowed{unserved}"
        return stopped(Stop("hours", reason))
    silent = _silent(view, spec, now)
    return stopped(Stop("silent_evaluator", silent)) if silent else None


def _fatal(view: MigrationView, spec: MigrationSpec) -> str | None:
    """A dead letter that this migration cannot go on without, as a sentence."""
    for failure in view.failures:
        event = view.events.get(failure.job)
        # Garbage that names this migration stops nobody, nor does an operator's command that cannot be carried out.
        # And marks asked for once more are none that a verdict cannot do without.
        if event is None or isinstance(event, Command | MarksRequested):
            continue
        candidate = getattr(event, "candidate", None)
        evaluator = failure.consumer.removeprefix("evaluator-")
        if failure.consumer.startswith("evaluator-") and evaluator not in spec.awaited:
            continue
        if isinstance(candidate, Candidate) and not view.undecided(candidate, getattr(event, "split", "test")):
            continue
        baseline = isinstance(candidate, Candidate) and candidate.kind != "adapter"
        needed_for_parity = spec.gate.parity is not None and candidate == SERVICE
        if baseline and not needed_for_parity:
            continue
        if view.passed is not None and getattr(event, "split", None) == "holdout":
            continue
        place = trained_or_answered(failure, event)
        if place is not None and (view.decision(place[0]) or _another_can_win(view, spec, place[0])):
            continue
        return (
            f"{failure.consumer} gave up on {failure.subject} after {failure.attempts} tries: {failure.error} "
            f"(llamaduo dlq show {failure.dead_letter[:12]})"
        )
    return None


def _another_can_win(view: MigrationView, spec: MigrationSpec, number: int) -> bool:
    """Whether a round goes on without the base models whose training or answers were given up."""
    return len(spec.bases) > 1 and len(lost_bases(view, spec, number)) < len(spec.bases)


def _silent(view: MigrationView, spec: MigrationSpec, now: datetime) -> str | None:
    """An evaluator that decides and has marked nothing for too long though an answered shard waits, as a sentence."""
    lost = _lost(view)
    busy = {
        name: max((e.at for e in view.of_type(EvalScored) if e.evaluator == name), default=None)
        for name in spec.awaited
    }
    limit = timedelta(seconds=spec.silence_s)
    resumed = max((e.at for e in view.of_type(ResumeRequested)), default=datetime.min.replace(tzinfo=UTC))
    rounds = [n for n in view.rounds if view.decision(n) is None]
    every = [Candidate(kind="adapter", round=n, base=base) for n in rounds for base in range(len(spec.bases))]
    candidates: list[tuple[str, MarkedSplit]] = [(candidate.key, "test") for candidate in every]
    if view.passed is not None:
        base = Candidate(kind="base", base=view.passed.candidate.base)
        candidates += [(view.passed.candidate.key, "holdout"), (base.key, "test"), (SERVICE.key, "test")]
        candidates.append((NEAREST.key, "test"))
    for key, split in candidates:
        for shard, generated in view.generated(key, split).items():
            if generated.skipped or generated.id in lost:
                continue
            for name in spec.awaited:
                since = max(generated.at, resumed, busy[name] or resumed)
                if now - since >= limit and shard not in view.scored(key, split, name):
                    return (
                        f"evaluator {name!r} has not marked shard {shard} of {key} for "
                        f"{spec.silence_s:g} s: is it running?"
                    )
    for asked in view.of_type(MarksRequested):
        since = max(asked.at, resumed, busy.get(asked.evaluator) or resumed)
        if asked.id in lost or view.decision(asked.candidate.round or 0) is not None or now - since < limit:
            continue
        marked = view.scored(asked.candidate.key, asked.split, asked.evaluator).get(asked.shard, [])
        if not any(scored.repeat == asked.repeat for scored in marked):
            return (
                f"evaluator {asked.evaluator!r} has not marked shard {asked.shard} of {asked.candidate.key} again "
                f"for {spec.silence_s:g} s: is it running?"
            )
    return None
