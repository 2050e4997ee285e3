"""Examples of targeted calls: validation rows that the round's adapter has not learnt, and never a test row."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from llamaduo.datasets import Message, Row, make_row
from llamaduo.event_parts import FailingRow
from services.synthesizer.asking import Pair, TeacherAnswer, TeacherPrompt
from services.synthesizer.prompting import synthesis_prompt
from services.synthesizer.seeding import SEEDS_A_CALL, SeedPlan
from services.synthesizer.synthesis import synthesize
from tests.unit.synthesizer_rows import row, spec, text

LABELS = ("arrival", "lost", "age limit")


def labelled(number: int, seed: int, **extra: Any) -> list[Row]:
    chance = random.Random(seed)
    return [row(text(chance), LABELS[place % len(LABELS)], **extra) for place in range(number)]


def free(number: int, seed: int) -> list[Row]:
    chance = random.Random(seed)
    return [row(text(chance), text(chance, 20)) for _ in range(number)]


def ids(rows: Iterable[Row]) -> set[str]:
    return {one.id for one in rows}


def failing(rows: list[Row]) -> list[FailingRow]:
    return [FailingRow(row=one.id, mark=0, reasons=["It reads the case as another one."]) for one in rows]


def plan(
    train: list[Row], test: list[Row], weak: list[Row], share: float = 0.0, strategy: Any = "targeted"
) -> SeedPlan:
    return SeedPlan("m", 1, train, test, failing(test), strategy, share, 6, weak)


def test_every_label_shows_its_weak_rows_in_turn_and_others_show_train_rows() -> None:
    train, weak = labelled(30, 1), [one for one in labelled(12, 2) if one.answer != "lost"]
    seeds = plan(train, [], weak)
    shown = Counter(one.id for call in range(24) for one in seeds.seeds(call).rows)
    by_label = {label: {one.id for one in weak if one.answer == label} for label in LABELS}
    assert all(shown[one.id] >= 2 for one in weak), "each, and again"
    lost = {one.id for one in train if one.answer == "lost"}
    assert shown.keys() == by_label["arrival"] | by_label["age limit"] | (shown.keys() & lost)
    assert len(shown.keys() & lost) > 5


def test_reasons_of_failing_test_rows_come_along_without_their_text() -> None:
    train, test, weak = labelled(30, 1), labelled(9, 3), labelled(9, 2)
    seeds = plan(train, test, weak)
    for call in range(12):
        chosen = seeds.seeds(call)
        assert chosen.aimed_at
        prompt = synthesis_prompt(
            migration="m",
            round_number=1,
            call=call,
            task="",
            seeds=chosen,
            pairs=6,
            test={one.id: one for one in test},
        )
        written = prompt.messages[-1].content
        assert "reads the case" in written
        assert not any(one.user_text in written for one in test)
        assert not {one.id for one in test} & {one.id for one in [*chosen.rows, *chosen.contrasts]}


def test_without_labels_a_weak_row_leads_and_near_train_rows_follow() -> None:
    train, test, weak = free(20, 1), free(5, 3), free(4, 2)
    seeds = plan(train, test, weak)
    for call in range(8):
        chosen = seeds.seeds(call)
        assert chosen.rows[0] == weak[call % 4]
        assert len(chosen.rows) == SEEDS_A_CALL and ids(chosen.rows[1:]) <= ids(train)
        assert len(chosen.aimed_at) == 1


@pytest.mark.parametrize("make", [labelled, free])
def test_weak_rows_alone_are_aimed_at_and_a_uniform_share_stays(make: Any) -> None:
    train, weak = make(30, 1), make(9, 2)
    half = plan(train, [], weak, share=0.5)
    aimed = [bool(ids(half.seeds(call).rows) & ids(weak)) for call in range(20)]
    assert sum(aimed) == 10
    uniform = plan(train, [], weak, strategy="uniform")
    assert not any(ids(uniform.seeds(call).rows) & ids(weak) for call in range(20))


def test_rows_that_are_asked_another_way_are_no_examples() -> None:
    train = labelled(30, 1)
    talk = make_row(
        [
            Message(role="system", content="Answer."),
            Message(role="user", content="Hello"),
            Message(role="assistant", content="Hi"),
            Message(role="user", content="Where is it?"),
            Message(role="assistant", content="arrival"),
        ]
    )
    seeds = plan(train, [], [talk, *labelled(3, 2, system="Answer in Dutch.")])
    for call in range(12):
        assert ids(seeds.seeds(call).rows) <= ids(train)


async def test_the_ids_of_weak_rows_find_their_rows_and_copies_of_them_are_kept_out() -> None:
    train, validation = labelled(30, 1), labelled(9, 2)

    class Teacher:
        def __init__(self) -> None:
            self.asked: list[TeacherPrompt] = []

        async def ask(self, prompts: list[TeacherPrompt]) -> list[TeacherAnswer]:
            self.asked += prompts
            copied = [Pair(prompt=one.user_text, answer=one.answer) for one in validation]
            chance = random.Random(1000 + len(self.asked))
            return [TeacherAnswer(pairs=[*copied, Pair(prompt=text(chance), answer="lost")]) for _ in prompts]

    teacher = Teacher()
    weak = [validation[4], validation[1]]
    new = await synthesize(
        splits={"train": train, "validation": validation, "test": [], "holdout": []},
        failures=[],
        spec=spec(rows_per_round=3, uniform_share=0),
        migration="m",
        round_number=1,
        teacher=teacher,
        weak=[*(one.id for one in weak), "gone"],
    )
    shown = " ".join(prompt.messages[-1].content for prompt in teacher.asked)
    assert [one.user_text in shown for one in validation] == [one in weak for one in validation]
    assert not {one.user_text for one in new.rows} & {one.user_text for one in validation}
    assert new.removed["near_copy_held"] >= len(validation)
    assert {seed for one in new.rows if one.lineage for seed in one.lineage.seeds} & {one.id for one in weak}
