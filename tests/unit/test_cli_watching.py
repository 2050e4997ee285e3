"""What `watch`, `report` and `chat` say, from a synthetic log."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import aiohttp
import pytest
from aiohttp import web
from rich.console import Console

from llamaduo.api_keys import KeyFile, new_key
from llamaduo.bus.progress import Progress
from llamaduo.cli.chat_command import answer, converse, endpoint_session, endpoints, find_endpoint
from llamaduo.cli.connect import choose
from llamaduo.cli.operator_commands import command_event
from llamaduo.cli.report_command import line_of_migration, migration_row
from llamaduo.cli.side_by_side import labels_of, line_up
from llamaduo.cli.watching import line_of, line_of_progress, picture, summary
from llamaduo.datasets import Message, ShardRow
from llamaduo.errors import LlamaDuoError, UserInputError
from llamaduo.events import (
    EVENT_TYPES,
    AdapterLoaded,
    AdapterPromoted,
    AdapterRolledBack,
    CancelRequested,
    MigrationCancelled,
    MigrationStopped,
    PauseRequested,
    PromoteRequested,
    RollbackRequested,
)
from llamaduo.http_api import guarded
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.next_step import StopRule
from llamaduo.migrations.report import build_report
from llamaduo.migrations.stop_advice import ADVICE
from tests.unit.synthetic_log import MIGRATION, at, complete_log, mishaps

LOG = complete_log()
QUIET = {"responses.requested", "references.requested", "responses.generated", "eval.scored", "marks.requested"}


def test_each_event_that_matters_has_a_line() -> None:
    for event in [*LOG, *mishaps()]:
        line = line_of(event)
        assert (line is None) == (event.type in QUIET)
        assert line is None or "\n" not in line


def test_lines_show_marks_against_the_gate() -> None:
    failed = next(event for event in LOG if event.type == "eval.failed")
    assert line_of(failed) == "round 0: failed: exact-match.exact 0.25 (0.05 to 0.6, n=8), gate 0.7"


def test_ends_name_their_rule() -> None:
    stopped = MigrationStopped(migration=MIGRATION, rule="no_gain", reason="no better mean in 3 rounds")
    said = f"stopped by the rule no_gain: no better mean in 3 rounds; what to do: {ADVICE['no_gain']}"
    assert line_of(stopped) == said
    assert line_of(MigrationCancelled(migration=MIGRATION)) == "cancelled"


def test_each_stop_rule_has_its_advice() -> None:
    assert set(ADVICE) == set(get_args(StopRule))


def test_every_kind_of_event_is_known_here() -> None:
    seen = {event.type for event in [*LOG, *mishaps()]}
    commands = {name for name in EVENT_TYPES if name.endswith("_requested")}
    rest = {"marks.requested", "adapter.rolled_back", "migration.stopped", "migration.cancelled"}
    rest |= {"serving.requested", "serving.measured"}
    rest |= {"training.requested", "traffic.captured", "work.withdrawn"}
    assert seen | commands | rest == set(EVENT_TYPES)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 20, len(LOG)])
def test_the_live_picture_and_the_summary_of_any_prefix(length: int) -> None:
    report = build_report(fold(LOG[:length]), at(50))
    progress = Progress(
        service="trainer", migration=MIGRATION, round=0, stage="training", done=3, total=80, note="loss 1.2"
    )
    out = io.StringIO()
    Console(file=out, width=140).print(picture(report, {"trainer": progress}))
    assert "trainer: training" in out.getvalue()
    assert "3/80" in out.getvalue()
    assert MIGRATION in summary(report)
    assert line_of_progress(progress) == "round 0: training 3/80 (loss 1.2)"


def test_the_summary_holds_what_the_issue_asks_for() -> None:
    text = summary(build_report(fold(LOG), at(100)))
    for part in ("completed", "base model", "service LLM", "holdout", "round 1", "gate 0.7", "from the ledger"):
        assert part in text
    for stage in ("training", "local answers", "service LLM", "other"):
        assert stage in text


def test_an_end_is_said_once_and_leaves_no_round_under_way() -> None:
    stopped = MigrationStopped(migration=MIGRATION, rule="no_gain", reason="no better mean in 3 rounds")
    text = summary(build_report(fold([*LOG[:2], stopped]), at(50)))
    assert text.splitlines()[0].endswith(": stopped")
    assert "rule no_gain" in text
    assert f"  what to do: {ADVICE['no_gain']}" in text.splitlines()
    cancelled = summary(build_report(fold([*LOG[:2], MigrationCancelled(migration=MIGRATION)]), at(50)))
    assert "round 0      not decided" in cancelled
    assert "under way" not in cancelled


def test_status_says_what_there_is() -> None:
    assert line_of_migration(migration_row(fold(LOG[:1]))) == f"{MIGRATION}  support-triage  splitting  no round yet"
    stopped = MigrationStopped(migration=MIGRATION, rule="no_gain", reason="no better mean in 3 rounds")
    dead = [event for event in mishaps() if event.type == "work.failed"]
    line = line_of_migration(migration_row(fold([*LOG[:2], *dead, stopped])))
    assert "stopped (no_gain)  round 0" in line
    assert line.endswith(f"{len(dead)} dead letter (llamaduo dlq list)")


def test_migrations_are_chosen_by_id_beginning_or_name() -> None:
    views = {MIGRATION: fold(LOG), "m-0f": MigrationView("m-0f")}
    assert choose(views, None).migration == "m-0f"
    assert choose(views, "m-012").migration == MIGRATION
    assert choose(views, "support-triage").migration == MIGRATION
    for wrong, says in (("m-0", "2 migrations begin with"), ("x", "there is no migration")):
        with pytest.raises(UserInputError, match=says):
            choose(views, wrong)
    with pytest.raises(UserInputError, match="no migrations yet"):
        choose({}, None)


def test_commands_carry_the_callers_id_and_make_sense_only_where_they_can() -> None:
    running, ended = fold(LOG[:-1]), fold(LOG)
    cancel = command_event("cancel", running, "command-1", "why", None)
    assert isinstance(cancel, CancelRequested)
    assert cancel.id == command_event("cancel", running, "command-1", "other words", None).id
    assert cancel.id != command_event("cancel", running, "command-2", "why", None).id
    assert isinstance(command_event("pause", running, "command-1", "", None), PauseRequested)
    with pytest.raises(UserInputError, match="has ended"):
        command_event("cancel", ended, "command-1", "", None)
    promote = command_event("promote", ended, "command-1", "", None)
    assert isinstance(promote, PromoteRequested)
    assert promote.round == 1
    with pytest.raises(UserInputError, match="round 7 has no adapter"):
        command_event("promote", ended, "command-1", "", 7)
    with pytest.raises(UserInputError, match="no round has passed"):
        command_event("promote", fold(LOG[:3]), "command-1", "", None)
    rollback = command_event("rollback", ended, "command-1", "", None)
    assert isinstance(rollback, RollbackRequested)
    assert rollback.round == 1
    with pytest.raises(UserInputError, match="nothing of this migration is served"):
        command_event("rollback", fold(LOG[:3]), "command-1", "", None)


def test_a_second_roll_back_takes_back_what_the_first_one_led_to() -> None:
    last = next(event for event in LOG if isinstance(event, AdapterPromoted))
    earlier_adapter = last.adapter.model_copy(update={"digest": "e" * 64})
    earlier = last.model_copy(update={"round": 0, "adapter": earlier_adapter})
    back = AdapterRolledBack(
        migration=last.migration, round=1, alias=last.alias, to=earlier_adapter, by="", why="",
        at=last.at + timedelta(seconds=1),
    )  # fmt: skip
    rollback = command_event("rollback", fold([*LOG, earlier, back]), "command-1", "", None)
    assert isinstance(rollback, RollbackRequested)
    assert rollback.round == 0


def shard_row(row: str, text: str) -> ShardRow:
    return ShardRow(
        row=row, messages=[Message(role="user", content=f"prompt {row}")], reference="right", answers=[text]
    )


def test_answers_are_lined_up_failing_rows_first() -> None:
    view = fold(LOG)
    rows = [f"row-{i}" for i in range(8)]
    shards = {key: {row: shard_row(row, f"{key} says") for row in rows} for key in labels_of(view)}
    lined_up = line_up(view, shards, 3)
    assert [row.prompt for row in lined_up] == ["prompt row-7", "prompt row-0", "prompt row-1"]
    assert [label for label, _, _ in lined_up[0].answers] == ["base model", "round 0", "round 1", "service LLM"]
    assert lined_up[0].answers[1][1:] == ("round-0 says", "[exact 0, similarity 80]")


def loaded(url: str, second: float) -> AdapterLoaded:
    served = next(event for event in LOG if isinstance(event, AdapterLoaded))
    return served.model_copy(update={"url": url, "at": at(second), "replica": url})


@asynccontextmanager
async def openai_server(asked: list[dict[str, Any]]) -> AsyncIterator[str]:
    """A server that answers every chat completion with "answered"; its address, ending in /v1."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": []})

    async def complete(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response({"choices": [{"message": {"content": "answered"}}]})

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", complete)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def test_chat_finds_the_newest_replica_that_answers() -> None:
    asked: list[dict[str, Any]] = []
    async with openai_server(asked) as url, aiohttp.ClientSession() as session:
        view = fold([*LOG[:-1], loaded(url, 80), loaded("http://127.0.0.1:1/v1", 90)])
        assert [event.url for event in endpoints(view)][:2] == ["http://127.0.0.1:1/v1", url]
        served = await find_endpoint(session, view)
        assert served.url == url
        text = await answer(session, served, [{"role": "user", "content": "hi"}], {"max_tokens": 5})
    assert text == "answered"
    assert asked[0]["model"] == served.name


async def test_a_conversation_remembers_until_it_is_told_to_start_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n/new\nthree\n"))
    asked: list[dict[str, Any]] = []
    opening = [{"role": "system", "content": "be short"}]
    async with openai_server(asked) as url, aiohttp.ClientSession() as session:
        async with asyncio.timeout(20):
            await converse(session, loaded(url, 80), opening, {})
    said = [[message["content"] for message in body["messages"]] for body in asked]
    assert said == [["be short", "one"], ["be short", "one", "answered", "two"], ["be short", "three"]]


async def test_chat_without_anything_served_says_so() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(LlamaDuoError, match="nothing of"):
            await find_endpoint(session, fold(LOG[:5]))


async def test_chat_shows_its_key_to_an_endpoint_that_asks_for_one_and_says_so_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    key = new_key(keys, "me")

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": []})

    runner = web.AppRunner(guarded([web.get("/v1/models", models)], largest_body=100, keys=KeyFile(keys)))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    view = fold([*LOG[:-1], loaded(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", 80)])
    try:
        monkeypatch.delenv("LLAMADUO_API_KEY", raising=False)
        async with endpoint_session(10) as session:
            with pytest.raises(LlamaDuoError, match="asks for a key: set LLAMADUO_API_KEY"):
                await find_endpoint(session, view)
        monkeypatch.setenv("LLAMADUO_API_KEY", key)
        async with endpoint_session(10) as session:
            assert await find_endpoint(session, view)
    finally:
        await runner.cleanup()
