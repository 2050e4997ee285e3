"""Child processes: started again after a death, stopped in time, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llamaduo.cli.nats_server import answers, configuration, free_port
from llamaduo.cli.processes import Program, Supervisor, tail

PYTHON = sys.executable


def program(folder: Path, script: str, grace_s: float = 5.0) -> Program:
    """A Python script as a child."""
    return Program(
        name="child",
        argv=[PYTHON, "-c", script],
        env=dict(os.environ) | {"HERE": str(folder), "PYTHONUNBUFFERED": "1"},
        log=folder / "child.log",
        port_file=folder / "child.port",
        grace_s=grace_s,
    )


async def until(ready: Callable[[], object], timeout: float = 15.0) -> None:
    """Poll until `ready()` is true."""
    async with asyncio.timeout(timeout):
        while not ready():
            await asyncio.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


WAITS = "import os, signal; open(os.environ['HERE'] + '/child.port', 'w').write('7'); signal.pause()"


async def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    changes: list[int | None] = []
    supervisor = Supervisor(changed=lambda: changes.append(next(iter(supervisor.children.values())).pid))
    child = await supervisor.start(program(tmp_path, WAITS))
    await until(lambda: child.port == 7)
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: child.restarts == 1 and child.port == 7)
    assert child.pid not in (None, first)
    assert child.last_code == -signal.SIGKILL
    await supervisor.stop(["child"])
    assert child.pid is None
    assert len(changes) >= 3


async def test_one_that_dies_at_once_is_not_started_in_a_hot_loop(tmp_path: Path) -> None:
    supervisor = Supervisor()
    child = await supervisor.start(program(tmp_path, "print('no use'); raise SystemExit(3)"))
    await until(lambda: child.quick_deaths >= 2)
    assert child.last_code == 3
    assert child.restarts <= 2
    await supervisor.stop(["child"])
    assert "no use" in tail(tmp_path / "child.log")


async def test_sigterm_is_given_time_and_then_the_whole_group_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "inner = subprocess.Popen([sys.executable, '-c', 'import signal; signal.signal(15, signal.SIG_IGN); "
        "signal.pause()'])\n"
        "open(os.environ['HERE'] + '/child.port', 'w').write(str(inner.pid))\n"
        "signal.pause()\n"
    )
    supervisor = Supervisor()
    child = await supervisor.start(program(tmp_path, script, grace_s=0.5))
    await until(lambda: child.port is not None)
    inner, began = child.port, time.monotonic()
    assert inner is not None
    await supervisor.stop(["child"])
    assert 0.4 < time.monotonic() - began < 5
    await until(lambda: not lives(inner))


async def test_a_good_child_leaves_by_itself(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "def leave(*_):\n"
        "    print('handed back'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "open(os.environ['HERE'] + '/child.port', 'w').write('7')\n"
        "while True: signal.pause()\n"
    )
    supervisor = Supervisor()
    child = await supervisor.start(program(tmp_path, script))
    await until(lambda: child.port == 7)
    await supervisor.stop(["child"])
    assert "handed back" in tail(tmp_path / "child.log")
    assert child.process is not None
    assert child.process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
async def test_killing_the_parent_leaves_no_child(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from tests.unit.test_cli_processes import WAITS, program\n"
        "from llamaduo.cli.processes import Supervisor\n"
        "async def main():\n"
        "    folder = Path(sys.argv[1])\n"
        "    child = await Supervisor().start(program(folder, WAITS))\n"
        "    (folder / 'pid').write_text(str(child.pid))\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = await asyncio.create_subprocess_exec(PYTHON, "-c", script, str(tmp_path), env=environment)
    await until(lambda: (tmp_path / "child.port").exists() and (tmp_path / "pid").exists())
    pid = int((tmp_path / "pid").read_text())
    assert lives(pid)
    parent.kill()
    await parent.wait()
    await until(lambda: not lives(pid))


async def test_a_program_that_is_not_there_says_so(tmp_path: Path) -> None:
    supervisor = Supervisor()
    missing = Program("child", ["/no/such/program"], {}, tmp_path / "child.log")
    child = await supervisor.start(missing)
    await until(lambda: child.quick_deaths >= 1)
    await supervisor.stop(["child"])
    assert child.last_code == 127
    assert "cannot start /no/such/program" in tail(tmp_path / "child.log")


def test_a_taken_port_is_not_chosen() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) != port


def test_the_bus_listens_on_loopback_and_syncs_every_write(tmp_path: Path) -> None:
    text = configuration(tmp_path / 'with "quotes"', 4333)
    assert "listen: 127.0.0.1:4333" in text
    assert "sync_interval: always" in text
    assert r"with \"quotes\"" in text


async def test_something_that_is_no_nats_server_does_not_count() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400\r\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert not await answers(f"nats://127.0.0.1:{port}")
    assert not await answers("nats://127.0.0.1:1")
    assert not await answers("nonsense")
    server.close()
