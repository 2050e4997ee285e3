"""The paper's procedure as a strategy of our own, to compare ours with: stages one after another, nothing kept.

Written from a description of what it does. A round trains, answers every test prompt K times, has each answer judged
M times, and passes by bare means. Calls go out in waves: each waits for its slowest call and is followed by a pause.
What brought no usable answer is asked again at once, up to ten times. A stage keeps its results in memory until its
end, so one call that is never answered loses all that the stage has paid. Prompts, filters, training and generation
are ours, so that the two differ by their procedure alone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from llamaduo.datasets import Message, Row, ShardRow, dump_rows, make_row
from llamaduo.evaluators import Task
from llamaduo.event_parts import Split
from llamaduo.identity import adapter_digest
from llamaduo.migrations.spec import MigrationSpec
from llamaduo.service_llm import Call, ProviderSender, SendFailed, parse_items, parse_one
from services.inference.engine import AdapterFiles, GenerationRequest
from services.inference.fake_engine import FakeEngine
from services.judge.llm_judge import Marks, judge_call
from services.synthesizer.asking import Pair, Pairs
from services.synthesizer.filtering import Screen
from services.synthesizer.prompting import synthesis_prompt
from services.synthesizer.seeding import Seeds, system_of
from services.synthesizer.splitting import split_coverage
from services.synthesizer.teacher import MAX_TOKENS
from services.trainer.engine import TrainJob
from services.trainer.fake_engine import FakeTrainingEngine

T = TypeVar("T")

TRIES = 10
PAIRS_A_CALL = 5
"""Its generator is asked for no number of pairs; the emulator then writes five."""
SEED_NUMBER = 2024
PAUSE_IN_CALLS = 16
"""How many calls the limit would allow in the pause after a wave: as the published code was measured, with four
workers and a limit of 600 a minute (92.9 calls a minute at 1 s latency)."""


@dataclass(frozen=True)
class Procedure:
    """Its own defaults: answers a prompt, marks an answer, seeds a round, calls in a wave."""

    answers: int = 4
    repeats: int = 10
    seeds: int = 30
    workers: int = 4
    most_rounds: int = 5


class StageLost(Exception):
    """A call was never answered, so nothing of its stage is left. `place` is the call's place in the stage."""

    def __init__(self, place: int) -> None:
        super().__init__(f"call {place} of the stage was never answered")
        self.place = place


@dataclass
class Story:
    """What came of it. `sent` holds when each request was sent, in seconds; `lost` counts those of lost stages."""

    means: list[tuple[float, float]] = field(default_factory=list)
    """Similarity and precision by round."""
    passed: bool = False
    sent: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    lost: int = 0
    rows_taken_out: int = 0


async def in_waves(
    calls: Sequence[Call], read: Callable[[str], T | None], *, workers: int, pause_s: float, story: Story
) -> list[T]:
    """The answers as `read` understands them. StageLost, after everything else was paid, if one is missing."""
    sender = ProviderSender()

    async def ask(call: Call) -> T | None:
        for _ in range(TRIES):
            story.sent.append(time.time())
            try:
                # A key of its own for each request: it does not tell the provider what it has asked before.
                reply = await sender(call, f"paper-{len(story.sent)}")
            except SendFailed:
                continue
            if (answer := read(reply.text)) is not None:
                return answer
        return None

    answers: list[T | None] = []
    try:
        for start in range(0, len(calls), workers):
            answers += await asyncio.gather(*(ask(call) for call in calls[start : start + workers]))
            await asyncio.sleep(pause_s)
    finally:
        await sender.close()
    kept = [answer for answer in answers if answer is not None]
    if len(kept) < len(calls):
        raise StageLost(answers.index(None))
    return kept


@dataclass
class Run:
    """One migration by this procedure, to its end."""

    spec: MigrationSpec
    procedure: Procedure
    folder: Path
    story: Story = field(default_factory=Story)

    @property
    def pause_s(self) -> float:
        """After each wave."""
        return 60 * PAUSE_IN_CALLS / self.spec.service_llm.requests_per_minute

    async def migrate(self, coverage: list[Row]) -> Story:
        """Rounds until the bare means reach the gate. A row that a stage was lost on is taken out, and the stage is
        begun again: that is what is left to whoever sits before it.
        """
        spec = self.spec
        splits = split_coverage(coverage, spec.splits, spec.seed, spec.synthesis.near_copy).rows
        for number in range(self.procedure.most_rounds):
            train, test = splits["train"], splits["test"]
            answers = await self._timed("local", self._answers(train, test, number))
            marks = await self._timed("judging", self._marks(splits["test"], answers, number))
            means = fmean(one.similarity for one in marks), fmean(one.precision for one in marks)
            self.story.means.append(means)
            gates = [spec.gate.absolute[f"llm-judge.{name}"] for name in ("similarity", "precision")]
            if all(mean >= gate for mean, gate in zip(means, gates, strict=True)):
                self.story.passed = True
                break
            splits["train"] = train + await self._timed("synthesis", self._new_rows(splits, number + 1))
        return self.story

    async def _answers(self, train: list[Row], test: list[Row], number: int) -> dict[str, list[str]]:
        """Train on these rows and answer each test prompt K times; by row."""
        data, out = self.folder / f"train-{number}.jsonl", self.folder / f"adapter-{number}"
        data.write_bytes(dump_rows(train))
        job = TrainJob(train=data, base_folder=Path("fake"), recipe=self.spec.recipe, out=out, work=self.folder)
        trained = await FakeTrainingEngine().train(job, lambda _progress: None)
        engine = FakeEngine()
        await engine.start()
        await engine.load(AdapterFiles(name="adapter", folder=out, digest=adapter_digest(trained.files)))
        k = self.procedure.answers
        requests = [
            GenerationRequest(
                row=row.id,
                messages=[message.model_dump() for message in row.prompt],
                model="adapter",
                k=k,
                max_tokens=self.spec.generation.max_tokens,
                temperature=0.8,
                seed=list(range(k)),
                reference=row.answer,
            )
            for row in test
        ]
        return {one.row: one.answers for one in await engine.generate(requests)}

    async def _marks(self, test: list[Row], answers: dict[str, list[str]], number: int) -> list[Marks]:
        """N x K x M calls. `test` loses the rows that the judge will not mark."""
        while True:
            calls = [
                judge_call(_shard_row(row, answers[row.id]), answer, self._task(number, repeat))
                for row in test
                for answer in answers[row.id]
                for repeat in range(self.procedure.repeats)
            ]
            sent = len(self.story.sent)
            try:
                return await self._in_waves(calls, lambda text: parse_one(text, Marks)[0])
            except StageLost as lost:
                self.story.lost += len(self.story.sent) - sent
                self.story.rows_taken_out += 1
                del test[lost.place // (self.procedure.answers * self.procedure.repeats)]

    async def _new_rows(self, splits: dict[Split, list[Row]], number: int) -> list[Row]:
        """Rows written after seeds that are drawn alike from all train rows of the team's own, with replacement."""
        chance = random.Random(SEED_NUMBER)
        own = [row for row in splits["train"] if row.source == "coverage"]
        seeds = chance.choices(own, k=self.procedure.seeds)
        prompts = [
            synthesis_prompt(
                migration="paper",
                round_number=number,
                call=place,
                task=self.spec.task,
                seeds=Seeds([seed], system_of(seed)),
                pairs=PAIRS_A_CALL,
                test={},
            )
            for place, seed in enumerate(seeds)
        ]
        calls = [
            Call(
                messages=[message.model_dump() for message in prompt.messages],
                llm=self.spec.service_llm,
                migration="paper",
                job=prompt.job,
                schema=Pairs,
                max_tokens=MAX_TOKENS,
                seed=prompt.seed,
            )
            for prompt in prompts
        ]
        given = await self._in_waves(calls, lambda text: parse_items(text, Pair, "pairs")[0] or None)
        screen = Screen(splits, self.spec.synthesis.near_copy)
        rows = []
        for seed, pairs in zip(seeds, given, strict=True):
            for pair in pairs:
                if isinstance(kept := screen.admit(pair), Pair):
                    said = [Message(role="user", content=kept.prompt), Message(role="assistant", content=kept.answer)]
                    system = system_of(seed)
                    opening = [Message(role="system", content=system)] if system else []
                    rows.append(make_row([*opening, *said], source="generated"))
        return rows

    async def _in_waves(self, calls: Sequence[Call], read: Callable[[str], T | None]) -> list[T]:
        workers = self.procedure.workers
        return await in_waves(calls, read, workers=workers, pause_s=self.pause_s, story=self.story)

    def _task(self, number: int, repeat: int) -> Task:
        return Task(
            migration="paper", spec=self.spec, candidate=f"round-{number}", split="test", shard=0, repeat=repeat,
            job=f"judging-{number}",
        )  # fmt: skip

    async def _timed(self, stage: str, work: Awaitable[T]) -> T:
        began = time.perf_counter()
        try:
            return await work
        finally:
            spent = time.perf_counter() - began
            self.story.seconds[stage] = self.story.seconds.get(stage, 0.0) + spent


def _shard_row(row: Row, answers: list[str]) -> ShardRow:
    return ShardRow(row=row.id, messages=row.prompt, reference=row.answer, answers=list(answers))
