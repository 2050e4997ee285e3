"""Which rows serve as examples in each synthesis call, and which cases it asks for.

A call is a pure function of migration, round and call index. Targeted calls show validation rows that the
round's adapter has not learnt; where there are none, train rows near to failing test rows. A test row itself is
only measured against and never leaves this module. A share of the calls stays uniform. What aiming is worth is
measured, and not yet certain: `python -m benchmarks banking77`, results in `benchmarks/RESULTS.md`.
Examples are rows of the team's own where there are any: rows written from written rows drift.

Where answers are labels, every call asks for them as often as the train rows have them, whether it is
targeted or not: more rows of a weak label make others weak, by taking the frequency they had. Aiming then
chooses the examples within a label, and shows what the failing row may have been mistaken for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from rapidfuzz import fuzz, process

from llamaduo.datasets import Row
from llamaduo.event_parts import FailingRow
from llamaduo.identity import canonical_json, content_digest, identity
from services.synthesizer.balanced_order import BalancedOrder
from services.synthesizer.labels import label_form
from services.synthesizer.near_copies import words_of

SEEDS_A_CALL = 3
NEAREST = 2 * SEEDS_A_CALL
PAIRS_AN_EXAMPLE = 2  # with labels
MOST_EXAMPLES = 10
NEAREST_OF_LABEL = 3
CONTRASTS_A_CALL = 3
TOLD_ANSWER_WORDS = 5  # shorter answers have no length worth asking for
UNSPACED = 12  # letters a word from which a text has no words to count


@dataclass(frozen=True)
class Ask:
    """What one new pair should be like: the label of its answer ("" for none), and its lengths in words."""

    label: str
    length: str


@dataclass(frozen=True)
class Seeds:
    """Examples of one call, all asked alike (see `asked_as`), and the failing rows they were aimed at.

    `contrasts` are examples of other labels that look like the failing rows; `asks` has one item a pair.
    """

    rows: list[Row]
    system: str
    aimed_at: list[FailingRow] = field(default_factory=list)
    contrasts: list[Row] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)

    @property
    def response_format(self) -> dict[str, Any] | None:
        """The form in which all examples ask for their answers."""
        return self.rows[0].response_format

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The tools that all examples offer."""
        return self.rows[0].tools


Kind = Literal["uniform", "targeted"]


@dataclass
class SeedPlan:
    """What seeds are chosen from, for one round of one migration; `pairs` are asked for in a call.

    `weak` are the validation rows that were not learnt, the worst first.
    """

    migration: str
    round: int
    train: Sequence[Row]
    test: Sequence[Row]
    failures: Sequence[FailingRow]
    strategy: Kind
    uniform_share: float
    pairs: int = 10
    weak: Sequence[Row] = ()
    _pool: list[Row] = field(init=False)
    _weak: list[Row] = field(init=False)
    _label_of: Callable[[Row], str] | None = field(init=False, default=None)
    _targets: list[tuple[Row, FailingRow]] = field(init=False)
    _failing: dict[str, list[tuple[Row, FailingRow]]] = field(init=False, default_factory=dict)
    _weak_of: dict[str, list[Row]] = field(init=False, default_factory=dict)
    _alike: dict[str, list[Row]] = field(init=False, default_factory=dict)
    _orders: dict[tuple[str, ...], BalancedOrder] = field(init=False, default_factory=dict)
    _near: dict[str, list[Row]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._pool = seed_pool(self.train)
        # Conversations are no examples where single questions can be.
        single = all(map(is_single, self._pool))
        self._weak = [row for row in self.weak if not row.follows_a_tool and (is_single(row) or not single)]
        by_id = {row.id: row for row in self.test}
        known = [(by_id[failure.row], failure) for failure in self.failures if failure.row in by_id]
        self._targets = sorted(known, key=lambda pair: self._rank("target", pair[0].id))
        if form := label_form([row.answer for row in self._pool]):
            labels = {row.id: form.label_of(row.answer) for row in self._pool}
            self._label_of = lambda row: labels[row.id]
            for row in self._pool:
                self._alike.setdefault(labels[row.id], []).append(row)
            for target, failure in self._targets:
                self._failing.setdefault(form.label_of(target.answer), []).append((target, failure))
            for row in self._weak:
                self._weak_of.setdefault(form.label_of(row.answer), []).append(row)

    def seeds(self, call: int) -> Seeds:
        """The examples and cases of call `call` (0-based)."""
        aims = self.strategy == "targeted" and (self._targets or self._weak)
        share = self.uniform_share if aims else 1.0
        uniform_before = int(call * share)
        uniform = int((call + 1) * share) > uniform_before
        turn = uniform_before if uniform else call - uniform_before
        if self._label_of is not None:
            return self._by_label(call, turn, "uniform" if uniform else "targeted", self._label_of)
        return self._uniform(call, turn) if uniform else self._targeted(call, turn)

    def _by_label(self, call: int, turn: int, kind: Kind, label_of: Callable[[Row], str]) -> Seeds:
        """A few labels in their turn, each with an example: for a targeted call a weak row, or one near to a failing
        row.
        """
        lead = self._order(kind, "systems", rows=self._pool, kind_of=asked_as).at(turn)
        asked = asked_as(lead.row)
        rows = [row for row in self._pool if asked_as(row) == asked]
        # One more of each label: by chance alone a small sample has too few of some.
        once = {label_of(row): row for row in rows}
        order = self._order(kind, "labels", asked, rows=[*rows, *once.values()], kind_of=label_of)
        number = min(math.ceil(self.pairs / PAIRS_AN_EXAMPLE), MOST_EXAMPLES)
        leads = [order.at(lead.before * number + place) for place in range(number)]
        examples: list[Row] = []
        contrasts: list[Row] = []
        aimed_at: list[FailingRow] = []
        for row, before in leads:
            label = label_of(row)
            aims = kind == "targeted"
            failing = self._failing.get(label, []) if aims else []
            weak = [one for one in self._weak_of.get(label, []) if asked_as(one) == asked] if aims else []
            if not (failing or weak):
                examples.append(row)
                continue
            target = weak[before % len(weak)] if weak else failing[before % len(failing)][0]
            if weak:
                examples.append(target)
            else:
                alike = [one for one in self._alike[label] if asked_as(one) == asked]
                near = _nearest(target, alike, NEAREST_OF_LABEL)
                examples.append(min(near, key=partial(self._rank_near, call, target)))
            if failing:
                aimed_at.append(failing[before % len(failing)][1])
            if len(contrasts) < CONTRASTS_A_CALL:
                contrasts += _nearest(target, [one for one in rows if label_of(one) != label], 1)
        asks = []
        for pair in range(self.pairs):
            row, before = leads[pair % number]
            alike = self._alike[label_of(row)]
            length = alike[(before * PAIRS_AN_EXAMPLE + pair // number) % len(alike)]
            asks.append(Ask(label_of(row), _length(length.user_text)))
        shown = list({row.id: row for row in examples}.values())
        return Seeds(
            shown,
            system_of(lead.row),
            aimed_at,
            [row for row in {row.id: row for row in contrasts}.values() if row not in shown],
            asks,
        )

    def _uniform(self, call: int, turn: int) -> Seeds:
        """Each row leads equally often: once through all of them in a shuffled order, then shuffled anew."""
        lead = self._order("leads", rows=self._pool, kind_of=_one_kind).at(turn).row
        others = [row for row in self._pool if row.id != lead.id and asked_as(row) == asked_as(lead)]
        others.sort(key=lambda row: self._rank("call", call, row.id))
        return Seeds([lead, *others[: SEEDS_A_CALL - 1]], system_of(lead), asks=self._lengths(call))

    def _targeted(self, call: int, turn: int) -> Seeds:
        """A weak row with train rows near to it; without any, train rows near to a failing row."""
        if not self._weak:
            target, failure = self._targets[turn % len(self._targets)]
            near = self._nearest(target)
            chosen = sorted(near, key=lambda row: self._rank("call", call, row.id))[:SEEDS_A_CALL]
            return Seeds(chosen, system_of(near[0]), [failure], asks=self._lengths(call))
        lead = self._weak[turn % len(self._weak)]
        near = [row for row in self._nearest(lead) if asked_as(row) == asked_as(lead)]
        near.sort(key=lambda row: self._rank("call", call, row.id))
        failures = sorted(self._targets, key=lambda pair: (-_likeness(pair[0], lead), pair[0].id))
        return Seeds(
            [lead, *near[: SEEDS_A_CALL - 1]],
            system_of(lead),
            [failure for _, failure in failures[:1]],
            asks=self._lengths(call),
        )

    def _lengths(self, call: int) -> list[Ask]:
        """Lengths of the team's own rows, each equally often."""
        order = self._order("lengths", rows=self._pool, kind_of=_one_kind)
        rows = [order.at(call * self.pairs + pair).row for pair in range(self.pairs)]
        return [Ask("", _length(row.user_text, row.answer)) for row in rows]

    def _nearest(self, target: Row) -> list[Row]:
        """Train rows like the target in question and answer, nearest first; all asked as the first one is."""
        if target.id not in self._near:
            ranked = sorted(self._pool, key=lambda row: (-_likeness(row, target), row.id))
            self._near[target.id] = [row for row in ranked if asked_as(row) == asked_as(ranked[0])][:NEAREST]
        return self._near[target.id]

    def _rank_near(self, call: int, target: Row, row: Row) -> str:
        return self._rank("call", call, target.id, row.id)

    def _order(self, *name: str, rows: Sequence[Row], kind_of: Callable[[Row], str]) -> BalancedOrder:
        if name not in self._orders:
            self._orders[name] = BalancedOrder(rows, kind_of, partial(self._rank, content_digest(list(name))))
        return self._orders[name]

    def _rank(self, *fields: str | int) -> str:
        return identity("seeding", self.migration, self.round, *fields)


def seed_pool(train: Sequence[Row]) -> list[Row]:
    """Rows that may be examples: the team's own before generated ones, single questions before
    conversations. None that goes on after a tool has answered: a new row is a question and its answer.
    """
    own = [row for row in train if row.source == "coverage"] or list(train)
    pool = [row for row in own if not row.follows_a_tool]
    return sorted([row for row in pool if is_single(row)] or pool, key=lambda row: row.id)


def is_single(row: Row) -> bool:
    """Whether it is one question, not a conversation."""
    return sum(message.role == "user" for message in row.messages) == 1


def system_of(row: Row) -> str:
    """The row's system prompt; "" where it has none."""
    return "\n\n".join(message.content for message in row.messages if message.role == "system")


def asked_as(row: Row) -> str:
    """How an answer was asked for, beside the question: by the system prompt, in which form, with which tools."""
    beside = [canonical_json(given) for given in (row.response_format, row.tools) if given is not None]
    return "\n".join([system_of(row), *beside])


def _one_kind(_row: Row) -> str:
    return ""


def _nearest(target: Row, rows: Sequence[Row], number: int) -> list[Row]:
    """The rows whose user's text is most like the target's."""
    texts = [row.user_text for row in rows]
    found = process.extract(target.user_text, texts, scorer=fuzz.token_sort_ratio, limit=number)
    return [rows[index] for _, _, index in found]


def _likeness(row: Row, target: Row) -> float:
    return fuzz.token_set_ratio(row.user_text, target.user_text) + fuzz.ratio(row.answer, target.answer)


def _length(prompt: str, answer: str = "") -> str:
    """How long a row is, in the words of a prompt."""
    told = f"a prompt of about {_counted(prompt)}"
    return f"{told}, an answer of about {_counted(answer)}" if len(words_of(answer)) > TOLD_ANSWER_WORDS else told


def _counted(text: str) -> str:
    words = len(words_of(text))
    if words * UNSPACED < len(text):
        return f"{len(text)} characters"
    return "one word" if words == 1 else f"{words} words"
