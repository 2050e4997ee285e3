"""Work in hand: who owns a job, and what came of it, in one compare-and-set record per job.

JetStream has no fencing: a process that was frozen can still ack what another now owns. The record's revision is
what stops it. The record is also the outbox: results are committed here once, then announced, and a redelivered
message finds them and announces them again.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llamaduo.bus.kv import KeyConflict, KeyValue
from llamaduo.errors import LeaseLost
from llamaduo.event_parts import CallCounts


class Record(BaseModel):
    """A job's record. `starts` minus `releases` is how often it was begun and not handed back in order.

    Where jobs are not leased the broker counts the starts, and this only the `releases`.
    """

    model_config = ConfigDict(frozen=True)
    state: Literal["free", "running", "done"] = "free"
    owner: str = ""
    until: float = Field(0.0, description="seconds since the epoch at which the lease ends")
    starts: int = 0
    releases: int = 0
    results: list[str] = Field(default_factory=list, description="encoded events, in publishing order")
    bought: CallCounts = Field(CallCounts(), description="calls of starts that came to no result, as far as is known")

    @property
    def failures(self) -> int:
        """Begun without finishing or handing back, before the present start."""
        return self.starts - self.releases


@dataclass(frozen=True)
class Run:
    """Ours to run."""

    record: Record
    revision: int


@dataclass(frozen=True)
class Finished:
    """Done before: announce these results again."""

    results: list[str]


@dataclass(frozen=True)
class Wait:
    """Somebody else has it for `seconds` more."""

    seconds: float


@dataclass(frozen=True)
class Exhausted:
    """Begun as often as is allowed, and never finished."""

    starts: int


def plan(record: Record | None, now: float, attempts: int) -> Literal["run"] | Finished | Wait | Exhausted:
    """What to do with a job in this state. Decides only; `claim` does."""
    if record is None:
        return "run"
    if record.state == "done":
        return Finished(record.results)
    if record.state == "running" and record.until > now:
        return Wait(record.until - now)
    if record.failures >= attempts:
        return Exhausted(record.failures)
    return "run"


class Lease:
    """A claimed job; every write names the revision before it, so a stale owner is found out."""

    def __init__(self, bucket: KeyValue, key: str, run: Run, seconds: float) -> None:
        self._bucket, self._key, self._seconds = bucket, key, seconds
        self._record, self._revision = run.record, run.revision
        self._writing = asyncio.Lock()

    @property
    def attempt(self) -> int:
        """1 on the first start."""
        return self._record.failures

    @property
    def bought(self) -> CallCounts:
        """What this job has bought without a result so far."""
        return self._record.bought

    def note_bought(self, calls: CallCounts) -> None:
        """Written with whatever is written next. A later start finds the answers of earlier ones, and counts them."""
        if calls.made > self.bought.made:
            self._record = self._record.model_copy(update={"bought": calls})

    async def _write(self, **changes: object) -> None:
        async with self._writing:
            record = self._record.model_copy(update=changes)
            body = record.model_dump_json().encode()
            while True:
                try:
                    self._revision = await self._bucket.update(self._key, body, self._revision)
                    break
                except KeyConflict as error:
                    if await self._look_again(record, error):
                        break
            self._record = record

    async def _look_again(self, wanted: Record, error: KeyConflict) -> bool:
        """A write of ours whose reply was lost moved the revision on: still ours while owner and start are.

        True where it was the very write that is being tried again.
        """
        entry = await self._bucket.get(self._key)
        found = Record.model_validate_json(entry.value) if entry is not None else None
        mine = (self._record.owner, self._record.starts)
        if entry is None or found is None or (found.owner, found.starts) != mine:
            raise LeaseLost(self._key) from error
        if found != wanted and found.state != "running":
            raise LeaseLost(self._key) from error
        self._revision = entry.revision
        return found == wanted

    async def refresh(self, now: float) -> None:
        """Keep it for `seconds` more. LeaseLost if it is another's."""
        await self._write(until=now + self._seconds)

    async def commit(self, results: list[str]) -> None:
        """The one commit point: the job is done and this came of it. LeaseLost if it is another's.

        May be tried again where a reply did not come.
        """
        await self._write(state="done", until=0.0, results=results)

    async def release(self, *, counted: bool) -> None:
        """Hand it back; `counted` where this start was a failed try. LeaseLost if it is another's."""
        await self._write(state="free", until=0.0, releases=self._record.releases + (0 if counted else 1))


async def claim(
    bucket: KeyValue, key: str, *, owner: str, now: float, seconds: float, attempts: int
) -> Lease | Finished | Wait | Exhausted:
    """Take a job if it is free, its lease ran out, or it was never begun."""
    entry = await bucket.get(key)
    record = Record.model_validate_json(entry.value) if entry else None
    todo = plan(record, now, attempts)
    if todo != "run":
        return todo
    before = record or Record()
    mine = before.model_copy(
        update={"state": "running", "owner": owner, "until": now + seconds, "starts": before.starts + 1}
    )
    body = mine.model_dump_json().encode()
    try:
        revision = await (bucket.update(key, body, entry.revision) if entry else bucket.create(key, body))
    except KeyConflict:
        return Wait(min(1.0, seconds))
    return Lease(bucket, key, Run(mine, revision), seconds)


async def record_of(bucket: KeyValue, key: str) -> Record:
    """A job's record, an empty one where it was never begun."""
    entry = await bucket.get(key)
    return Record.model_validate_json(entry.value) if entry else Record()


async def is_done(bucket: KeyValue, key: str) -> bool:
    """Whether the results of a job have been committed."""
    return (await record_of(bucket, key)).state == "done"


async def excuse(bucket: KeyValue, key: str) -> None:
    """Note that a delivery of a job that is not leased was handed back, and was no failed try."""
    while True:
        entry = await bucket.get(key)
        record = Record.model_validate_json(entry.value) if entry else Record()
        body = record.model_copy(update={"releases": record.releases + 1}).model_dump_json().encode()
        with contextlib.suppress(KeyConflict):
            await (bucket.update(key, body, entry.revision) if entry else bucket.create(key, body))
            return


async def excused(bucket: KeyValue, key: str) -> int:
    """How many deliveries of such a job were no failed tries."""
    return (await record_of(bucket, key)).releases
