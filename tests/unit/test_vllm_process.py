"""How vLLM is started, and that nothing of it is left when its parent is gone."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from llamaduo.errors import UserInputError
from services.inference import vllm_guard
from services.inference.engine import EngineNotReady
from services.inference.vllm_process import VllmOptions, VllmProcess, command_line, environment
from tests.support import until

# Two processes that take no notice of SIGTERM; each writes its id to a file. The second leaves the process group.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 2:
    subprocess.Popen([sys.executable, "-c", open(sys.argv[1] + ".py").read(), sys.argv[1], "x"])
else:
    os.setsid()
open(sys.argv[1] + f".{os.getpid()}", "w").close()
time.sleep(300)
"""


def options(tmp_path: Path, **changed: object) -> VllmOptions:
    given = {"python": tmp_path / "python", "model": tmp_path, "model_name": "base", "log": tmp_path / "vllm.log"}
    return VllmOptions(**{**given, **changed})  # type: ignore[arg-type]


def test_the_command_has_a_spare_adapter_slot_and_a_rank_vllm_knows(tmp_path: Path) -> None:
    command = command_line(options(tmp_path, max_adapters=3, max_rank=12), tmp_path / "s")
    given = dict(itertools.pairwise(command))
    assert (given["--max-loras"], given["--max-cpu-loras"], given["--max-lora-rank"]) == ("4", "4", "16")
    assert "--enforce-eager" in command
    assert "--enforce-eager" not in command_line(options(tmp_path, device="cuda"), tmp_path / "s")


def test_a_rank_vllm_cannot_serve_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="max_rank 600"):
        command_line(options(tmp_path, max_rank=600), tmp_path / "s")


def test_no_key_or_token_reaches_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "LLAMADUO_SERVICE_LLM_KEY", "PYTHONPATH"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    passed = environment(options(tmp_path))
    assert "secret" not in passed.values()
    assert passed["CUDA_VISIBLE_DEVICES"] == "1"


async def test_a_missing_environment_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(EngineNotReady, match="make setup"):
        await VllmProcess(options(tmp_path)).start()


async def test_a_server_that_dies_at_its_start_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho the model is broken >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(EngineNotReady, match=r"(?s)ended while it was starting.*the model is broken"):
        await VllmProcess(options(tmp_path)).start()


async def test_a_server_that_never_comes_up_is_given_up_and_gone(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 300\n")
    program.chmod(0o755)
    with pytest.raises(EngineNotReady, match="not ready after 1 s"):
        await VllmProcess(options(tmp_path, start_timeout_s=1.0)).start()
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def pids(tmp_path: Path) -> list[int]:
    return [int(path.suffix[1:]) for path in tmp_path.glob("mark.*") if path.suffix != ".py"]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def guard_command(tmp_path: Path) -> list[str]:
    # The grace time is for a server that ends by itself; this one does not.
    guard = (
        f"import sys; sys.path[:0] = [{str(Path(vllm_guard.__file__).parent)!r}]\n"
        "import vllm_guard; vllm_guard.GRACE_S = 0.3; sys.exit(vllm_guard.main(sys.argv[1:]))\n"
    )
    return [sys.executable, "-c", guard, sys.executable, str(tmp_path / "mark.py"), str(tmp_path / "mark")]


@pytest.fixture
def guarded(tmp_path: Path) -> subprocess.Popen[bytes]:
    """A stand-in for the service: a process that starts the guard, which runs two stubborn processes."""
    (tmp_path / "mark.py").write_text(STUBBORN)
    parent = (
        "import subprocess, sys, time\n"
        "guard = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(guard.pid, flush=True)\n"
        "time.sleep(300)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent, *guard_command(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: len(pids(tmp_path)) == 2)
    return process


def test_all_of_it_ends_when_the_parent_is_killed(guarded: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert all(is_running(pid) for pid in pids(tmp_path))
    guarded.kill()
    guarded.wait()
    wait_until(lambda: not any(is_running(pid) for pid in pids(tmp_path)))


def test_all_of_it_ends_when_the_guard_is_asked_to(guarded: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert guarded.stdout is not None
    os.kill(int(guarded.stdout.readline()), signal.SIGTERM)
    wait_until(lambda: not any(is_running(pid) for pid in pids(tmp_path)))
    guarded.kill()
    guarded.wait()


def test_all_of_it_ends_when_the_command_dies(guarded: subprocess.Popen[bytes], tmp_path: Path) -> None:
    first = min(pids(tmp_path), key=lambda pid: psutil.Process(pid).create_time())
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not any(is_running(pid) for pid in pids(tmp_path)))
    guarded.kill()
    guarded.wait()


def test_the_guard_ends_after_all_it_started(tmp_path: Path) -> None:
    (tmp_path / "mark.py").write_text(STUBBORN)
    guard = subprocess.Popen(
        guard_command(tmp_path), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_until(lambda: len(pids(tmp_path)) == 2)
    guard.terminate()
    assert guard.wait(20) == 1
    assert [pid for pid in pids(tmp_path) if psutil.pid_exists(pid)] == []


async def test_what_a_killed_guard_left_is_gone_when_stop_returns(tmp_path: Path) -> None:
    left = tmp_path / "left"
    program = tmp_path / "python"
    # The command dies with its guard; what it started does not.
    program.write_text(f"#!/bin/sh\nsleep 300 &\necho $! > {left}\nwait\n")
    program.chmod(0o755)
    server = VllmProcess(options(tmp_path))
    starting = asyncio.create_task(server.start())
    await until(lambda: _text(left), what="the command's child")
    _command, guard = psutil.Process(int(left.read_text())).parents()[:2]
    guard.kill()
    with pytest.raises(EngineNotReady, match="ended while it was starting"):
        await starting
    assert not is_running(int(left.read_text()))


async def _text(file: Path) -> str:
    return file.read_text().strip() if file.exists() else ""
