"""The paper's procedure, as the benchmark `baseline` plays it: what it asks, and what one refusal costs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.baseline import Setting, one_test_row, rate_reached, spec_of
from benchmarks.paper_procedure import TRIES, Procedure, Run, Story
from benchmarks.system import TICKETS
from llamaduo.coverage_files import read_coverage
from services.emulator.app import make_app, start
from services.emulator.ledger import Ledger, Totals
from services.emulator.settings import EmulatorSettings

TESTED = 12
SMALL = Setting(600_000, TESTED, Procedure(answers=1, repeats=2, seeds=30))
JUDGED = TESTED * 2


async def play(folder: Path, refused_text: str | None = None) -> tuple[Story, Totals]:
    """One migration; what came of it, and the emulator's count."""
    ledger = Ledger()
    settings = EmulatorSettings(model_name="gpt-4o", refused_text=refused_text)
    runner, port = await start(make_app(settings, ledger), "127.0.0.1", 0)
    try:
        run = Run(spec_of(SMALL, f"http://127.0.0.1:{port}/v1"), SMALL.procedure, folder)
        return await run.migrate(read_coverage(TICKETS)), ledger.view().totals
    finally:
        await runner.cleanup()


async def test_every_answer_is_judged_as_often_as_said_in_every_round(tmp_path: Path) -> None:
    story, totals = await play(tmp_path)
    assert story.passed and len(story.means) == 2
    assert totals.completed == 2 * JUDGED + SMALL.procedure.seeds == len(story.sent)
    assert story.lost == 0


async def test_one_refusal_loses_all_that_its_stage_has_paid(tmp_path: Path) -> None:
    story, totals = await play(tmp_path, one_test_row(SMALL))
    assert story.passed and story.rows_taken_out == 1
    of_a_row = JUDGED // TESTED
    lost = JUDGED - of_a_row + TRIES * of_a_row
    assert story.lost == lost
    assert totals.completed == lost + 2 * (JUDGED - of_a_row) + SMALL.procedure.seeds


def test_the_rate_leaves_out_when_there_was_nothing_to_ask() -> None:
    busy = [n / 10 for n in range(11)]
    assert rate_reached(busy) == pytest.approx(600)
    assert rate_reached([*busy, *(100 + at for at in busy)]) == pytest.approx(600)
    assert rate_reached([]) == 0
