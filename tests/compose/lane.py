"""The compose lane: the light services as real containers from the real files, `--scale judge=2`, and a migration.

Builds, starts, runs tests/compose/smoke.py where the published port is, and always takes everything down again.
Without an engine it says why and leaves; with CI=true that is a failure. Use: python -m tests.compose.lane
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from deploy.make_env import main as make_env
from tests.compose.engine import ROOT, Engine, NoEngine, engine
from tests.support import free_port

PROJECT = "llamaduo-smoke"
SERVICES = ("nats", "bootstrap", "verdict", "synthesizer", "judge", "judge-exact", "emulator")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long a step took."""
    began = time.monotonic()
    try:
        yield
    finally:
        print(f"compose lane: {what}: {time.monotonic() - began:.1f} s", flush=True)


def compose_command(here: Engine, env_file: Path) -> list[str]:
    """`docker compose` on the real file, with the stand-ins where no registry is in reach."""
    files = ["docker-compose.yml", *(["tests/compose/docker-compose.offline.yml"] if here.offline else [])]
    given = [word for file in files for word in ("--file", file)]
    return ["docker", "compose", "--project-name", PROJECT, "--env-file", str(env_file), *given]


def run_lane(here: Engine, folder: Path) -> int:
    """Build, start, test, take down. Returns pytest's exit status, or 1 when a step before it failed."""
    env_file = folder / "smoke.env"
    make_env(env_file)
    port = free_port()
    environment = {**here.environment, "LLAMADUO_NATS_PORT": str(port), "PROGRESS_NO_TRUNC": "1"}
    compose = compose_command(here, env_file)

    def call(*words: str, prefix: tuple[str, ...] = (), check: bool = True) -> int:
        command = [*prefix, *compose, *words]
        return subprocess.run(command, cwd=ROOT, env=environment, check=check).returncode

    with timed("engine to build with"):
        here.enter_build()
    with timed("build"):
        call("--progress", "quiet", "build", *(name for name in SERVICES if name not in ("judge-exact",)))
    with timed("engine to run with"):
        here.enter_run()
    try:
        with timed("up"):
            pull = ["--pull", "never"] if here.offline else []
            call("up", "--detach", "--no-build", *pull, "--scale", "judge=2", *SERVICES)
        pytest = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider"]
        smoke = [*here.inside, *pytest, "tests/compose/smoke.py"]
        told = {
            "LLAMADUO_SMOKE_NATS": f"nats://127.0.0.1:{port}",
            "LLAMADUO_SMOKE_ENV_FILE": str(env_file),
            "LLAMADUO_SMOKE_COMPOSE": json.dumps(compose),
        }
        with timed("smoke tests"):
            status = subprocess.run(smoke, cwd=ROOT, env=environment | told, check=False).returncode
        if status != 0:
            call("ps", "--all", check=False)
            call("logs", "--no-color", "--tail", "60", check=False)
        return status
    except subprocess.CalledProcessError:
        call("ps", "--all", check=False)
        call("logs", "--no-color", "--tail", "60", check=False)
        raise
    finally:
        with timed("down"):
            call("--profile", "*", "down", "--volumes", "--timeout", "2", "--remove-orphans", check=False)


def leave(number: int, _frame: FrameType | None) -> None:
    """A signal ends the lane through its `finally`s."""
    raise SystemExit(128 + number)


def main() -> int:
    """Exit status: 0 passed, or no engine outside CI."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    try:
        with tempfile.TemporaryDirectory(prefix="llamaduo-smoke-") as folder, engine() as here:
            return run_lane(here, Path(folder))
    except NoEngine as reason:
        print(f"compose lane: skipped: {reason}")
        return 1 if os.environ.get("CI") == "true" else 0
    except subprocess.CalledProcessError as error:
        print(f"compose lane: failed: {' '.join(map(str, error.cmd))} gave {error.returncode}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
