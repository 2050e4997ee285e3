"""Has the teacher write new rows for the next round, in waves of calls, until there are enough.

What each call asks is a pure function of migration, round and call index; how many calls a wave has, of
what was kept so far. A run that is started again over the same ledger therefore asks the same and ends in
the same rows.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamaduo.datasets import Lineage, Message, Row, make_row
from llamaduo.events import CallCounts, FailingRow, Split, WorkSpan
from llamaduo.identity import content_digest
from llamaduo.migrations.spec import MigrationSpec, Synthesis
from services.synthesizer.asking import (
    Pair,
    Teacher,
    TeacherAnswer,
    TeacherPrompt,
    joined_spans,
    total_counts,
)
from services.synthesizer.filtering import FILTERS, Screen
from services.synthesizer.prompting import synthesis_prompt
from services.synthesizer.seeding import SeedPlan, Seeds

OVER_ASK = 1.1
LARGEST_WAVE = 64
BARREN_WAVES = 2
ERRORS_SHOWN = 5


@dataclass(frozen=True)
class NewRows:
    """What a round of synthesis gave.

    `removed` counts pairs by filter, and as `surplus` good or unread ones beyond what was asked for.
    `errors` are the distinct reasons of calls without an answer, the most frequent first.
    """

    rows: list[Row]
    removed: dict[str, int]
    calls_asked: int
    calls_failed: int
    errors: list[str]
    counts: CallCounts
    work: list[WorkSpan]

    @property
    def problem(self) -> str | None:
        """Why there is no new row at all; None where there is one."""
        if self.rows:
            return None
        removed = ", ".join(f"{name} {number}" for name, number in self.removed.items() if number) or "no pairs"
        failed = f"; {self.calls_failed} calls without an answer" if self.calls_failed else ""
        errors = f": {'; '.join(self.errors)}" if self.errors else ""
        return f"the teacher gave nothing usable in {self.calls_asked} calls ({removed}{failed}{errors})"


def next_wave(synthesis: Synthesis, asked: int, kept: int, barren: int) -> range:
    """Indices of the calls to make next, none when it is time to stop.

    `asked` calls were made so far and gave `kept` good rows; the last `barren` waves gave none.
    """
    wanted = synthesis.rows_per_round - kept
    left = synthesis.max_calls_per_round - asked
    if wanted <= 0 or left <= 0 or barren >= BARREN_WAVES:
        return range(0)
    rows_a_call = kept / asked if kept else synthesis.pairs_per_call
    size = min(math.ceil(wanted * OVER_ASK / rows_a_call), LARGEST_WAVE, left)
    return range(asked, asked + size)


async def synthesize(
    *,
    splits: Mapping[Split, Sequence[Row]],
    failures: Sequence[FailingRow],
    spec: MigrationSpec,
    migration: str,
    round_number: int,
    teacher: Teacher,
) -> NewRows:
    """Rows to add to train in round `round_number` (the one to come): at most `rows_per_round`, by call,
    then item.

    `splits` are the rows of the last round, whole. Calls without an answer are counted and passed over;
    what the teacher raises (budget, a provider that is down) comes through.
    """
    synthesis = spec.synthesis
    plan = SeedPlan(
        migration,
        round_number,
        splits["train"],
        splits["test"],
        failures,
        synthesis.strategy,
        synthesis.uniform_share,
        synthesis.pairs_per_call,
    )
    test = {row.id: row for row in splits["test"]}
    labels = {row.answer for row in splits["train"] if row.source == "coverage"}
    screen = Screen(splits, synthesis.near_copy)
    known = {row.id for row in splits["train"]}
    rows: list[Row] = []
    removed: Counter[str] = Counter()
    answers: list[TeacherAnswer] = []
    barren = 0
    while wave := next_wave(synthesis, len(answers), len(rows), barren):
        seeds = [plan.seeds(call) for call in wave]
        prompts = [
            synthesis_prompt(
                migration=migration,
                round_number=round_number,
                call=call,
                task=spec.task,
                seeds=chosen,
                pairs=synthesis.pairs_per_call,
                test=test,
                labels=labels,
            )
            for call, chosen in zip(wave, seeds, strict=True)
        ]
        before = len(rows)
        given = await teacher.ask(prompts)
        for prompt, chosen, answer in zip(prompts, seeds, given, strict=True):
            for pair in answer.pairs:
                if len(rows) >= synthesis.rows_per_round:
                    removed["surplus"] += 1
                    continue
                admitted = screen.admit(pair)
                if not isinstance(admitted, Pair):
                    removed[admitted] += 1
                    continue
                row = _row(admitted, chosen, prompt, round_number, spec.teacher_llm.model)
                if row.id not in known:
                    known.add(row.id)
                    rows.append(row)
            await asyncio.sleep(0)  # comparing takes a while in large datasets: let heartbeats through
        answers += given
        barren = 0 if len(rows) > before else barren + 1

    errors = Counter(answer.error for answer in answers if answer.error)
    return NewRows(
        rows=rows,
        removed={name: removed[name] for name in (*FILTERS, "surplus")},
        calls_asked=len(answers),
        calls_failed=sum(bool(answer.error) and not answer.pairs for answer in answers),
        errors=[error for error, _ in sorted(errors.items(), key=lambda item: (-item[1], item[0]))][:ERRORS_SHOWN],
        counts=total_counts(answers),
        work=joined_spans(answers),
    )


def _row(pair: Pair, seeds: Seeds, prompt: TeacherPrompt, round_number: int, generator: str) -> Row:
    messages = [Message(role="system", content=seeds.system)] if seeds.system else []
    messages += [
        Message(role="user", content=pair.prompt),
        Message(role="assistant", content=pair.answer),
    ]
    return make_row(
        messages,
        source="generated",
        lineage=Lineage(
            seeds=[row.id for row in seeds.rows],
            round=round_number,
            generator=generator,
            prompt=content_digest([message.model_dump() for message in prompt.messages]),
        ),
    )
