"""Which train rows serve as examples in each synthesis call.

A call is a pure function of migration, round and call index. Targeted calls show train rows near to a
failing test row; the test row itself is only measured against and never leaves this module. A share of the
calls stays uniform, because rows aimed only at what is weak unlearn the rest. Examples are rows of the
team's own where there are any: rows written from written rows drift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rapidfuzz import fuzz

from llamaduo.datasets import Row
from llamaduo.events import FailingRow
from llamaduo.identity import identity

SEEDS_A_CALL = 3
NEAREST = 2 * SEEDS_A_CALL


@dataclass(frozen=True)
class Seeds:
    """Examples of one call, all with one system prompt ("" for none) and one response format, and the failing row
    they were aimed at.
    """

    rows: list[Row]
    system: str
    aimed_at: FailingRow | None = None
    response_format: dict[str, Any] | None = None


@dataclass
class SeedPlan:
    """What seeds are chosen from, for one round of one migration."""

    migration: str
    round: int
    train: Sequence[Row]
    test: Sequence[Row]
    failures: Sequence[FailingRow]
    strategy: Literal["targeted", "uniform"]
    uniform_share: float
    _pool: list[Row] = field(init=False)
    _targets: list[tuple[Row, FailingRow]] = field(init=False)
    _near: dict[str, list[Row]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._pool = seed_pool(self.train)
        by_id = {row.id: row for row in self.test}
        known = [(by_id[failure.row], failure) for failure in self.failures if failure.row in by_id]
        self._targets = sorted(known, key=lambda pair: self._rank("target", pair[0].id))

    def seeds(self, call: int) -> Seeds:
        """The examples of call `call` (0-based)."""
        share = self.uniform_share if self.strategy == "targeted" and self._targets else 1.0
        uniform_before = int(call * share)
        if int((call + 1) * share) > uniform_before:
            return self._uniform(call, uniform_before)
        return self._targeted(call, call - uniform_before)

    def _uniform(self, call: int, turn: int) -> Seeds:
        """Each row leads equally often: once through all of them in a shuffled order, then shuffled anew."""
        epoch, place = divmod(turn, len(self._pool))
        lead = sorted(self._pool, key=lambda row: self._rank("epoch", epoch, row.id))[place]
        others = [row for row in self._pool if row.id != lead.id and _asked_alike(row, lead)]
        others.sort(key=lambda row: self._rank("call", call, row.id))
        return Seeds([lead, *others[: SEEDS_A_CALL - 1]], system_of(lead), response_format=lead.response_format)

    def _targeted(self, call: int, turn: int) -> Seeds:
        target, failure = self._targets[turn % len(self._targets)]
        near = self._nearest(target)
        chosen = sorted(near, key=lambda row: self._rank("call", call, row.id))[:SEEDS_A_CALL]
        return Seeds(chosen, system_of(near[0]), failure, near[0].response_format)

    def _nearest(self, target: Row) -> list[Row]:
        """Train rows like the target in question and answer, nearest first; all asked as the first one is."""
        if target.id not in self._near:
            ranked = sorted(self._pool, key=lambda row: (-_likeness(row, target), row.id))
            self._near[target.id] = [row for row in ranked if _asked_alike(row, ranked[0])][:NEAREST]
        return self._near[target.id]

    def _rank(self, *fields: str | int) -> str:
        return identity("seeding", self.migration, self.round, *fields)


def seed_pool(train: Sequence[Row]) -> list[Row]:
    """Rows that may be examples: the team's own before generated ones, single questions before
    conversations.
    """
    pool = [row for row in train if row.source == "coverage"] or list(train)
    single = [row for row in pool if sum(message.role == "user" for message in row.messages) == 1]
    return sorted(single or pool, key=lambda row: row.id)


def system_of(row: Row) -> str:
    """The row's system prompt; "" where it has none."""
    return "\n\n".join(message.content for message in row.messages if message.role == "system")


def _asked_alike(one: Row, other: Row) -> bool:
    """Whether two rows have the same system prompt and ask for the same form of answer."""
    return system_of(one) == system_of(other) and one.response_format == other.response_format


def usual_system(rows: Sequence[Row]) -> str:
    """The most common system prompt of some rows; of equally common ones the alphabetically first."""
    counts = Counter(system_of(row) for row in rows)
    return min(counts, key=lambda system: (-counts[system], system))


def _likeness(row: Row, target: Row) -> float:
    return fuzz.token_set_ratio(row.user_text, target.user_text) + fuzz.ratio(row.answer, target.answer)
