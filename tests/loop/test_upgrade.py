"""A log that an earlier release wrote is read by this one, and a migration that was under way is ended by it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from llamaduo.events import AdapterTrained, EvalFailed, EvalScored, MigrationCompleted
from llamaduo.migrations.fold import fold
from llamaduo.migrations.report import build_report
from tests.loop.test_loop import all_services, emulator, ended, log_of
from tests.stored_log import EVENTS, as_of_now, events_of, restore
from tests.support import ROOT, connected, nats_server, serving, until

RELEASES = sorted((ROOT / "tests" / "releases").iterdir())
Cut = type[AdapterTrained | EvalScored | EvalFailed]


@pytest.mark.parametrize("release", RELEASES, ids=lambda folder: folder.name)
def test_every_event_is_read_and_folds_to_the_same_end(release: Path) -> None:
    events = events_of(release)
    stored = [json.loads(line) for line in (release / EVENTS).read_text("utf-8").splitlines()]
    assert [event.id for event in events] == [one["id"] for one in stored], "the same work has the same id"
    view = fold(events)
    assert isinstance(view.ended, MigrationCompleted) and view.rounds == [0, 1]
    report = build_report(view, view.ended.at)
    assert [one.verdict for one in report.rounds] == ["failed", "passed"]


@pytest.mark.parametrize("cut", [AdapterTrained, EvalScored, EvalFailed], ids=lambda event: event.__name__)
@pytest.mark.parametrize("release", RELEASES, ids=lambda folder: folder.name)
async def test_a_migration_that_was_under_way_goes_on_to_its_end(release: Path, cut: Cut, tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path) as bus, emulator() as url:
            whole = events_of(release, url)
            before = whole[: next(place for place, event in enumerate(whole) if isinstance(event, cut)) + 1]
            before = as_of_now(before)
            await restore(bus, release, before)
            migration = before[0].migration
            async with serving(*all_services(server, tmp_path)):
                view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
            assert isinstance(view.ended, MigrationCompleted), view.ended
            log = await log_of(bus, migration)
            assert set(Counter(event.id for event in log).values()) == {1}, "nothing was done twice"
            assert log[: len(before)] == before
