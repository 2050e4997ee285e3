"""Synthesis: what the calls show, waves, faults of the teacher, starting again; merging and references."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaduo.datasets import Message, Row, dataset_digest, dump_rows, load_rows, load_shard, make_row
from llamaduo.errors import BudgetExhausted
from llamaduo.event_parts import CallCounts, FailingRow, Split, WorkSpan
from llamaduo.migrations.filters import FILTERS
from llamaduo.migrations.planned_rows import planned_calls
from llamaduo.migrations.spec import Budgets, Synthesis
from services.synthesizer.asking import (
    Pair,
    PairCheck,
    PairChecks,
    Pairs,
    TeacherAnswer,
    TeacherPrompt,
    joined_spans,
    total_counts,
)
from services.synthesizer.fake_teacher import FakeTeacher
from services.synthesizer.merging import merge
from services.synthesizer.prompting import synthesis_prompt
from services.synthesizer.references import reference_prompts, reference_rows
from services.synthesizer.seeding import SEEDS_A_CALL, SeedPlan, Seeds, seed_pool
from services.synthesizer.self_check import kept_by
from services.synthesizer.synthesis import BARREN_WAVES, LARGEST_WAVE, NewRows, next_wave, synthesize
from tests.unit.synthesizer_rows import record, row, rows, some_splits, spec, text

MIGRATION = "m" * 24
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def failures_of(splits: dict[Split, list[Row]], number: int = 8) -> list[FailingRow]:
    """Failing rows whose reasons quote the test row, as a careless judge would."""
    return [
        FailingRow(
            row=one.id,
            mark=0.1,
            reasons=[f"The reply names another kind than expected in {one.user_text!r} ({one.answer})."],
        )
        for one in splits["test"][:number]
    ]


def honest(prompt: TeacherPrompt) -> TeacherAnswer:
    """Ten fresh pairs, by the prompt's seed alone."""
    chance = random.Random(prompt.seed)
    return TeacherAnswer(
        pairs=[Pair(prompt=text(chance), answer=record(chance)) for _ in range(10)],
        counts=CallCounts(made=1, input_tokens=100, output_tokens=50),
        work=WorkSpan(kind="service_llm", began=BEGAN, ended=BEGAN + timedelta(seconds=1)),
    )


def faulty(splits: dict[Split, list[Row]]) -> Callable[[TeacherPrompt], TeacherAnswer]:
    """Some calls fail, some give copies of test and train rows, malformed answers or the last call's pairs again."""

    def answer(prompt: TeacherPrompt) -> TeacherAnswer:
        chance = random.Random(prompt.seed)
        kind = prompt.seed % 5
        if kind == 0:
            return TeacherAnswer(error="refused: content", counts=CallCounts(made=1, failed=1))
        good = honest(prompt).pairs
        if kind == 1:
            held = splits["test"] + splits["holdout"] + splits["validation"] + splits["train"]
            copies = [Pair(prompt=one.user_text.upper(), answer=record(chance)) for one in held]
            return TeacherAnswer(pairs=[*chance.sample(copies, 8), *good[:4]])
        if kind == 2:
            return TeacherAnswer(pairs=[Pair(prompt=one.prompt, answer="no JSON") for one in good] + good[:2])
        return TeacherAnswer(pairs=good + good[:3])

    return answer


async def run(
    splits: dict[Split, list[Row]],
    teacher: FakeTeacher,
    round_number: int = 1,
    failures: list[FailingRow] | None = None,
    **synthesis: object,
) -> NewRows:
    return await synthesize(
        splits=splits,
        failures=failures_of(splits) if failures is None else failures,
        spec=spec(**synthesis),
        migration=MIGRATION,
        round_number=round_number,
        teacher=teacher,
    )


async def test_a_round_gives_the_rows_asked_for_with_lineage() -> None:
    splits = some_splits()
    teacher = FakeTeacher(honest)
    new = await run(splits, teacher, rows_per_round=45)
    assert len(new.rows) == 45
    assert new.problem is None
    assert (new.calls_asked, new.calls_failed) == (5, 0), "45 rows by tens, a little over-asked"
    assert new.counts == CallCounts(made=5, input_tokens=500, output_tokens=250)
    assert new.work == [WorkSpan(kind="service_llm", began=BEGAN, ended=BEGAN + timedelta(seconds=1))]
    assert list(new.removed) == list(FILTERS), "the report explains each"
    assert {name: number for name, number in new.removed.items() if number} == {"surplus": 5}
    own = {one.id for one in splits["train"]}
    for one in new.rows:
        assert one.source == "generated"
        assert [message.role for message in one.messages] == ["system", "user", "assistant"]
        assert one.messages[0].content == "Answer."
        assert one.lineage is not None
        assert set(one.lineage.seeds) <= own
        assert (one.lineage.round, one.lineage.generator) == (1, "openai:teacher-model")
    assert load_rows(dump_rows(new.rows)) == new.rows


async def test_faults_of_the_teacher_cost_rows_but_let_nothing_bad_through() -> None:
    splits = some_splits()
    new = await run(splits, FakeTeacher(faulty(splits)), rows_per_round=120)
    assert len(new.rows) == 120
    assert new.removed["near_copy_held"] > 0
    assert new.removed["near_copy_train"] + new.removed["duplicate"] > 0
    assert new.removed["malformed"] > 0
    assert new.calls_failed > 0
    assert new.errors == ["refused: content"]
    held = {one.user_text.lower() for name in ("validation", "test", "holdout") for one in splits[name]}
    assert not held & {one.user_text.lower() for one in new.rows}
    assert len({one.user_text.lower() for one in [*splits["train"], *new.rows]}) == 140


async def test_no_text_of_a_test_row_is_in_any_prompt() -> None:
    splits = some_splits()
    for strategy in ("targeted", "uniform"):
        teacher = FakeTeacher(faulty(splits))
        await run(splits, teacher, rows_per_round=200, uniform_share=0.2, strategy=strategy)
        shown = "\n".join(message.content for prompt in teacher.asked for message in prompt.messages)
        said = (shown + shown.replace("\\", "")).lower()
        ours = "\n".join(f"{one.user_text}\n{one.answer}" for one in splits["train"]).lower()
        for one in splits["test"]:
            for private in (one.user_text.lower(), one.answer.lower()):
                windows = {private[at : at + 20] for at in range(len(private) - 19)}
                assert not any(window in said for window in windows if window not in ours)
        assert ("names another kind than expected" in shown) == (strategy == "targeted")


def checking(splits: dict[Split, list[Row]]) -> Callable[[TeacherPrompt], TeacherAnswer]:
    """`faulty`, and when asked to check: drops each second pair, answers in part, or not at all."""

    def answer(prompt: TeacherPrompt) -> TeacherAnswer:
        if prompt.output is not PairChecks:
            return faulty(splits)(prompt)
        if prompt.seed % 4 == 0:
            return TeacherAnswer(error="refused: content", counts=CallCounts(made=1, failed=1))
        pairs = [line for line in prompt.messages[1].content.splitlines() if line.startswith('{"number"')]
        checks = [PairCheck(number=one, keep=one % 2 == 0) for one in range(1, len(pairs) + 1)]
        return TeacherAnswer(checks=checks[: 3 if prompt.seed % 4 == 1 else None], counts=CallCounts(made=1))

    return answer


async def test_pairs_that_the_teacher_drops_on_a_second_look_are_counted_and_made_up_for() -> None:
    splits = some_splits()
    teacher = FakeTeacher(checking(splits))
    new = await run(splits, teacher, rows_per_round=80, self_check=True)
    checks = [prompt for prompt in teacher.asked if prompt.output is PairChecks]
    assert len(new.rows) == 80
    assert new.removed["self_check"] > 20
    assert new.calls_asked == len(teacher.asked) - len(checks) >= len(checks) > 8
    assert new.errors == ["refused: content"]
    assert new.counts.made == sum(checking(splits)(prompt).counts.made for prompt in teacher.asked)
    held = {one.user_text.lower() for name in ("validation", "test", "holdout") for one in splits[name]}
    shown = "\n".join(prompt.messages[1].content for prompt in checks).lower()
    assert not any(one in shown for one in held)
    listed = [json.loads(line) for line in checks[0].messages[1].content.splitlines() if line.startswith('{"number"')]
    assert [one["number"] for one in listed] == list(range(1, len(listed) + 1))
    assert {one.user_text for one in new.rows} & {one["prompt"] for one in listed}


@pytest.mark.parametrize(
    ("checks", "left"),
    [
        ([], "abc"),
        ([PairCheck(number=2, keep=False), PairCheck(number=2, keep=True), PairCheck(number=9, keep=False)], "ac"),
        ([PairCheck(number=number, keep=False) for number in (0, 1, 2, 3)], ""),
    ],
)
def test_a_pair_without_a_check_is_kept(checks: list[PairCheck], left: str) -> None:
    pairs = [Pair(prompt=name, answer="yes") for name in "abc"]
    assert "".join(pair.prompt for pair in kept_by(pairs, checks)) == left


@settings(max_examples=10, deadline=None)
@given(broken=st.integers(0, 24), seed=st.integers(0, 1000), checks=st.booleans())
async def test_started_again_over_the_same_ledger_it_ends_the_same(broken: int, seed: int, checks: bool) -> None:
    """The ledger keeps what was answered before the teacher broke; the second run must ask exactly the same."""
    splits = some_splits(seed)
    whole_teacher = FakeTeacher(checking(splits))
    whole = await run(splits, whole_teacher, rows_per_round=60, self_check=checks)
    ledger: dict[str, TeacherAnswer] = {}
    bought: Counter[str] = Counter()

    def through_ledger(prompt: TeacherPrompt) -> TeacherAnswer:
        key = repr(prompt)
        if key not in ledger:
            if len(ledger) >= broken:
                raise BudgetExhausted("calls", broken, broken)
            bought[key] += 1
            ledger[key] = checking(splits)(prompt)
        return ledger[key]

    with suppress(BudgetExhausted):
        await run(splits, FakeTeacher(through_ledger), rows_per_round=60, self_check=checks)
    broken = 10_000
    again_teacher = FakeTeacher(through_ledger)
    shuffled = {name: list(reversed(members)) for name, members in splits.items()}
    again = await run(shuffled, again_teacher, failures=failures_of(splits), rows_per_round=60, self_check=checks)
    assert [repr(prompt) for prompt in again_teacher.asked] == [repr(one) for one in whole_teacher.asked]
    assert again == whole
    assert set(bought.values()) == {1}


async def test_another_round_and_another_migration_ask_something_else() -> None:
    splits = some_splits()
    first, second = FakeTeacher(honest), FakeTeacher(honest)
    await run(splits, first, round_number=1, rows_per_round=30)
    await run(splits, second, round_number=2, rows_per_round=30)
    assert not {repr(prompt.messages) for prompt in first.asked} & {repr(prompt.messages) for prompt in second.asked}


async def test_a_teacher_that_gives_nothing_usable_ends_after_two_waves_with_a_reason() -> None:
    splits = some_splits()
    refusing = FakeTeacher(lambda prompt: TeacherAnswer(error="refused: key"))
    new = await run(splits, refusing, rows_per_round=40)
    assert new.rows == []
    assert new.calls_asked == len(refusing.asked) == BARREN_WAVES * 5
    assert new.problem is not None
    assert "nothing usable in 10 calls" in new.problem
    assert "10 calls without an answer: refused: key" in new.problem

    copying = FakeTeacher(
        lambda prompt: TeacherAnswer(pairs=[Pair(prompt=splits["test"][0].user_text, answer="{}")] * 3)
    )
    new = await run(splits, copying, rows_per_round=40)
    assert new.problem is not None
    assert "malformed 30" in new.problem


async def test_calls_are_capped() -> None:
    one_good_pair = FakeTeacher(
        lambda prompt: TeacherAnswer(pairs=honest(prompt).pairs[:1], counts=CallCounts(made=1))
    )
    new = await run(some_splits(), one_good_pair, rows_per_round=100, max_calls_per_round=13)
    assert new.calls_asked == 13
    assert len(new.rows) == 13


@given(
    wanted=st.integers(1, 5000),
    a_call=st.integers(1, 50),
    most=st.integers(1, 500),
    yields=st.lists(st.integers(0, 60), max_size=40),
)
def test_waves_are_bounded_gapless_and_end(wanted: int, a_call: int, most: int, yields: list[int]) -> None:
    asked = kept = barren = 0
    synthesis = Synthesis(rows_per_round=wanted, pairs_per_call=a_call, max_calls_per_round=most)
    for good in [*yields, 0, 0]:
        wave = next_wave(synthesis, wanted, asked, kept, barren)
        if not wave:
            break
        assert wave.start == asked
        assert 1 <= len(wave) <= min(LARGEST_WAVE, most - asked)
        asked, kept, barren = wave.stop, kept + good, 0 if good else barren + 1
    assert not next_wave(synthesis, wanted, asked, kept, barren) or kept < wanted
    assert asked <= most
    assert not next_wave(synthesis, wanted, asked, kept, BARREN_WAVES)


async def test_double_asks_for_as_many_rows_as_train_has() -> None:
    splits = some_splits(train=20)
    new = await run(splits, FakeTeacher(honest), rows_per_round=70, rows_rule="double")
    assert len(new.rows) == 20
    splits["train"] = merge(splits["train"], [*new.rows, *rows(50, 77)])
    assert (
        len((await run(splits, FakeTeacher(honest), round_number=2, rows_per_round=70, rows_rule="double")).rows)
        == 70
    )


@pytest.mark.parametrize(
    ("synthesis", "train", "expected"),
    [
        ({"rows_per_round": 150}, 30, [(150, 180, 17, 0), (150, 330, 17, 0)]),
        ({"rows_per_round": 100, "rows_rule": "double"}, 30, [(30, 60, 4, 0), (60, 120, 7, 0)]),
        ({"rows_per_round": 50, "rows_rule": "double", "self_check": True}, 40, [(40, 80, 5, 5), (50, 130, 6, 6)]),
        ({"rows_per_round": 900, "max_calls_per_round": 7}, 30, [(70, 100, 7, 0), (70, 170, 7, 0)]),
    ],
)
async def test_rows_and_calls_are_known_beforehand(
    synthesis: dict[str, Any], train: int, expected: list[tuple[int, ...]]
) -> None:
    asked = spec(**synthesis).model_copy(update={"budgets": Budgets(rounds=3)})
    planned = planned_calls(asked, train)
    assert [(one.new_rows, one.train_rows, one.calls, one.check_calls) for one in planned] == expected
    assert [one.round for one in planned] == [1, 2]
    teacher = FakeTeacher(honest)
    new = await run(some_splits(train=train), teacher, **synthesis)
    assert (len(new.rows), new.calls_asked) == (planned[0].new_rows, planned[0].calls)
    assert len(teacher.asked) == planned[0].calls + planned[0].check_calls


def plan(
    splits: dict[Split, list[Row]],
    *,
    share: float = 0.5,
    failures: list[FailingRow] | None = None,
    pairs: int = 10,
) -> SeedPlan:
    return SeedPlan(
        MIGRATION,
        1,
        splits["train"],
        splits["test"],
        failures_of(splits) if failures is None else failures,
        "targeted",
        share,
        pairs,
    )


def unlabelled(splits: dict[Split, list[Row]]) -> dict[Split, list[Row]]:
    """The same prompts with answers of free text."""
    return {
        name: [row(one.user_text, f"Dear customer, {one.user_text[::-1]}") for one in members]
        for name, members in splits.items()
    }


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("labels", [True, False])
def test_the_uniform_share_of_calls_is_kept_at_every_length(share: float, labels: bool) -> None:
    splits = some_splits() if labels else unlabelled(some_splits())
    seeds = plan(splits, share=share, failures=failures_of(splits, 20))
    uniform = 0
    for call in range(40):
        uniform += not seeds.seeds(call).aimed_at
        assert uniform == int((call + 1) * share)


def test_uniform_calls_use_every_train_row_equally_often() -> None:
    splits = unlabelled(some_splits(train=20))
    seeds = plan(splits, failures=[])
    leads = Counter(seeds.seeds(call).rows[0].id for call in range(40))
    assert set(leads.values()) == {2}
    assert len(leads) == 20
    for call in range(40):
        chosen = [one.id for one in seeds.seeds(call).rows]
        assert len(set(chosen)) == SEEDS_A_CALL


def test_targeted_calls_show_train_rows_near_to_the_failing_row() -> None:
    splits = unlabelled(some_splits(train=30))
    target = splits["test"][0]
    words = target.user_text.split()
    chance = random.Random(1)
    near = [row(" ".join([*words[:7], *text(chance, 5).split()]), target.answer) for _ in range(2 * SEEDS_A_CALL)]
    splits["train"] += near
    seeds = plan(splits, share=0, failures=[FailingRow(row=target.id, mark=0)])
    for call in range(10):
        chosen = seeds.seeds(call)
        assert {one.id for one in chosen.rows} <= {one.id for one in near}
        assert [failure.row for failure in chosen.aimed_at] == [target.id]
    assert len({tuple(one.id for one in seeds.seeds(call).rows) for call in range(10)}) > 3


def test_unknown_failing_rows_leave_all_calls_uniform() -> None:
    seeds = plan(some_splits(), failures=[FailingRow(row="gone", mark=0)])
    assert not any(seeds.seeds(call).aimed_at for call in range(10))


def test_examples_of_a_call_share_one_system_prompt_and_are_the_teams_own() -> None:
    chance = random.Random(5)
    own = [row(text(chance), "yes", system=system) for system in ("one", "two") for _ in range(10)]
    generated = [row(text(chance), "yes", system="one", source="generated") for _ in range(30)]
    talk = make_row(
        [
            Message(role="user", content="Hello"),
            Message(role="assistant", content="Hi"),
            Message(role="user", content="Bye"),
            Message(role="assistant", content="Bye"),
        ]
    )
    splits = some_splits()
    splits["train"] = [*own, *generated, talk]
    seeds = plan(splits)
    for call in range(60):
        chosen = seeds.seeds(call)
        assert {one.messages[0].content for one in chosen.rows} == {chosen.system}
        assert {one.id for one in chosen.rows} <= {one.id for one in own}
    assert seed_pool([talk]) == [talk]
    assert len(seed_pool(generated)) == 30


def test_a_prompt_says_all_a_teacher_needs() -> None:
    splits = some_splits()
    seeds = Seeds(splits["train"][:2], "Be $brief & {exact}.")
    prompt = synthesis_prompt(
        migration=MIGRATION, round_number=1, call=4, task=" Sort $mail. ", seeds=seeds, pairs=7, test={}
    )
    assert [message.role for message in prompt.messages] == ["system", "user"]
    asked = prompt.messages[1].content
    assert "Write exactly 7 new pairs" in asked
    assert "Sort $mail." in asked
    assert "Be $brief & {exact}." in asked
    assert "weak" not in asked
    lines = [json.loads(line) for line in asked.splitlines() if line.startswith('{"prompt"')]
    assert lines == [{"prompt": one.user_text, "answer": one.answer} for one in seeds.rows]
    assert prompt.output is Pairs
    assert set(Pairs.model_json_schema()["properties"]) == {"pairs"}


def test_an_answer_written_as_an_object_is_taken_as_its_json() -> None:
    pair = Pair.model_validate({"prompt": "a", "answer": {"kind": "refund", "é": None}})
    assert pair.answer == '{"kind": "refund", "é": null}'


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(0, 30))
def test_merging_is_idempotent_keeps_every_own_row_and_knows_no_order(seed: int, cut: int) -> None:
    chance = random.Random(seed)
    own, new = rows(10, seed), [one.model_copy(update={"source": "generated"}) for one in rows(30, seed + 5000)]
    new += [one.model_copy(update={"source": "generated"}) for one in own[:3]]
    once = merge(own, new)
    assert merge(once, new) == once
    assert merge(merge(own, new[:cut]), new) == once
    assert merge(chance.sample(own, len(own)), chance.sample(new, len(new))) == once
    assert once[: len(own)] == sorted(own, key=lambda one: one.id)
    assert len(once) == 40
    assert dataset_digest(merge(own, new)) == dataset_digest(once)


def test_references_are_asked_as_they_stand_and_kept_in_order() -> None:
    shard = rows(3, 1)
    prompts = reference_prompts(shard, migration=MIGRATION, samples=2, max_tokens=64, temperature=0.5)
    assert [prompt.messages for prompt in prompts] == [one.prompt for one in shard for _ in range(2)]
    assert all(prompt.output is None and prompt.max_tokens == 64 for prompt in prompts)
    assert len({(prompt.seed, prompt.sample, prompt.job) for prompt in prompts}) == 6
    answers = [TeacherAnswer(text=f"answer {number}") for number in range(5)] + [TeacherAnswer(error="refused")]
    made = reference_rows(shard, answers, samples=2)
    assert load_shard(dump_rows(made)) == made
    assert [one.row for one in made] == [one.id for one in shard]
    assert made[1].answers == ["answer 2", "answer 3"]
    assert made[2].answers == ["answer 4", None]
    assert made[2].errors == ["refused"]
    assert made[0].reference == shard[0].answer
    assert made[0].messages == shard[0].prompt
    with pytest.raises(ValueError, match="5 answers to 3 rows"):
        reference_rows(shard, answers[:5], samples=2)


def test_counts_add_up_and_overlapping_work_is_joined() -> None:
    def worked(start: int, end: int) -> TeacherAnswer:
        span = WorkSpan(
            kind="service_llm", began=BEGAN + timedelta(seconds=start), ended=BEGAN + timedelta(seconds=end)
        )
        return TeacherAnswer(text="", counts=CallCounts(made=1, money=0.5), work=span)

    answers = [worked(5, 6), worked(0, 3), worked(1, 2), worked(3, 4), TeacherAnswer(error="refused")]
    assert total_counts(answers) == CallCounts(made=4, money=2.0)
    joined = [((span.began - BEGAN).seconds, (span.ended - BEGAN).seconds) for span in joined_spans(answers)]
    assert joined == [(0, 4), (5, 6)]
