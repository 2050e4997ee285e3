"""Labels and lengths of what is asked for: as the team's own rows have them, whatever failed."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamaduo.datasets import Row
from llamaduo.event_parts import FailingRow
from llamaduo.identity import identity
from services.synthesizer.balanced_order import BalancedOrder
from services.synthesizer.labels import LabelForm, label_form
from services.synthesizer.prompting import synthesis_prompt, variety
from services.synthesizer.seeding import CONTRASTS_A_CALL, MOST_EXAMPLES, SeedPlan, Seeds
from tests.unit.synthesizer_rows import row, text

MIGRATION = "m" * 24
COUNTS = {"card arrival": 24, "top up\nfailed": 12, "lost card": 6, "age limit": 6}


def labelled(counts: dict[str, int], seed: int = 1, system: str = "Answer.") -> list[Row]:
    """Rows whose texts begin with a word of their label, and are the longer the rarer the label is."""
    chance = random.Random(seed)
    return [
        row(f"{label.split()[0]} {text(chance, 4 + 40 // number)}", label, system=system)
        for label, number in counts.items()
        for _ in range(number)
    ]


def failing(rows: list[Row]) -> list[FailingRow]:
    return [FailingRow(row=one.id, mark=0, reasons=["It reads the case as another one."]) for one in rows]


def plan(train: list[Row], test: list[Row], *, share: float = 0.5, pairs: int = 10) -> SeedPlan:
    return SeedPlan(MIGRATION, 1, train, test, failing(test), "targeted", share, pairs)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("pairs", [1, 4, 10, 25])
def test_labels_are_asked_for_as_often_as_train_has_them_whatever_fails(share: float, pairs: int) -> None:
    train, weak = labelled(COUNTS), labelled({"lost card": 9}, 2)
    seeds = plan(train, weak, share=share, pairs=pairs)
    calls = 96
    asked = Counter(ask.label for call in range(calls) for ask in seeds.seeds(call).asks)
    assert asked.total() == calls * pairs
    for label, number in COUNTS.items():
        assert asked[label] / asked.total() == pytest.approx((number + 1) / (len(train) + len(COUNTS)), abs=0.02)


@pytest.mark.parametrize("labels", [True, False])
def test_lengths_are_asked_for_as_train_has_them(labels: bool) -> None:
    train = labelled(COUNTS)
    if not labels:
        train = [row(one.user_text, f"{one.answer} {one.user_text[::-1]}") for one in train]
    seeds = plan(train, [], share=1)
    asked = Counter(ask.length.split(",")[0] for call in range(48) for ask in seeds.seeds(call).asks)
    own = Counter(f"a prompt of about {len(one.user_text.split())} words" for one in train)
    assert asked.keys() == own.keys()
    for length, number in own.items():
        assert asked[length] / asked.total() == pytest.approx(number / len(train), abs=0.03)
    assert all((", an answer of about" in ask.length) != labels for ask in seeds.seeds(0).asks)


def test_aimed_calls_show_rows_of_the_label_near_to_the_failing_one_and_what_it_may_be_mistaken_for() -> None:
    chance = random.Random(4)
    shared = text(chance, 8)
    near = row(f"lost {shared} {text(chance, 3)}", "lost card")
    mistaken = row(f"card {shared} {text(chance, 3)}", "card arrival")
    train = [*labelled(COUNTS), near, mistaken]
    target = row(f"now {shared} {text(chance, 2)}", "lost card")
    seeds = plan(train, [target], share=0)
    aimed = [chosen for call in range(20) if (chosen := seeds.seeds(call)).aimed_at]
    assert 5 <= len(aimed) < 20, "only calls whose turn it is to ask for the label"
    assert any(near in chosen.rows for chosen in aimed)
    for chosen in aimed:
        assert mistaken in [*chosen.contrasts, *chosen.rows]
        assert len(chosen.contrasts) <= CONTRASTS_A_CALL
        assert target not in [*chosen.rows, *chosen.contrasts]
        assert {ask.label for ask in chosen.asks} == {one.answer for one in chosen.rows}


def test_each_label_asked_for_is_among_the_examples_and_systems_do_not_mix() -> None:
    train = [*labelled(COUNTS, system="one\ntwo"), *labelled({"yes": 8, "no": 8}, 3, system="")]
    seeds = plan(train, labelled({"yes": 3, "age limit": 3}, 5), pairs=50)
    systems: Counter[str] = Counter()
    for call in range(64):
        chosen = seeds.seeds(call)
        systems[chosen.system] += 1
        assert {one.answer for one in chosen.rows} == {ask.label for ask in chosen.asks}
        assert len(chosen.rows) <= MOST_EXAMPLES
        assert len({one.id for one in chosen.rows}) == len(chosen.rows)
        assert {"yes", "no"} >= {ask.label for ask in chosen.asks} or chosen.system
    assert systems["one\ntwo"] == 48


def test_calls_do_not_depend_on_the_order_of_the_rows() -> None:
    train, test = labelled(COUNTS), labelled({"lost card": 5}, 2)
    one, other = plan(train, test), plan(train[::-1], test[::-1])
    assert [one.seeds(call) for call in range(20)] == [other.seeds(call) for call in reversed(range(20))][::-1]


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), length=st.integers(1, 200))
def test_kinds_are_near_their_share_at_every_length(counts: list[int], length: int) -> None:
    rows = [row(f"{kind} {number}", str(kind)) for kind, count in enumerate(counts) for number in range(count)]
    order = BalancedOrder(rows, lambda one: one.answer, identity)
    placed = [order.at(position) for position in range(length)]
    seen = Counter(one.row.answer for one in placed)
    for kind, count in enumerate(counts):
        assert abs(seen[str(kind)] - length * count / len(rows)) < 2
        before = [one.before for one in placed if one.row.answer == str(kind)]
        assert before == list(range(len(before)))
    assert max(Counter(one.row.id for one in placed).values()) <= -(-length // len(rows))


@pytest.mark.parametrize(
    ("answers", "form"),
    [
        (["a", "b", "b", "a"] * 3, LabelForm()),
        (["a", "b"], None),
        (["a"] * 20, None),
        ([f"text {number}" for number in range(20)], None),
        (["a long answer " * 10, "b"] * 10, None),
        ([json.dumps({"kind": n % 2, "place": f"p{n}"}) for n in range(20)], LabelForm("kind")),
        ([json.dumps({"place": f"p{number}"}) for number in range(20)], None),
        ([json.dumps({"kind": ["a"], "rare": number % 2}) for number in range(20)], LabelForm("rare")),
        ([json.dumps({"few": n % 2, "more": n % 4, "name": f"p{n}"}) for n in range(20)], LabelForm("more")),
        ([*[json.dumps({"kind": "ab"[number % 2]}) for number in range(20)], "no JSON"], LabelForm()),
    ],
)
def test_where_the_labels_are(answers: list[str], form: LabelForm | None) -> None:
    assert label_form(answers) == form


def test_the_label_of_an_answer() -> None:
    form = LabelForm("kind")
    assert form.label_of('{"due":null,"place":"x","kind":"é"}') == '{"kind": "é"}'
    assert form.label_of('{"due":"a"}') == form.label_of("a") == ""
    assert LabelForm().label_of(" card arrival ") == "card arrival"


def test_the_prompt_lists_the_cases_and_shows_contrasts_apart() -> None:
    train = labelled(COUNTS)
    chosen = next(
        one
        for call in range(20)
        if (one := plan(train, labelled({"lost card": 3}, 2), share=0).seeds(call)).contrasts
    )
    asked = prompt_of(chosen)
    listed = [line for line in asked.splitlines() if line[:1].isdigit() and "answer with" in line]
    assert len(listed) == 10
    assert asked.index("Easily mistaken") > asked.index(json.dumps(chosen.rows[-1].user_text))
    assert variety().aimed in asked
    assert "Easily mistaken" not in prompt_of(Seeds(train[:2], ""))
    assert "in this order" not in prompt_of(Seeds(train[:2], ""))


def prompt_of(seeds: Seeds) -> str:
    prompt = synthesis_prompt(migration=MIGRATION, round_number=1, call=1, task="", seeds=seeds, pairs=10, test={})
    return prompt.messages[1].content


def test_the_table_of_variety_is_whole() -> None:
    table = variety()
    assert len(table.writers) >= 12
    assert len(table.shapes) >= 8
    assert len(table.difficulties) >= 4
    drawn = {table.drawn(random.Random(seed), False) for seed in range(50)}
    assert len(drawn) == 50
