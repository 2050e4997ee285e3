"""The ledger: every paid call written down as intended before it is sent, and its answer before it is used.

One entry per call key lists every attempt. An attempt that is still open and whose owner is gone (a kill) may have
been paid; whoever asks again marks the new attempt as rebought. The keys of such calls are also listed by migration,
before the attempt itself is written, so that none is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import BaseModel, Field

from llamaduo.bus.kv import Entry, KeyValue
from llamaduo.errors import ServiceLLMRefused
from llamaduo.identity import content_digest
from llamaduo.service_llm.call import KEY_PREFIX, Call, FinishReason
from llamaduo.service_llm.cas import change, read
from llamaduo.service_llm.clock import Clock

T = TypeVar("T")

_REBOUGHT_PREFIX = "rebought."
_GRACE_S = 30.0
_LARGEST_ENTRY = 900_000

Outcome = Literal["open", "answered", "failed", "unknown"]


class Attempt(BaseModel):
    """One send. `until` is when it can no longer be under way; `owner` is the process that made it."""

    id: str
    migration: str
    job: str
    replica: str
    owner: str
    began: float
    until: float
    rebought: bool = False
    outcome: Outcome = "open"
    error: str = ""
    limited: bool = False

    @property
    def may_be_paid(self) -> bool:
        """Sent, and never answered by the provider."""
        return self.outcome in ("open", "unknown")


class Bought(BaseModel):
    """The answer as it was paid for; times in seconds since the epoch."""

    attempt: str
    migration: str
    job: str
    text: str
    finish_reason: FinishReason
    input_tokens: int
    output_tokens: int
    money: float
    began: float
    ended: float
    batched: bool = False


class LedgerEntry(BaseModel):
    """All that is known of one call key."""

    model: str = ""
    purpose: str = ""
    attempts: list[Attempt] = Field(default_factory=list)
    answer: Bought | None = None

    def attempt(self, attempt_id: str) -> Attempt | None:
        """The attempt of that id."""
        return next((one for one in self.attempts if one.id == attempt_id), None)

    def next_id(self, call: Call) -> str:
        """The id of the next attempt: the same again after a kill between reserving and writing it down."""
        return f"{call.key.removeprefix(KEY_PREFIX)[:16]}.{content_digest(call.job)[:8]}.{len(self.attempts) + 1}"

    def rival(self, job: str, owner: str, replica: str, now: float) -> Attempt | None:
        """An attempt that other work has under way.

        One of the same job by another owner is a dead process's, for a job has one owner at a time; and so is one of
        another owner under this replica's name, which no two living processes share.
        """
        for one in self.attempts:
            gone = one.job == job or one.replica == replica or one.until <= now
            if one.outcome == "open" and one.owner != owner and not gone:
                return one
        return None

    def unanswered(self, migration: str) -> list[str]:
        """Ids of the migration's attempts that may have been paid without an answer."""
        return [one.id for one in self.attempts if one.migration == migration and one.may_be_paid]


@dataclass(frozen=True)
class Rebought:
    """A call that was sent again although an earlier attempt may have been paid."""

    key: str
    purpose: str
    job: str
    attempt: int
    replica: str
    at: float


class Ledger:
    """Reads and writes entries in a bucket. What it has seen of calls in hand it keeps until it may `forget` them."""

    def __init__(self, kv: KeyValue, clock: Clock) -> None:
        self._kv, self._clock = kv, clock
        self._seen: dict[str, Entry | None] = {}

    async def entry(self, key: str) -> LedgerEntry:
        """The entry of a key; an empty one where nothing was ever asked."""
        self._seen[key] = stored = await read(self._kv, key, self._clock)
        return _parsed(stored.value if stored else None)

    def forget(self, key: str) -> None:
        """Nothing more will be asked about this key for now."""
        self._seen.pop(key, None)

    async def begin(
        self, call: Call, attempt_id: str, owner: str, replica: str, wait_s: float = 0.0
    ) -> Attempt | None:
        """Write the attempt down as intended; `wait_s`: seconds it may take beyond the call's own timeout.

        None where the entry has moved on since `attempt_id` was the next.
        """
        now, listed = self._clock.now(), False

        def step(value: bytes | None) -> tuple[bytes | None, Attempt | Literal["to be listed"] | None]:
            entry = _parsed(value)
            mine = entry.attempt(attempt_id)
            if mine is not None:
                return None, mine if mine.owner == owner else None
            if entry.answer or entry.next_id(call) != attempt_id:
                return None, None
            again = any(one.may_be_paid for one in entry.attempts)
            if again and not listed:
                return None, "to be listed"
            attempt = Attempt(
                id=attempt_id,
                migration=call.migration,
                job=call.job,
                replica=replica,
                owner=owner,
                began=now,
                until=now + call.llm.timeout_s + wait_s + _GRACE_S,
                rebought=again,
            )
            entry.model, entry.purpose = call.llm.model, call.purpose
            entry.attempts.append(attempt)
            return _dumped(entry), attempt

        while (begun := await self._change(call.key, step)) == "to be listed":
            await self._list_as_rebought(call)
            listed = True
        return begun

    async def answered(self, key: str, bought: Bought) -> LedgerEntry:
        """Write the answer down; the entry. The first answer of a key stays, whoever comes later.

        ServiceLLMRefused if it is larger than a ledger entry can hold.
        """

        def step(value: bytes | None) -> tuple[bytes | None, LedgerEntry]:
            entry = _parsed(value)
            mine = entry.attempt(bought.attempt)
            if entry.answer and (mine is None or mine.outcome == "answered"):
                return None, entry
            if mine is not None:
                mine.outcome = "answered"
            entry.answer = entry.answer or bought
            body = _dumped(entry)
            if len(body) > _LARGEST_ENTRY:
                raise ServiceLLMRefused(f"an answer of {len(body)} bytes is too large to keep; lower max_tokens")
            return body, entry

        return await self._change(key, step)

    async def closed(
        self, key: str, attempt_id: str, outcome: Outcome, error: str, *, limited: bool = False
    ) -> LedgerEntry:
        """Write down that an attempt brought no answer (`limited`: the provider asked for patience); the entry."""

        def step(value: bytes | None) -> tuple[bytes | None, LedgerEntry]:
            entry = _parsed(value)
            mine = entry.attempt(attempt_id)
            if mine is None or mine.outcome != "open":
                return None, entry
            mine.outcome, mine.error, mine.limited = outcome, error[:300], limited
            return _dumped(entry), entry

        return await self._change(key, step)

    async def _change(self, key: str, step: Callable[[bytes | None], tuple[bytes | None, T]]) -> T:
        return await change(self._kv, key, step, self._clock, seen=self._seen)

    async def _list_as_rebought(self, call: Call) -> None:
        def step(value: bytes | None) -> tuple[bytes | None, None]:
            listed = _listed(value)
            return (None if call.key in listed else json.dumps([*listed, call.key]).encode()), None

        await change(self._kv, _REBOUGHT_PREFIX + call.migration, step, self._clock)


async def rebought(ledger: KeyValue, migration: str) -> list[Rebought]:
    """The calls of a migration that may have been paid twice, one item for each attempt made again."""
    index = await ledger.get(_REBOUGHT_PREFIX + migration)
    found: list[Rebought] = []
    for key in _listed(index.value if index else None):
        stored = await ledger.get(key)
        entry = _parsed(stored.value if stored else None)
        found += [
            Rebought(key, entry.purpose, one.job, number, one.replica, one.began)
            for number, one in enumerate(entry.attempts, start=1)
            if one.rebought and one.migration == migration
        ]
    return found


def _listed(value: bytes | None) -> list[str]:
    keys: list[str] = [] if value is None else json.loads(value)
    return keys


def _parsed(value: bytes | None) -> LedgerEntry:
    return LedgerEntry() if value is None else LedgerEntry.model_validate_json(value)


def _dumped(entry: LedgerEntry) -> bytes:
    return entry.model_dump_json(exclude_defaults=True).encode()
