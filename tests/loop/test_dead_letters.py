"""`llamaduo dlq` against a real server: list, show, put back once, drop with a trace."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.dead_letters import find_dead, list_dead, replay, traces
from llamaduo.errors import PermanentError, UserInputError
from llamaduo.events import AdapterTrained, WorkFailed
from tests.loop.test_settling import Trainer, dataset, idle, seen, trainer
from tests.support import NatsServer, connected, environment, nats_server, serving, until

Cli = Callable[..., Awaitable[tuple[int, str]]]


def cli_of(server: NatsServer, folder: Path) -> Cli:
    ways = {"LLAMADUO_NATS_URL": server.url, "LLAMADUO_STATE_DIR": str(folder / "state")}

    async def llamaduo(*arguments: str, answer: str = "") -> tuple[int, str]:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llamaduo.cli.main", *arguments),
            env=environment(**ways),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(child.communicate(answer.encode()), 60)
        assert child.returncode is not None
        return child.returncode, out.decode()

    return llamaduo


async def three_letters(server: NatsServer, folder: Path, bus: Bus) -> None:
    """Two that the trainer gave up, of two migrations, and one that nobody can read."""
    async with serving(trainer(server, folder, Trainer(PermanentError("a reason\x1b[2J of two\nlines")))):
        await bus.publish(dataset("m-1"))
        await bus.publish(dataset("other-2"))
        await bus.republish("dataset.ready", b"not \x1b[2J json", {"Nats-Msg-Id": "bad"})
        await until(lambda: seen(bus, WorkFailed, 3))
        await until(lambda: idle(bus))


async def test_from_the_command_line(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        llamaduo = cli_of(server, tmp_path)
        async with connected(server, tmp_path) as bus:
            code, said = await llamaduo("dlq", "list")
            assert (code, said.strip()) == (0, "no dead letters")
            await three_letters(server, tmp_path, bus)
            code, said = await llamaduo("dlq", "list")
            assert code == 0 and len(said.splitlines()) == 3 and "\x1b" not in said, said
            code, said = await llamaduo("dlq", "list", "--consumer", "trainer", "--migration", "other", "--json")
            [mine] = json.loads(said)
            assert (mine["migration"], mine["consumer"], mine["attempts"]) == ("other-2", "trainer", 1)
            code, said = await llamaduo("dlq", "show", mine["id"][:10])
            assert code == 0 and '"round": 0' in said and "a reason" in said and "\x1b" not in said, said
            for command in (["show"], ["replay"], ["drop", "--yes"]):
                code, said = await llamaduo("dlq", *command, "ffff")
                assert code == 2 and "no dead letter begins with 'ffff'" in said and "Traceback" not in said, said

            code, said = await llamaduo("dlq", "drop", mine["id"], answer="n\n")
            assert code == 0 and "nothing was deleted" in said and len(await list_dead(bus)) == 3
            code, said = await llamaduo("dlq", "drop", mine["id"])  # nobody is there to be asked
            assert code != 0 and len(await list_dead(bus)) == 3
            code, said = await llamaduo("dlq", "drop", mine["id"], "--yes")
            assert code == 0 and len(await list_dead(bus)) == 2, said
            code, said = await llamaduo("dlq", "replay", mine["id"])
            assert code == 2 and "was dropped by" in said and "UTC" in said, said
            code, said = await llamaduo("dlq", "list", "--gone")
            assert code == 0 and "dropped by" in said and mine["id"][:16] in said, said

            [first] = [dead for dead in await list_dead(bus) if dead.migration == "m-1"]
            for times in (1, 2):
                code, said = await llamaduo("dlq", "replay", first.id)
                assert code == 0 and "put back" in said and (times == 1) == ("not put back again" not in said), said
            handler = Trainer(0)
            async with serving(trainer(server, tmp_path, handler)):
                await until(lambda: seen(bus, AdapterTrained))
                await until(lambda: idle(bus))
            assert handler.calls == 1 and len(await list_dead(bus)) == 1


async def test_asked_twice_at_once_or_after_a_kill_in_the_middle_it_is_put_back_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path) as bus:
            await three_letters(server, tmp_path, bus)
            one, two, _ = await list_dead(bus)
            before = (await bus.js.stream_info(topology.EVENTS)).state.messages
            await asyncio.gather(*(replay(bus, one) for _ in range(3)))
            with monkeypatch.context() as patch:

                async def killed(*_: object) -> None:
                    raise ZeroDivisionError

                patch.setattr("llamaduo.bus.dead_letters._remove", killed)
                with pytest.raises(ZeroDivisionError):
                    await replay(bus, two)
            await replay(bus, two)
            assert (await bus.js.stream_info(topology.EVENTS)).state.messages == before + 2
            assert [dead.consumer for dead in await list_dead(bus)] == ["trainer"]
            assert sorted(trace.id for trace in await traces(bus)) == sorted([one.id, two.id])
            with pytest.raises(UserInputError, match="was put back"):
                await find_dead(bus, one.id)


async def test_a_letter_with_odd_headers_is_listed_all_the_same(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path) as bus:
            odd = {"llamaduo-attempts": "many", "llamaduo-error": "no JSON", "llamaduo-bytes": "-1"}
            await bus.publish_dead_letter("c", "x", b"\xff", odd | {"Nats-Msg-Id": "odd"})
            [letter] = await list_dead(bus)
            assert (letter.attempts, letter.error, letter.subject, letter.cut_from) == (0, "no JSON", "c.x", None)
