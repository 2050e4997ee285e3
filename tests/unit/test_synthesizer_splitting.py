"""Splits: every row at most once, near copies together, quotas, independence of the order of the file."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz import fuzz, utils

from llamaduo.datasets import Row
from llamaduo.errors import UserInputError
from llamaduo.migrations.quotas import plan_quotas
from llamaduo.migrations.spec import FEWEST, Splits
from services.synthesizer.alike_strings import AlikeStrings
from services.synthesizer.near_copies import comparable, near_copy_groups, shared_frame
from services.synthesizer.splitting import split_coverage
from tests.unit.synthesizer_rows import row, rows, text, word

LIMIT = 90.0


def variations(user: str, number: int, chance: random.Random) -> list[str]:
    """Near copies of a text: other case, order, signs, or a word more."""
    made = []
    for index in range(number):
        words = user.rstrip(".").split()
        if index % 4 == 0:
            words[index // 4 % len(words)] = words[index // 4 % len(words)].upper()
        elif index % 4 == 1:
            chance.shuffle(words)
        elif index % 4 == 2:
            words = [one + chance.choice(",;!") for one in words]
        else:
            words.append("pe")
        made.append(" ".join(words))
    return made


def repetitive(groups: list[int], seed: int) -> list[Row]:
    """One group of near copies for each number, of so many rows."""
    chance = random.Random(seed)
    made = []
    for size in groups:
        user = text(chance)
        made += [row(one) for one in [user, *variations(user, size - 1, chance)]]
    return made


def alike(one: Row, other: Row) -> bool:
    """An independent reading of "near copy"."""
    return any(
        measure(one.user_text, other.user_text, processor=utils.default_process) >= LIMIT
        for measure in (fuzz.ratio, fuzz.token_sort_ratio)
    )


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=30, max_size=50), seed=st.integers(0, 10_000))
def test_near_copies_stay_together_and_order_of_the_file_is_nothing(sizes: list[int], seed: int) -> None:
    data = repetitive(sizes, seed)
    shuffled = random.Random(seed).sample(data, len(data))
    done = split_coverage(data, Splits(), seed, LIMIT)
    again = split_coverage([*shuffled, *shuffled[:5]], Splits(), seed, LIMIT)
    assert done == again

    where = {one.id: split for split, members in done.rows.items() for one in members}
    assert sum(len(members) for members in done.rows.values()) == len(where), "a row is in two splits"
    assert set(where) == {one.id for one in data}, "train takes what is left by default"
    for one, other in combinations({one.id: one for one in data}.values(), 2):
        assert where[one.id] == where[other.id] or not alike(one, other)


@settings(max_examples=25, deadline=None)
@given(
    train=st.integers(4, 30),
    validation=st.integers(2, 10),
    test=st.integers(8, 30),
    holdout=st.integers(1, 10),
    extra=st.integers(0, 20),
    seed=st.integers(0, 10_000),
)
def test_quotas_are_exact_and_the_rest_is_in_no_split(
    train: int, validation: int, test: int, holdout: int, extra: int, seed: int
) -> None:
    asked = Splits(train=train, validation=validation, test=test, holdout=holdout)
    data = rows(train + validation + test + holdout + extra, seed)
    done = split_coverage(data, asked, seed, LIMIT)
    assert {split: len(members) for split, members in done.rows.items()} == asked.model_dump()
    assert len(done.unused) == extra
    assert any("in no split" in note for note in done.notes) == (extra > 0)


def test_groups_that_do_not_fit_a_quota_come_as_near_as_whole_groups_can() -> None:
    data = repetitive([2] * 40, seed=3)
    done = split_coverage(data, Splits(train=20, validation=6, test=9, holdout=4), 0, LIMIT)
    assert len(done.rows["test"]) == 8
    assert any("test has 8 of 9" in note for note in done.notes)
    assert (done.groups, done.largest_group) == (40, 2)

    # Taking groups in turn while they fit would miss the quota for some hashes (4 + 4 leaves one row open).
    mixed = repetitive([3, 3, 3, 5, 2, 2, 4, 4, 4, 3, 3], seed=4)
    for seed in range(20):
        found = split_coverage(mixed, Splits(train=10, validation=7, test=9, holdout=4), seed, LIMIT)
        assert len(found.rows["test"]) == 9, seed


def test_test_and_holdout_are_in_an_order_of_chance_and_frozen() -> None:
    data = rows(200, 5)
    done = split_coverage(data, Splits(), 1, LIMIT)
    order = [one.id for one in done.rows["test"]]
    assert order != sorted(order)
    assert [one.id for one in done.rows["train"]] == sorted(one.id for one in done.rows["train"])
    other_seed = split_coverage(data, Splits(), 2, LIMIT)
    shared = {one.id for one in other_seed.rows["test"]} & set(order)
    assert 20 < len(shared) < 80, "another seed draws another sample"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (14, {"train": None, "validation": 2, "test": 8, "holdout": 0}),
        (19, {"train": None, "validation": 2, "test": 9, "holdout": 0}),
        (20, {"train": None, "validation": 2, "test": 10, "holdout": 2}),
        (300, {"train": None, "validation": 30, "test": 150, "holdout": 30}),
        (5000, {"train": None, "validation": 500, "test": 200, "holdout": 500}),
    ],
)
def test_default_quotas(found: int, expected: dict[str, int | None]) -> None:
    quotas, notes = plan_quotas(found, Splits())
    assert quotas == expected
    assert any("no holdout" in note for note in notes) == (expected["holdout"] == 0)


@given(
    found=st.integers(0, 400),
    asked=st.builds(
        Splits,
        train=st.integers(0, 200),
        validation=st.integers(0, 60),
        test=st.integers(0, 250),
        holdout=st.integers(0, 60),
    ),
)
def test_quotas_fit_the_dataset_or_are_refused(found: int, asked: Splits) -> None:
    given_rows = asked.model_dump()
    too_small = any(0 < given_rows[split] < minimum for split, minimum in FEWEST.items())
    needed = sum(given_rows[split] or minimum for split, minimum in FEWEST.items())
    if too_small or needed > found:
        with pytest.raises(UserInputError):
            plan_quotas(found, asked)
        return
    quotas, _ = plan_quotas(found, asked)
    for split, quota in quotas.items():
        assert quota == given_rows[split] if given_rows[split] else True
        assert quota is None or quota >= FEWEST[split]
    assert sum(quota or FEWEST["train"] for quota in quotas.values() if quota != 0) <= found


def test_errors_name_field_found_and_needed_rows() -> None:
    with pytest.raises(UserInputError) as few:
        split_coverage(rows(13, 1), Splits(), 0, LIMIT)
    assert few.value.field == "coverage"
    assert "13 rows found, 14 needed: train 4 + validation 2 + test 8" in few.value.message

    with pytest.raises(UserInputError) as many:
        split_coverage(rows(100, 1), Splits(train=30, test=80), 0, LIMIT)
    assert many.value.field == "splits"
    assert "100 rows found, 112 needed" in many.value.message

    with pytest.raises(UserInputError) as tiny:
        split_coverage(rows(100, 1), Splits(test=7), 0, LIMIT)
    assert tiny.value.field == "splits.test"

    data = repetitive([60, *[1] * 5], seed=2)
    distinct = len({one.id for one in data})
    with pytest.raises(UserInputError) as copies:
        split_coverage(data, Splits(), 0, LIMIT)
    assert copies.value.field == "coverage"
    assert f"{distinct - 5} of {distinct} rows are near copies" in copies.value.message


def test_an_instruction_that_all_prompts_repeat_makes_them_no_copies() -> None:
    chance = random.Random(8)
    instruction = " ".join(text(chance, 30).split())
    data = [row(f"{instruction} Message: {text(chance, 4)} Now answer in one word.") for _ in range(60)]
    done = split_coverage(data, Splits(), 0, LIMIT)
    assert done.groups == 60
    assert alike(data[0], data[1]), "the measure itself takes them for copies"


def test_a_text_that_lies_whole_inside_another_goes_with_it() -> None:
    chance = random.Random(9)
    inner = text(chance, 9)
    texts = [inner, f"{text(chance, 20)} {inner.upper()} {text(chance, 20)}", text(chance, 9)]
    frame = shared_frame(texts)
    groups = near_copy_groups([comparable(one, frame) for one in texts], LIMIT)
    assert sorted(map(sorted, groups)) == [[0, 1], [2]]


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), max_size=12), st.sampled_from([60.0, 90.0, 100.0]))
def test_grouping_by_length_windows_misses_nothing(texts: list[str], limit: float) -> None:
    """Against comparing all pairs: texts of one group are connected, and no pair across groups is alike."""
    ready = [comparable(one, shared_frame(texts)) for one in texts]
    group_of = {index: number for number, group in enumerate(near_copy_groups(ready, limit)) for index in group}
    assert sorted(group_of) == list(range(len(texts)))
    for one, other in combinations(range(len(texts)), 2):
        near = max(
            fuzz.ratio(ready[one].written, ready[other].written),
            fuzz.ratio(ready[one].sorted, ready[other].sorted),
        )
        assert near < limit or group_of[one] == group_of[other]


@settings(max_examples=40, deadline=None)
@given(number=st.integers(20, 500), changed=st.floats(0, 0.06), seed=st.integers(0, 10_000))
def test_the_quick_check_before_long_comparisons_misses_no_edited_copy(
    number: int, changed: float, seed: int
) -> None:
    chance = random.Random(seed)
    words = text(chance, number).split()
    edited = list(words)
    for _ in range(int(number * changed)):
        place = chance.randrange(len(edited))
        edited[place : place + 1] = chance.choice([[], [word(chance)], [edited[place], word(chance)]])
    known = AlikeStrings(LIMIT)
    for key in range(20):
        known.add(other := text(chance, number), len(other), key + 1)
    original, copy = " ".join(words), " ".join(edited)
    known.add(original, len(original), 0)
    assert (known.alike(copy, len(copy)) == [0]) == (fuzz.ratio(original, copy) >= LIMIT)
