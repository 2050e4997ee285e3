"""Does an evaluator that is a client of the bus keep to the wire protocol? `llamaduo evaluator check --subscriber`.

It is tried on a bus of its own: shards are published as a migration would, and what it publishes is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from llamaduo.artifacts import put_bytes
from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.dead_letters import list_dead
from llamaduo.conformance import SAMPLE, Broken, Check, examine, task_of
from llamaduo.datasets import ShardRow, dump_rows
from llamaduo.evaluators import Evaluator, Score, Task
from llamaduo.event_parts import ArtifactRef, Candidate
from llamaduo.events import (
    EvalScored,
    MarksRequested,
    MigrationRequested,
    ResponsesGenerated,
    WorkFailed,
    encode_event,
    subject_of,
)

PATIENCE_S = 30.0
"""Seconds for one shard."""


@dataclass
class _Trial:
    """An evaluator under test, and what it has published so far."""

    bus: Bus
    name: str
    patience: float
    seen: list[EvalScored] = field(default_factory=list)
    given_up: list[WorkFailed] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    numbers: count[int] = field(default_factory=lambda: count(1))

    async def listen(self) -> None:
        async for logged in self.bus.log(topology.subjects_for([EvalScored, WorkFailed]), follow=True):
            async with self.changed:
                if isinstance(logged.event, EvalScored):
                    self.seen.append(logged.event)
                elif isinstance(logged.event, WorkFailed):
                    self.given_up.append(logged.event)
                self.changed.notify_all()

    async def shard(self, rows: Sequence[ShardRow] | None, evaluators: Sequence[str]) -> ResponsesGenerated:
        """A migration of its own with one shard of answers; None: the shard was skipped."""
        migration = f"m-{next(self.numbers):016x}"
        store = await self.bus.artifacts()
        ref = await put_bytes(store, dump_rows(rows or []), "application/x-ndjson")
        spec = task_of(evaluators[0], "score").spec.model_dump(mode="json")
        await self.bus.publish(MigrationRequested(migration=migration, spec=spec, coverage=ref))
        return ResponsesGenerated(
            migration=migration,
            source="conformance",
            candidate=Candidate(kind="base"),
            split="test",
            shard=0,
            of=1,
            responses=None if rows is None else ref,
            skipped=rows is None,
            evaluators=list(evaluators),
            rows=len(rows or []),
        )

    async def answer(self, asked: ResponsesGenerated | MarksRequested, repeat: int = 0) -> EvalScored:
        """Publish it and wait for the marks. Broken where none come."""
        await self.bus.publish(asked)
        return await self.arrived(asked.migration, repeat)

    async def arrived(self, migration: str, repeat: int = 0) -> EvalScored:
        """The marks for it. Broken where none come."""

        def found() -> list[EvalScored]:
            return [event for event in self.of(migration) if event.repeat == repeat]

        if not await self.comes(lambda: bool(found())):
            raise Broken(f"no eval.scored by {self.name} within {self.patience:g} s")
        return found()[0]

    async def comes(self, what: Callable[[], bool]) -> bool:
        """Whether that becomes true of what was published, while our patience lasts."""
        try:
            async with asyncio.timeout(self.patience), self.changed:
                return await self.changed.wait_for(what)
        except TimeoutError:
            return False

    def of(self, migration: str) -> list[EvalScored]:
        return [event for event in self.seen if event.migration == migration]

    async def score(self, rows: Sequence[ShardRow], _task: Task) -> list[Score]:
        """Marks of the evaluator, by way of the bus."""
        event = await self.answer(await self.shard(rows, [self.name]))
        if event.evaluator != self.name:
            raise Broken(f"it calls itself {event.evaluator!r}, not {self.name!r}")
        # One may say of a row without answers that it was left out.
        unanswered = {row.row for row in rows if not row.answers}
        return [
            Score(mark.row, mark.metric, mark.value, mark.sample, mark.reason)
            for mark in event.marks
            if mark.row not in unanswered or mark.value is not None
        ]


async def examine_subscriber(
    bus: Bus, name: str, kill: Callable[[], None], patience: float = PATIENCE_S
) -> AsyncIterator[Check]:
    """One check after the other; `kill` ends its process, which is then started again.

    The evaluator must have its consumer and be running.
    """
    trial = _Trial(bus, name, patience)
    listening = asyncio.create_task(trial.listen())
    try:
        try:
            first = await trial.answer(await trial.shard(SAMPLE, [name]))
        except Broken as broken:
            yield Check("answers", "failed", str(broken))
            return
        if not first.metrics:
            yield Check("answers", "failed", "eval.scored has no `metrics`: without a scale its marks cannot be used")
            return
        declared = Evaluator(name, first.version, first.metrics, trial.score, noisy=first.noisy)
        async for one in examine(declared):
            yield one
        for what in (_id, _others, _skipped, _again, _twice, _killed, _given_up, _acks):
            try:
                yield await what(trial, kill)
            except Broken as broken:
                yield Check(what.__name__.strip("_"), "failed", str(broken))
    finally:
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening


async def _id(trial: _Trial, _kill: Callable[[], None]) -> Check:
    """The server drops an event whose `Nats-Msg-Id` it has seen: so ours is dropped if theirs was right."""
    scored = await trial.answer(await trial.shard(SAMPLE[:1], [trial.name]))
    if await trial.bus.publish(scored):
        raise Broken(f"Nats-Msg-Id is not the id of the event, {scored.id}")
    return Check("id", "ok", "Nats-Msg-Id is the hash of what was asked")


async def _others(trial: _Trial, _kill: Callable[[], None]) -> Check:
    not_ours = await trial.shard(SAMPLE[:1], ["somebody-else"])
    await trial.bus.publish(not_ours)
    ours = await trial.shard(SAMPLE[:1], [trial.name])
    await trial.answer(ours)
    assert ours.responses is not None
    place = {**ours.place(), "responses": ours.responses}
    await trial.bus.publish(MarksRequested(**place, evaluator="somebody-else", repeat=1))
    await trial.answer(MarksRequested(**place, evaluator=trial.name, repeat=2), repeat=2)
    if trial.of(not_ours.migration) or len(trial.of(ours.migration)) != 2:
        raise Broken("it marked what another evaluator was asked for")
    return Check("others", "ok", "it leaves alone what names other evaluators")


async def _skipped(trial: _Trial, _kill: Callable[[], None]) -> Check:
    scored = await trial.answer(await trial.shard(None, [trial.name]))
    if not scored.skipped or scored.marks:
        raise Broken("a skipped shard gets an eval.scored with `skipped` and no marks")
    return Check("skipped", "ok", "a skipped shard is answered as skipped")


async def _again(trial: _Trial, _kill: Callable[[], None]) -> Check:
    asked = await trial.shard(SAMPLE, [trial.name])
    first = await trial.answer(asked)
    assert asked.responses is not None
    repeat = MarksRequested(**asked.place(), evaluator=trial.name, repeat=3, responses=asked.responses)
    again = await trial.answer(repeat, repeat=3)
    if not first.noisy and _values(again) != _values(first):
        raise Broken("asked once more it gave other marks, and does not say that it is `noisy`")
    return Check("again", "ok", "marks.requested is answered with its repeat")


async def _twice(trial: _Trial, _kill: Callable[[], None]) -> Check:
    asked = await trial.shard(SAMPLE, [trial.name])
    await trial.answer(asked)
    await trial.bus.republish(subject_of(ResponsesGenerated), encode_event(asked), {"Nats-Msg-Id": "delivered-twice"})
    await trial.answer(await trial.shard(SAMPLE[:1], [trial.name]))
    if len(trial.of(asked.migration)) != 1:
        raise Broken("a shard that came twice was marked under two ids")
    return Check("twice", "ok", "a shard that comes twice is marked once in the log")


async def _killed(trial: _Trial, kill: Callable[[], None]) -> Check:
    asked = [await trial.shard(SAMPLE, [trial.name]) for _ in range(5)]
    for one in asked:
        await trial.bus.publish(one)
    kill()
    for one in asked:
        await trial.arrived(one.migration)
    if any(len(trial.of(one.migration)) != 1 for one in asked):
        raise Broken("after a kill a shard was marked under two ids")
    return Check("killed", "ok", "killed with shards in hand and started again it marked each once")


async def _given_up(trial: _Trial, _kill: Callable[[], None]) -> Check:
    asked = await trial.shard(SAMPLE[:1], [trial.name])
    gone = ArtifactRef(uri="obj:" + "0" * 64, sha256="0" * 64, size=1)
    await trial.bus.publish(asked.model_copy(update={"responses": gone}))
    buried = await trial.comes(lambda: asked.id in [event.job for event in trial.given_up])
    if trial.of(asked.migration):
        raise Broken("it gave marks for answers that cannot be read")
    if not buried:
        told = "answers that cannot be read come to no dead letter: whoever waits for their marks is not told"
        return Check("given up", "note", told)
    if asked.id not in [json.loads(dead.body).get("id") for dead in await list_dead(trial.bus)]:
        raise Broken("work.failed is in the log, and no dead letter on its subject")
    await trial.answer(await trial.shard(SAMPLE[:1], [trial.name]))
    return Check("given up", "ok", "answers that cannot be read become a dead letter, and it goes on")


async def _acks(trial: _Trial, _kill: Callable[[], None]) -> Check:
    durable = topology.durable_for_evaluator(trial.name).name
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(trial.patience):
            while True:
                [info] = [one for one in await topology.list_evaluators(trial.bus.js) if one.name == durable]
                if not info.num_pending and not info.num_ack_pending:
                    return Check("acks", "ok", "every message was acked")
                await asyncio.sleep(0.1)
    raise Broken("messages are left that it did not ack")


def _values(event: EvalScored) -> dict[Any, float | None]:
    return {(mark.row, mark.sample, mark.metric): mark.value for mark in event.marks}
