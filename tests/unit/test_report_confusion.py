"""Which labels were given for which, in the marks, in the events and in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaduo.artifacts import ObjectStoreArtifacts, put_bytes
from llamaduo.bus.work import Record
from llamaduo.datasets import dump_rows
from llamaduo.evaluating import LABELS_BYTES, label_counts, marking
from llamaduo.evaluators import Score
from llamaduo.event_parts import Candidate, LabelCount
from llamaduo.events import AnyEvent, EvalScored, MigrationRequested, ResponsesGenerated, encode_event
from llamaduo.migrations.confusion import MOST_COLUMNS, MOST_ROWS, confusion
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.report import build_report
from llamaduo.migrations.report_html import report_html
from services.judge import label_accuracy
from services.judge.catalogue import make
from tests.unit.judge_tasks import row, task
from tests.unit.synthetic_log import MIGRATION, at, candidate, complete_log


def counted(*triples: tuple[str, str, int]) -> list[LabelCount]:
    return [LabelCount(expected=expected, given=given, answers=answers) for expected, given, answers in triples]


def scored(of: Candidate, *triples: tuple[str, str, int], repeat: int = 0, shard: int = 0) -> AnyEvent:
    place: dict[str, Any] = {"migration": MIGRATION, "candidate": of, "split": "test", "shard": shard, "of": 2}
    return EvalScored(
        at=at(60), evaluator="label-accuracy", version="1", repeat=repeat, labels=counted(*triples), **place
    )


@pytest.mark.parametrize(
    ("reference", "answer", "options", "pair"),
    [
        ("card_arrival", '"Card arrival".', {}, ("card_arrival", "card_arrival")),
        ("card_arrival", "Refund_please.", {}, ("card_arrival", "Refund_please")),
        ("card_arrival", "Well, that depends: there are many.", {}, ("card_arrival", "")),
        ("card_arrival", "", {}, ("card_arrival", "")),
        ("Anything at all, in whole sentences!", "x", {}, None),
        ('{"team": "it"}', '{"team": "hr"}', {"field": "team"}, ("it", "hr")),
        ('{"team": "it"}', '{"dep": "hr"}', {"field": "team"}, ("it", "")),
        ('{"team": "it"}', "hr", {"field": "team"}, ("it", "")),
        ('{"dep": "it"}', '{"team": "hr"}', {"field": "team"}, None),
    ],
)
def test_labels_of_an_answer(reference: str, answer: str, options: Any, pair: tuple[str, str] | None) -> None:
    assert label_accuracy.labels_of(row("a", reference, answer), answer, options) == pair


async def test_label_accuracy_says_which_labels_it_compared() -> None:
    rows = [row("a", "x", "x", "y", None), row("b", "x", "Y", "y", "x y, z!")]
    scores = await make("label-accuracy", None).score(rows, task())
    assert isinstance(scores, list)
    assert label_counts(scores) == counted(("x", "y", 2), ("x", "", 1), ("x", "Y", 1), ("x", "x", 1))


async def test_an_evaluator_that_compares_no_labels_counts_none() -> None:
    scores = await make("exact-match", None).score([row("a", "x", "x")], task())
    assert isinstance(scores, list) and label_counts(scores) == []


def test_an_answer_counts_once_whatever_the_number_of_metrics() -> None:
    scores = [Score("a", metric, 1.0, labels=("x", "y")) for metric in ("one", "two")]
    assert label_counts(scores) == counted(("x", "y", 1))


def test_the_labels_of_a_large_shard_fit_beside_its_marks() -> None:
    scores = [Score(f"row-{n}", "m", 0.0, labels=(f'"{n}' * 40, "\\ä" * 40)) for n in range(4_000)]
    often = [Score(f"often-{n}", "m", 0.0, labels=("a", "b")) for n in range(3)]
    kept = label_counts([*scores, *often])
    assert kept[0] == LabelCount(expected="a", given="b", answers=3)
    event = scored(candidate("base")).model_copy(update={"labels": kept})
    assert 0.5 * LABELS_BYTES < len(Record(results=[encode_event(event).decode()]).model_dump_json()) < 90_000


def test_the_most_frequent_mistakes_come_first_and_inventions_have_one_column() -> None:
    counts = counted(
        ("b", "b", 5), ("b", "c", 1), ("a", "a", 2), ("a", "c", 4), ("a", "", 1), ("c", "z", 2), ("c", "A", 1)
    )
    part = confusion("label-accuracy", 3, counts, known=["d"])
    assert (part.round, part.answers, part.right, part.invented, part.labels) == (3, 16, 7, 3, 4)
    assert part.given == ["c", "a"]
    assert [(one.expected, one.right, one.wrong, one.other, one.invented) for one in part.rows] == [
        ("a", 2, [4, 0], 0, 1),
        ("c", 0, [0, 1], 0, 2),
        ("b", 5, [1, 0], 0, 0),
    ]
    assert part.inventions == [("z", 2), ("", 1)]


def test_the_table_is_bounded_and_adds_up() -> None:
    counts = counted(*((f"l{i}", f"l{(i + k) % 40}", 1 + i * k % 7) for i in range(40) for k in range(6)))
    part = confusion("label-accuracy", 0, counts, known=[])
    assert (len(part.rows), len(part.given), part.left_out) == (MOST_ROWS, MOST_COLUMNS, 40 - MOST_ROWS)
    assert part.answers == sum(one.answers for one in counts)
    assert any(one.other for one in part.rows)
    for one in part.rows:
        assert one.answers == one.right + sum(one.wrong) + one.other + one.invented
        assert one.answers == sum(count.answers for count in counts if count.expected == one.expected)
    missed = [one.answers - one.right for one in part.rows]
    assert missed == sorted(missed, reverse=True) and min(missed) > 0


def test_labels_are_shown_as_the_references_spell_them() -> None:
    part = confusion("e", 0, counted(("card_arrival", "Top-Up", 1), ("top_up", "CARD arrival", 2)), known=[])
    assert part.given == ["card_arrival", "top_up"]
    assert [one.expected for one in part.rows] == ["top_up", "card_arrival"]
    assert part.invented == 0


def test_the_report_has_the_last_round_with_labels_and_counts_no_repeats() -> None:
    log = [
        *complete_log(),
        scored(candidate("round-0"), ("a", "b", 9)),
        scored(candidate("round-1"), ("a", "a", 3), ("a", "n", 1)),
        scored(candidate("round-1"), ("a", "a", 3), ("a", "n", 1), repeat=1),
        scored(candidate("round-1"), ("b", "<b>x</b>", 2), shard=1),
        scored(Candidate(kind="nearest"), ("a", "n", 1)),
    ]
    report = build_report(fold(log), at(500))
    [part] = report.confusion
    assert (part.round, part.answers, part.right, part.invented) == (1, 6, 3, 2)
    assert part.given == ["n"]
    page = report_html(report)
    assert "Labels confused" in page and "3 of 6 answers" in page
    assert "<code>&lt;b&gt;x&lt;/b&gt;</code> (2)" in page and "<b>x</b>" not in page


def test_a_report_without_labels_has_no_such_section() -> None:
    report = build_report(fold(complete_log()), at(500))
    assert report.confusion == [] and "Labels confused" not in report_html(report)


class OneShard:
    """The work in hand of a judge, with one stored shard."""

    job = "job"

    def __init__(self, view: MigrationView, store: ObjectStoreArtifacts) -> None:
        self.bus, self._view, self._store = self, view, store

    async def view(self, migration: str) -> MigrationView:
        return self._view

    async def artifacts(self) -> ObjectStoreArtifacts:
        return self._store


async def test_what_a_judge_publishes_counts_its_labels(tmp_path: Path) -> None:
    store = ObjectStoreArtifacts(tmp_path.as_uri())
    ref = await put_bytes(
        store, dump_rows([row("a", "it", "IT", "hr"), row("b", "hr", "it")]), "application/x-ndjson"
    )
    spec = task(evaluators=["label-accuracy"], gate={"absolute": {"label-accuracy.accuracy": 0.5}}).spec
    requested = MigrationRequested(migration=MIGRATION, spec=spec.model_dump(mode="json"), coverage=ref)
    place: dict[str, Any] = {
        "migration": MIGRATION,
        "candidate": candidate("base"),
        "split": "test",
        "shard": 0,
        "of": 1,
    }
    answered = ResponsesGenerated(responses=ref, evaluators=["label-accuracy"], **place)
    work: Any = OneShard(fold([requested]), store)
    [event] = await marking(make("label-accuracy", None))(answered, work)
    assert isinstance(event, EvalScored)
    assert event.labels == counted(("hr", "it", 1), ("it", "hr", 1), ("it", "it", 1))
    assert len(encode_event(event)) < 2_000
