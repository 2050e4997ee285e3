"""The parts of the Banking77 benchmark that decide what it says: its teacher, its arms and its figures."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.banking77.arms import Situation, added_rows
from benchmarks.banking77.compare import compared, rows_needed
from benchmarks.banking77.recorded_teacher import RecordedTeacher, examples
from llamaduo.datasets import Row
from tests.unit.synthesizer_rows import row, text

LABELS = ("card lost", "top up failed", "age limit")
ARMS = (
    "uniform",
    "weak",
    "weak, half uniform",
    "any validation row",
    "train rows near failures",
    "labels by errors",
    "surplus, wrong ones kept",
    "no examples",
)


def some(number: int, seed: int) -> list[Row]:
    chance = random.Random(seed)
    return [row(text(chance), LABELS[place % 3]) for place in range(number)]


def situation() -> Situation:
    pool, validation = some(300, 1), some(30, 2)
    wrong = {one.id for one in validation[::2]}

    async def answer(rows: Sequence[Row]) -> dict[str, str]:
        return {one.id: one.answer if len(one.user_text) % 2 else "x" for one in rows}

    given = {one.id: "x" if one.id in wrong else one.answer for one in validation}
    return Situation(some(15, 3), pool, validation, sorted(wrong), given, 7, answer)


@pytest.mark.parametrize("arm", ARMS)
async def test_each_arm_adds_rows_of_the_pool_once_and_the_same_ones_again(arm: str) -> None:
    known = situation()
    added = await added_rows(arm, known, 21)
    assert len(added) == 21 == len({one.user_text for one in added})
    assert {(one.user_text, one.answer) for one in added} <= {(one.user_text, one.answer) for one in known.pool}
    assert added == await added_rows(arm, situation(), 21)


async def test_arms_differ_in_what_they_add() -> None:
    chosen = [tuple(sorted(one.user_text for one in await added_rows(arm, situation(), 60))) for arm in ARMS]
    assert len(set(chosen)) == len(ARMS)


async def test_labels_stay_as_common_as_they_are_but_where_the_arm_is_to_change_them() -> None:
    for arm in ARMS:
        counts = Counter(one.answer for one in await added_rows(arm, situation(), 60))
        assert arm == "labels by errors" or all(abs(count - 20) <= 3 for count in counts.values()), arm


async def test_of_a_surplus_wrongly_answered_rows_come_first() -> None:
    added = await added_rows("surplus, wrong ones kept", situation(), 21)
    given = await situation().answer(added)
    assert sum(given[one.id] != one.answer for one in added) > 17


def test_the_teacher_gives_rows_like_the_example_and_each_once() -> None:
    pool = [row(f"{words} number {n}", LABELS[0]) for words in ("I lost it", "It was stolen") for n in range(40)]
    teacher = RecordedTeacher(pool, seed=1)
    given = [teacher.row_like(LABELS[0], "They have stolen it") for _ in range(30)]
    assert sum("stolen" in one.user_text for one in given if one) > 26
    rest = [teacher.row_like(LABELS[0], None) for _ in range(51)]
    assert rest[-1] is None and None not in rest[:-1]
    assert len({one.id for one in [*given, *rest] if one}) == 80
    assert teacher.row_like("no label", None) is None


def test_examples_are_read_from_a_prompt_but_not_what_they_are_mistaken_for() -> None:
    line = '{"prompt": "%s", "answer": "a"}'
    prompt = (
        f"## Examples\n\n{line % 'one'}\n{line % 'two'}\n\nEasily mistaken for some of these:\n\n{line % 'three'}\n"
    )
    assert examples(prompt) == {"a": ["one", "two"]}


def test_rows_needed_are_read_off_the_curve() -> None:
    curve = [(0, 0.5), (40, 0.6), (80, 0.58), (120, 0.7)]
    assert rows_needed(curve, 0.4) == 0
    assert rows_needed(curve, 0.55) == pytest.approx(20)
    assert rows_needed(curve, 0.65) == pytest.approx(100)
    assert rows_needed(curve, 0.9) == 120


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_accuracy_never_needs_fewer_rows(marks: list[float], one: float, other: float) -> None:
    curve = [(10 * place, mark) for place, mark in enumerate(marks)]
    low, high = sorted((one, other))
    assert 0 <= rows_needed(curve, low) <= rows_needed(curve, high) <= curve[-1][0]


def test_the_ratio_and_its_interval_follow_the_runs() -> None:
    def result(arm: str, asked: int, seed: int, share: float) -> dict[str, Any]:
        chance = random.Random(seed)
        level = [chance.random() for _ in range(400)]
        return {"arm": arm, "asked": asked, "seed": seed, "right": [int(one < share) for one in level]}

    shares = {("first", 0): 0.5, ("uniform", 40): 0.6, ("uniform", 80): 0.7, ("weak", 40): 0.65, ("other", 40): 0.55}
    every = [result(arm, n, seed, share) for (arm, n), share in shares.items() for seed in range(3)]
    found = compared(every, 40, target="weak")
    assert found["rows_ratio_targeted_to_uniform"] == pytest.approx(40 / 60, abs=0.1)
    low, high = found["rows_ratio_95"]
    assert low <= found["rows_ratio_targeted_to_uniform"] <= high < 1
    by_arm = {(one["arm"], one["added"]): one for one in found["arms"]}
    assert by_arm["weak", 40]["difference_95"][0] > 0 > by_arm["other", 40]["difference_95"][1]
    assert by_arm["other", 40]["rows_ratio"] > 1 > by_arm["weak", 40]["rows_ratio"]
    assert "difference" not in by_arm["uniform", 40] and found["seeds"] == 3
