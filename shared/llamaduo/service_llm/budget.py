"""The door: before a call is sent its largest possible price is held in the migration's record, then settled.

One record a migration, changed by compare-and-set: what is settled, and what is held, by attempt. An attempt that
a kill left behind keeps its hold, for it may have been paid; when the call is bought again, both are settled at
what the answer took, and where it never is, the hold stays: once, at its largest price. A limit that only the holds
of other calls would pass is not reached yet: calls cost less than their largest price, and some are not sent after
all. Holding and settling are idempotent. Calls that arrive while a write is under way share the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, Field

from llamaduo.bus.kv import KeyValue
from llamaduo.errors import BudgetExhausted
from llamaduo.migrations.spec import Budgets
from llamaduo.service_llm import metrics
from llamaduo.service_llm.cas import change
from llamaduo.service_llm.clock import Clock

_PREFIX = "budget."
_SLACK = 1e-9


class Amount(BaseModel):
    """What calls cost: how many, tokens in and out, US dollars."""

    calls: int = 0
    tokens: int = 0
    money: float = 0.0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            calls=self.calls + other.calls, tokens=self.tokens + other.tokens, money=self.money + other.money
        )


class BudgetRecord(BaseModel):
    """A migration's account: `held` by attempt id."""

    settled: Amount = Amount()
    held: dict[str, Amount] = Field(default_factory=dict)

    def total(self) -> Amount:
        """Settled and held together: the most that can have been spent."""
        return sum(self.held.values(), self.settled)


@dataclass(frozen=True)
class _Hold:
    attempt: str
    most: Amount
    budgets: Budgets


@dataclass(frozen=True)
class _Settle:
    attempts: tuple[str, ...]
    each: Amount


@dataclass
class _Account:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: list[tuple[_Hold | _Settle, asyncio.Future[BudgetExhausted | BudgetHeld | None]]] = field(
        default_factory=list
    )


class BudgetHeld(Exception):
    """Nothing is held: other calls hold what is left of a limit, and may yet give some of it back."""

    def __init__(self, refusal: BudgetExhausted) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal
        """What to raise where they never do."""


class Door:
    """Holds and settles. Migrations without limits on money, calls and tokens cost it nothing."""

    def __init__(self, kv: KeyValue, clock: Clock) -> None:
        self._kv, self._clock = kv, clock
        self._accounts: dict[str, _Account] = {}

    async def hold(self, migration: str, budgets: Budgets, attempt: str, most: Amount) -> None:
        """Hold `most` for an attempt.

        Nothing is held where a limit would be passed: BudgetExhausted by what is settled, BudgetHeld by what others
        hold.
        """
        if _limited(budgets):
            refused = await self._commit(migration, _Hold(attempt, most, budgets))
            if isinstance(refused, BudgetExhausted):
                metrics.BUDGET_REFUSALS.labels(refused.what).inc()
            if refused is not None:
                raise refused

    async def settle(self, migration: str, budgets: Budgets, attempts: Iterable[str], each: Amount) -> None:
        """Replace what is held for these attempts by `each`; attempts that hold nothing are left out."""
        if _limited(budgets):
            await self._commit(migration, _Settle(tuple(attempts), each))

    async def _commit(self, migration: str, change_asked: _Hold | _Settle) -> BudgetExhausted | BudgetHeld | None:
        account = self._accounts.setdefault(migration, _Account())
        done: asyncio.Future[BudgetExhausted | BudgetHeld | None] = asyncio.get_running_loop().create_future()
        account.waiting.append((change_asked, done))
        async with account.lock:
            if not done.done():
                batch, account.waiting = account.waiting, []
                await self._write(migration, account, batch)
        return done.result()

    async def _write(
        self,
        migration: str,
        account: _Account,
        batch: list[tuple[_Hold | _Settle, asyncio.Future[BudgetExhausted | BudgetHeld | None]]],
    ) -> None:
        def step(value: bytes | None) -> tuple[bytes | None, list[BudgetExhausted | BudgetHeld | None]]:
            before = BudgetRecord() if value is None else BudgetRecord.model_validate_json(value)
            record = before.model_copy(deep=True)
            results = [_applied(record, asked) for asked, _ in batch]
            return (None if record == before else record.model_dump_json().encode()), results

        try:
            results = await change(self._kv, _PREFIX + migration, step, self._clock)
        except BaseException:
            account.waiting = [*batch, *account.waiting]
            raise
        for (_, done), result in zip(batch, results, strict=True):
            if not done.done():
                done.set_result(result)


async def spent(budget: KeyValue, migration: str) -> BudgetRecord:
    """The account of a migration as it stands."""
    entry = await budget.get(_PREFIX + migration)
    return BudgetRecord() if entry is None else BudgetRecord.model_validate_json(entry.value)


def _limited(budgets: Budgets) -> bool:
    return budgets.money is not None or budgets.calls is not None or budgets.tokens is not None


def _applied(record: BudgetRecord, asked: _Hold | _Settle) -> BudgetExhausted | BudgetHeld | None:
    """Change the record as asked; the refusal, if it is one."""
    if isinstance(asked, _Settle):
        for attempt in asked.attempts:
            if record.held.pop(attempt, None) is not None:
                record.settled += asked.each
        return None
    others = BudgetRecord(
        settled=record.settled, held={key: held for key, held in record.held.items() if key != asked.attempt}
    ).total()
    then, surely = others + asked.most, record.settled + asked.most
    limits: list[tuple[Literal["money", "calls", "tokens"], float | None]] = [
        ("money", asked.budgets.money),
        ("calls", asked.budgets.calls),
        ("tokens", asked.budgets.tokens),
    ]
    for what, limit in limits:
        if limit is not None and getattr(then, what) > limit + _SLACK:
            refusal = BudgetExhausted(what, limit, getattr(others, what))
            return refusal if getattr(surely, what) > limit + _SLACK else BudgetHeld(refusal)
    record.held[asked.attempt] = asked.most
    return None
