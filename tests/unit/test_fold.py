"""The fold: a pure function of the events, whatever their order, however often they come."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from llamaduo.events import AnyEvent, EvalFailed, EvalPassed, MigrationCompleted, encode_event, parse_event
from llamaduo.migrations.fold import fold
from tests.simulated import learner, simulate

LOG = simulate(learner(0.4, 0.9))


def test_the_log_of_a_whole_migration_folds_to_its_end() -> None:
    view = fold(LOG)
    assert isinstance(view.ended, MigrationCompleted)
    assert isinstance(view.decision(0), EvalFailed) and isinstance(view.decision(1), EvalPassed)
    assert view.rounds == [0, 1] and view.stage == "completed"


@given(st.integers(1, len(LOG)))
@settings(max_examples=60, deadline=None)
def test_every_prefix_folds(length: int) -> None:
    view = fold(LOG[:length])
    assert view.stage and len(view.events) == length
    assert view.rounds == sorted(view.rounds)


@given(st.lists(st.integers(0, len(LOG) - 1), max_size=60), st.integers())
@settings(max_examples=60, deadline=None)
def test_repeats_and_another_order_change_nothing(repeats: list[int], seed: int) -> None:
    shuffled = [*LOG, *(LOG[i] for i in repeats)]
    random.Random(seed).shuffle(shuffled)
    one, other = fold(LOG), fold(shuffled)
    assert one == other
    assert (one.stage, one.rounds, one.alias, one.paused) == (other.stage, other.rounds, other.alias, other.paused)
    assert {n: one.decision(n) for n in one.rounds} == {n: other.decision(n) for n in other.rounds}
    assert one.scored("round-1", "test", "exact-match") == dict(
        sorted(other.scored("round-1", "test", "exact-match").items())
    )


def test_a_repeat_with_another_outcome_does_not_change_what_came_first() -> None:
    decided = next(e for e in LOG if isinstance(e, EvalFailed))
    lie = EvalPassed(
        migration="m-1", round=decided.round, verdict="passed", marks={}, gate={}, rows=0,
        candidate=next(e for e in LOG if isinstance(e, EvalPassed)).candidate,
    )  # fmt: skip
    assert lie.id == decided.id
    assert fold([*LOG, lie]) == fold(LOG)


def test_another_migrations_events_are_left_out() -> None:
    foreign = LOG[3].model_copy(update={"migration": "m-2"})
    assert fold([*LOG, foreign]) == fold(LOG)


@given(st.sampled_from(LOG))
@settings(deadline=None)
def test_events_survive_the_wire(event: AnyEvent) -> None:
    again = parse_event(encode_event(event))
    assert again == event and again.id == event.id


def test_unknown_fields_are_tolerated() -> None:
    body = encode_event(LOG[0]).replace(b'{"type"', b'{"from_the_future":{"a":1},"type"', 1)
    assert parse_event(body) == LOG[0]
