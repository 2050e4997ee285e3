"""Single messages that used to stop a service or come back for ever; thousands by a seed are in tests/faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaduo.bus import topology
from llamaduo.bus.connection import header_bytes
from llamaduo.bus.dead_letters import list_dead, replay
from llamaduo.bus.service import Service
from llamaduo.errors import PermanentError
from llamaduo.events import (
    DatasetReady,
    EvalPassed,
    EvalScored,
    Event,
    MigrationRequested,
    ResponsesRequested,
    WorkFailed,
    encode_event,
)
from services.inference.app import build as inference
from services.inference.settings import InferenceSettings
from tests.loop.test_settling import Trainer, dataset, events, idle, seen, trainer
from tests.simulated import ref, requested
from tests.support import NatsServer, connected, nats_server, service_settings, serving, until


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with nats_server(tmp_path / "nats") as running:
        yield running


def real_inference(server: NatsServer, folder: Path) -> Service:
    """With the plain fake as its engine."""
    settings = service_settings(server, folder / "inference", "one").model_dump()
    return inference(InferenceSettings(**settings, inference_engine="fake"))


def asks(migration: str) -> ResponsesRequested:
    return ResponsesRequested.model_validate(
        {
            "migration": migration, "candidate": {"kind": "base"}, "split": "test", "shard": 0, "of": 1,
            "rows": ref("rows"), "size": 5,
        }
    )  # fmt: skip


async def test_work_for_a_migration_nobody_submitted_is_given_up_and_does_not_come_back_for_ever(
    server: NatsServer, tmp_path: Path
) -> None:
    async with connected(server, tmp_path) as bus, serving(real_inference(server, tmp_path)):
        await bus.publish(asks("nobody"))
        [failed] = await until(lambda: seen(bus, WorkFailed))
        assert isinstance(failed, WorkFailed) and "nobody has submitted a migration nobody" in failed.error
        assert await idle(bus, "inference")


async def test_a_body_on_the_subject_of_another_event_is_not_that_event(server: NatsServer, tmp_path: Path) -> None:
    """Who may publish marks may not say in their place that a round has passed."""
    passed = EvalPassed.model_validate(
        {
            "migration": "m-1", "round": 0, "verdict": "passed", "marks": {}, "gate": {}, "rows": 1,
            "candidate": {"kind": "base"},
        }
    )  # fmt: skip
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, Trainer(0))):
        await bus.republish("eval.scored", encode_event(passed), {"Nats-Msg-Id": "forged"})
        await bus.republish("dataset.ready", encode_event(passed), {"Nats-Msg-Id": "forged too"})
        await until(lambda: seen(bus, WorkFailed))
        assert await seen(bus, EvalPassed) is None and await seen(bus, EvalScored) is None
        [letter] = await list_dead(bus)
        assert "eval.passed does not belong on the subject dataset.ready" in letter.error


async def test_a_message_as_large_as_the_bus_takes_is_kept_in_part_and_put_back_whole(
    server: NatsServer, tmp_path: Path
) -> None:
    """With what is said about it, it is larger than that: the server breaks the connection of who sends it."""
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, Trainer(0))):
        most = bus.client.max_payload
        body = b"x" * (most - header_bytes({}))
        await bus.js.publish("dataset.ready", body)
        await until(lambda: seen(bus, WorkFailed))
        [letter] = await list_dead(bus)
        assert letter.cut_from == len(body) > len(letter.body) > most - 20_000
        await bus.publish(dataset())
        await until(lambda: idle(bus))
        assert not bus.client.last_error
        with pytest.raises(PermanentError, match="more than the bus takes"):
            await bus.publish(MigrationRequested(migration="m-1", spec={"x": "x" * most}, coverage=ref("c")))


async def test_a_large_one_with_room_for_its_headers_is_put_back_whole(server: NatsServer, tmp_path: Path) -> None:
    async with connected(server, tmp_path) as bus:
        body = b"x" * (bus.client.max_payload - 400)
        async with serving(trainer(server, tmp_path, Trainer(0))):
            await bus.republish("dataset.ready", body, {"Nats-Msg-Id": "large"})
            await until(lambda: seen(bus, WorkFailed))
        [letter] = await list_dead(bus)
        assert letter.cut_from == len(body)
        await replay(bus, letter)
        last = await bus.js.get_last_msg(topology.EVENTS, "dataset.ready")
        assert last.data == body and await list_dead(bus) == []


async def test_a_listener_that_fails_at_an_event_does_not_end_its_service_at_every_start(
    server: NatsServer, tmp_path: Path
) -> None:
    heard: list[str] = []

    def listen(event: Event) -> None:
        heard.append(event.migration)
        if event.migration == "m-bad":
            raise TypeError("such an event was never thought of")

    handler = Trainer(0)
    async with connected(server, tmp_path) as bus:
        await bus.publish(requested("m-bad"))
        await bus.publish(requested("m-1"))
        service = trainer(server, tmp_path, handler)
        service.on_event(listen)
        async with serving(service):
            await bus.publish(dataset())

            async def done() -> bool:
                return handler.calls == 1

            await until(done)
            assert heard[:2] == ["m-bad", "m-1"] and not service._problems


@pytest.mark.parametrize(
    "wrong",
    [b'"migration":"a\\nb"', b'"migration":"../x"', b'"migration":"m-1","at":"0001-01-01T00:00:00+23:59"'],
)
async def test_what_could_be_folded_by_nobody_is_no_event(server: NatsServer, tmp_path: Path, wrong: bytes) -> None:
    body = b'{"type":"dataset.ready",' + wrong + b',"round":0,"splits":{},"rows":{},"digest":"' + b"0" * 64 + b'"}'
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, Trainer(0))):
        await bus.republish("dataset.ready", body, {"Nats-Msg-Id": "wrong"})
        await bus.publish(dataset(number=1))
        await until(lambda: seen(bus, WorkFailed))
        assert [e.round for e in await events(bus) if isinstance(e, DatasetReady)] == [1]


async def test_headers_of_strangers_are_kept_within_bounds(server: NatsServer, tmp_path: Path) -> None:
    many = {f"x-{i}": "y" * 400 for i in range(80)} | {"x-long": "z" * 20_000, "llamaduo-migration": "a b\u202e"}
    async with connected(server, tmp_path) as bus, serving(trainer(server, tmp_path, Trainer(0))):
        await bus.republish("dataset.ready", b"not json", {"Nats-Msg-Id": "bad", **many})
        [failed] = await until(lambda: seen(bus, WorkFailed))
        [letter] = await list_dead(bus)
        assert failed.migration == letter.migration == "unknown"
        stored = await bus.js.get_msg(topology.DEAD_LETTERS, letter.seq)
        assert stored.headers is not None and header_bytes(stored.headers) < 16_000
