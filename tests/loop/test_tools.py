"""A task of tool calls through the whole loop: taught, asked for, written anew, and marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaduo.artifacts import put_bytes, read_bytes
from llamaduo.bus import topology
from llamaduo.cli.submission import migration_id
from llamaduo.coverage_files import read_coverage
from llamaduo.datasets import Message, Row, dump_rows, load_rows, load_shard, make_row
from llamaduo.events import EvalFailed, MigrationCompleted, MigrationRequested, ResponsesGenerated
from llamaduo.tool_calls import ToolCall, as_openai, read_answer
from services.judge.app import build as judge
from services.judge.settings import JudgeSettings
from tests.loop.test_loop import TICKETS, all_services, emulator, ended, spec_of
from tests.support import connected, nats_server, serving, until

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "file_ticket",
        "description": "Puts a ticket into the queue.",
        "parameters": {
            "type": "object",
            "properties": {
                "intent": {"type": "string"},
                "product": {"type": "string"},
                "order": {"type": ["string", "null"]},
                "urgency": {"enum": ["low", "normal", "high"]},
            },
            "required": ["intent", "urgency"],
            "additionalProperties": False,
        },
    },
}


def filed(row: Row) -> Row:
    """The demo's row, answered by a call of the tool with its record as arguments."""
    record = read_answer(f'{{"name":"file_ticket","arguments":{row.answer}}}').calls[0].arguments
    calls = as_openai([ToolCall("file_ticket", record)])
    return make_row([*row.prompt, Message(role="assistant", content="", tool_calls=calls)], tools=[TOOL])


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with nats_server(tmp_path / "nats") as running:
        yield running


async def test_a_task_of_tool_calls_is_moved(server: Any, tmp_path: Path) -> None:
    rows = [filed(row) for row in read_coverage(TICKETS)]
    exact = JudgeSettings(
        nats_url=server.url,
        profile="faults",
        log_level="WARNING",
        replica="calls",
        state_dir=tmp_path / "calls",
        evaluator="tool-call",
    )
    async with connected(server, tmp_path) as bus:
        await topology.add_evaluator(bus.js, "tool-call", profile="faults")
        async with emulator() as url, serving(*all_services(server, tmp_path), judge(exact)):
            spec = spec_of(
                url,
                gate={"absolute": {"tool-call.arguments": 0.7, "tool-call.name": 0.7}},
                evaluators=["tool-call"],
            )
            store = await bus.artifacts()
            migration = migration_id(spec, rows, 1)
            ref = await put_bytes(store, dump_rows(rows), "application/x-ndjson")
            await bus.publish(
                MigrationRequested(migration=migration, spec=spec.model_dump(mode="json"), coverage=ref)
            )
            view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
            assert isinstance(view.ended, MigrationCompleted), view.ended
            assert isinstance(view.decision(0), EvalFailed)
            assert view.passed is not None
            data = view.dataset(view.passed.round)
            assert data is not None and data.added == 150 and data.removed["invalid_call"] == 0
            train = load_rows(await read_bytes(store, data.splits["train"]))
            made = [row for row in train if row.source == "generated"]
            assert made and all(row.tools == [TOOL] and row.messages[-1].tool_calls for row in made)
            answered = [e for e in view.of_type(ResponsesGenerated) if e.candidate.kind == "service" and e.responses]
            assert answered
            for event in answered:
                assert event.responses is not None
                for shard in load_shard(await read_bytes(store, event.responses)):
                    assert shard.answers == [shard.reference]
