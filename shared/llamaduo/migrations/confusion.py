"""Which labels a round's answers gave for which: a bounded table of what evaluators that compare labels counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from llamaduo.event_parts import LabelCount, MarkedSplit
from llamaduo.events import EvalScored
from llamaduo.label_spelling import normalised
from llamaduo.migrations.fold import MigrationView

MOST_ROWS = 15
MOST_COLUMNS = 12
MOST_INVENTED = 10

Pairs = Mapping[tuple[str, str], int]
"""(label of the reference, label of the answer), both without mere spelling -> answers"""


class Part(BaseModel):
    """A part of the report."""

    model_config = ConfigDict(frozen=True)


class ConfusionRow(Part):
    """What was answered where the reference has one label. `right + wrong + other + invented` is `answers`."""

    expected: str
    answers: int
    right: int
    wrong: list[int] = Field(description="answers of each label in `given`; 0 where that is the right one")
    other: int = Field(description="answers of labels that have no column")
    invented: int = Field(description="answers that are no known label")


class ConfusionPart(Part):
    """One evaluator's labels in the last round that has any, on the test split; an answer counts once."""

    evaluator: str
    round: int
    answers: int = Field(description="answers whose labels were compared")
    right: int
    invented: int = Field(description="answers that are no known label")
    labels: int = Field(description="known labels: those of marked references and of copied train answers")
    given: list[str] = Field(description="columns: labels given by mistake, the most frequent mistake first")
    rows: list[ConfusionRow] = Field(description="labels that were missed at least once, the most missed first")
    left_out: int = Field(description="labels missed at least once that have no row")
    inventions: list[tuple[str, int]] = Field(
        description="most frequent answers that are no known label; empty: none"
    )


def confusions_of(view: MigrationView) -> list[ConfusionPart]:
    """A table for each evaluator that compared labels; empty where none did."""
    parts = []
    for evaluator in view.evaluators_seen:
        for number in reversed(view.rounds):
            counts = list(_counts(view, f"round-{number}", "test", evaluator))
            if counts:
                parts.append(confusion(evaluator, number, counts, _known(view, evaluator)))
                break
    return parts


def confusion(evaluator: str, number: int, counts: Iterable[LabelCount], known: Iterable[str]) -> ConfusionPart:
    """The table of these counts; `known` are labels that may be given beside those that references have."""
    counts = list(counts)
    names = _names([*(one.expected for one in counts), *known], [one.given for one in counts])
    known_keys = {normalised(label) for label in known} | {normalised(one.expected) for one in counts}
    pairs: Counter[tuple[str, str]] = Counter()
    for one in counts:
        pairs[normalised(one.expected), normalised(one.given)] += one.answers
    right = sum(answers for (expected, given), answers in pairs.items() if expected == given)
    missed, mistaken, inventions = Counter[str](), Counter[str](), Counter[str]()
    for (expected, given), answers in pairs.items():
        if expected != given:
            missed[expected] += answers
            (mistaken if given in known_keys else inventions)[given] += answers
    columns, rows = (_most(counter, most) for counter, most in ((mistaken, MOST_COLUMNS), (missed, MOST_ROWS)))
    return ConfusionPart(
        evaluator=evaluator,
        round=number,
        answers=sum(pairs.values()),
        right=right,
        invented=sum(inventions.values()),
        labels=len(known_keys),
        given=[names[key] for key in columns],
        rows=[_row(key, names[key], pairs, columns, set(inventions)) for key in rows],
        left_out=len(missed) - len(rows),
        inventions=[(names[key], inventions[key]) for key in _most(inventions, MOST_INVENTED)],
    )


def _row(key: str, name: str, pairs: Pairs, columns: list[str], invented: set[str]) -> ConfusionRow:
    mine = {given: answers for (expected, given), answers in pairs.items() if expected == key}
    right = mine.pop(key, 0)
    made_up = sum(answers for given, answers in mine.items() if given in invented)
    wrong = [mine.get(column, 0) for column in columns]
    return ConfusionRow(
        expected=name,
        answers=right + sum(mine.values()),
        right=right,
        wrong=wrong,
        other=sum(mine.values()) - made_up - sum(wrong),
        invented=made_up,
    )


def _most(counter: Counter[str], most: int) -> list[str]:
    return sorted(counter, key=lambda key: (-counter[key], key))[:most]


def _names(*spellings: list[str]) -> dict[str, str]:
    """A label without its spelling -> how it is spelled most often, by references before answers."""
    names: dict[str, str] = {}
    for group in spellings:
        for label, _ in sorted(Counter(group).items(), key=lambda item: (-item[1], item[0])):
            names.setdefault(normalised(label), label)
    return names


def _known(view: MigrationView, evaluator: str) -> set[str]:
    """Labels that the task is known to have: of all marked references, and of train answers that were copied."""
    events = [event for event in view.of_type(EvalScored) if event.evaluator == evaluator]
    known = {one.expected for event in events for one in event.labels}
    return known | {one.given for e in events if e.candidate.kind == "nearest" for one in e.labels if one.given}


def _counts(view: MigrationView, candidate: str, split: MarkedSplit, evaluator: str) -> Iterable[LabelCount]:
    for events in view.scored(candidate, split, evaluator).values():
        first = min(events, key=lambda event: event.repeat)
        yield from first.labels
