"""Has the teacher write new rows for the next round, in waves of calls, until there are enough.

What each call asks is a pure function of migration, round and call index; how many calls a wave has, and
what the teacher is asked to check, of what was answered and kept so far. A run that is started again over
the same ledger therefore asks the same and ends in the same rows.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llamaduo.datasets import Lineage, Message, Row, make_row
from llamaduo.errors import PermanentError
from llamaduo.event_parts import CallCounts, FailingRow, Split, WorkSpan
from llamaduo.identity import content_digest
from llamaduo.migrations.planned_rows import OVER_ASK, rows_wanted
from llamaduo.migrations.spec import MigrationSpec, Synthesis
from llamaduo.tool_calls import SaidAndCalled, as_openai, read_answer
from services.synthesizer import self_check
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
from services.synthesizer.seeding import SeedPlan, Seeds, seed_pool

LARGEST_WAVE = 64
BARREN_WAVES = 2
ERRORS_SHOWN = 5


@dataclass(frozen=True)
class NewRows:
    """What a round of synthesis gave.

    `removed` counts pairs by filter, and as `surplus` good or unread ones beyond what was asked for. Calls
    are those that write pairs; `counts` and `work` are of all.
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


def next_wave(synthesis: Synthesis, wanted: int, asked: int, kept: int, barren: int) -> range:
    """Indices of the calls to make next, none when it is time to stop.

    `asked` calls were made so far and gave `kept` good rows of `wanted`; the last `barren` waves gave none.
    """
    missing = wanted - kept
    left = synthesis.max_calls_per_round - asked
    if missing <= 0 or left <= 0 or barren >= BARREN_WAVES:
        return range(0)
    rows_a_call = kept / asked if kept else synthesis.pairs_per_call
    size = min(math.ceil(missing * OVER_ASK / rows_a_call), LARGEST_WAVE, left)
    return range(asked, asked + size)


async def synthesize(
    *,
    splits: Mapping[Split, Sequence[Row]],
    failures: Sequence[FailingRow],
    spec: MigrationSpec,
    migration: str,
    round_number: int,
    teacher: Teacher,
    weak: Sequence[str] = (),
) -> NewRows:
    """Rows to add to train in round `round_number` (the one to come): at most as many as are wanted, by call,
    then item.

    `splits` are the rows of the last round, whole; `weak` the ids of validation rows that its adapter has not
    learnt, the worst first. Calls without an answer are counted and passed over;
    what the teacher raises (budget, a provider that is down) comes through. PermanentError where no train row can
    serve as an example.
    """
    synthesis = spec.synthesis
    wanted = rows_wanted(synthesis, len(splits["train"]))
    if not seed_pool(splits["train"]):
        raise PermanentError("every train row goes on after a tool has answered: new ones cannot be written")
    validation = {row.id: row for row in splits["validation"]}
    plan = SeedPlan(
        migration,
        round_number,
        splits["train"],
        splits["test"],
        failures,
        synthesis.strategy,
        synthesis.uniform_share,
        synthesis.pairs_per_call,
        [validation[row] for row in weak if row in validation],
    )
    test = {row.id: row for row in splits["test"]}
    labels = {row.answer for row in splits["train"] if row.source == "coverage"}
    screen = Screen(splits, synthesis.near_copy)
    known = {row.id for row in splits["train"]}
    rows: list[Row] = []
    removed: Counter[str] = Counter()
    answers: list[TeacherAnswer] = []
    checks: list[TeacherAnswer] = []
    barren = 0
    while wave := next_wave(synthesis, wanted, len(answers), len(rows), barren):
        written = []
        for call in wave:
            seeds = plan.seeds(call)
            prompt = synthesis_prompt(
                migration=migration,
                round_number=round_number,
                call=call,
                task=spec.task,
                seeds=seeds,
                pairs=synthesis.pairs_per_call,
                test=test,
                labels=labels,
            )
            written.append(_Written(call, seeds, prompt))
            await asyncio.sleep(0)  # finding near rows takes a while in large datasets: let heartbeats through
        given = await teacher.ask([one.prompt for one in written])
        answers += given
        room = None if synthesis.self_check else wanted - len(rows)
        for one, answer in zip(written, given, strict=True):
            one.pairs = _screened(screen, answer.pairs, one.seeds, room, removed)
            room = None if room is None else room - len(one.pairs)
            await asyncio.sleep(0)  # and so does comparing
        if synthesis.self_check:
            checks += await _check(written, spec, migration, round_number, teacher, removed)
        before = len(rows)
        for one in written:
            for pair in one.pairs:
                row = _row(pair, one.seeds, one.prompt, round_number, spec.teacher_llm.model)
                if len(rows) >= wanted:
                    removed["surplus"] += 1
                elif row.id not in known:
                    known.add(row.id)
                    rows.append(row)
        barren = 0 if len(rows) > before else barren + 1

    errors = Counter(answer.error for answer in [*answers, *checks] if answer.error)
    return NewRows(
        rows=rows,
        removed={name: removed[name] for name in (*FILTERS, self_check.NAME, "surplus")},
        calls_asked=len(answers),
        calls_failed=sum(bool(answer.error) and not answer.pairs for answer in answers),
        errors=[error for error, _ in sorted(errors.items(), key=lambda item: (-item[1], item[0]))][:ERRORS_SHOWN],
        counts=total_counts([*answers, *checks]),
        work=joined_spans([*answers, *checks]),
    )


@dataclass
class _Written:
    """One call, and the pairs of its answer that are left."""

    call: int
    seeds: Seeds
    prompt: TeacherPrompt
    pairs: list[Pair] = field(default_factory=list)


def _screened(
    screen: Screen, pairs: Sequence[Pair], seeds: Seeds, room: int | None, removed: Counter[str]
) -> list[Pair]:
    """The pairs that pass the filters, at most `room` (None: all); the others are counted."""
    admitted: list[Pair] = []
    for pair in pairs:
        if room is not None and len(admitted) >= room:
            removed["surplus"] += 1
            continue
        outcome = screen.admit(pair, seeds.tools)
        if isinstance(outcome, Pair):
            admitted.append(outcome)
        else:
            removed[outcome] += 1
    return admitted


async def _check(
    written: Sequence[_Written],
    spec: MigrationSpec,
    migration: str,
    round_number: int,
    teacher: Teacher,
    removed: Counter[str],
) -> list[TeacherAnswer]:
    """Have the teacher drop what is wrong of the pairs; its answers."""
    asked = [one for one in written if one.pairs]
    given = await teacher.ask(
        [
            self_check.check_prompt(
                migration=migration,
                round_number=round_number,
                call=one.call,
                task=spec.task,
                seeds=one.seeds,
                pairs=one.pairs,
            )
            for one in asked
        ]
    )
    for one, answer in zip(asked, given, strict=True):
        kept = self_check.kept_by(one.pairs, answer.checks)
        removed[self_check.NAME] += len(one.pairs) - len(kept)
        one.pairs = kept
    return given


def _row(pair: Pair, seeds: Seeds, prompt: TeacherPrompt, round_number: int, generator: str) -> Row:
    messages = [Message(role="system", content=seeds.system)] if seeds.system else []
    messages += [
        Message(role="user", content=pair.prompt),
        _answer(pair, seeds),
    ]
    return make_row(
        messages,
        tools=seeds.tools,
        response_format=seeds.response_format,
        source="generated",
        lineage=Lineage(
            seeds=[row.id for row in seeds.rows],
            round=round_number,
            generator=generator,
            prompt=content_digest([message.model_dump() for message in prompt.messages]),
        ),
    )


def _answer(pair: Pair, seeds: Seeds) -> Message:
    read = read_answer(pair.answer) if seeds.tools else SaidAndCalled(pair.answer)
    return Message(role="assistant", content=read.content, tool_calls=as_openai(read.calls) or None)
