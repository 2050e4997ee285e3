"""What must hold of the running containers; tests/compose/lane.py starts them and calls this file by name."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
import yaml
from pydantic import SecretStr

from deploy.nats.users import password_variable
from llamaduo.bus.connection import Bus
from llamaduo.bus.topology import list_evaluators
from llamaduo.events import AnyEvent, EvalFailed, EvalPassed, EvalScored, MigrationCompleted
from llamaduo.migrations.fold import fold
from llamaduo.settings import BusSettings
from services.inference.app import build as inference
from services.inference.settings import InferenceSettings
from services.trainer.app import build as trainer
from services.trainer.settings import TrainerSettings
from tests.support import ROOT, serving, until

TICKETS = ROOT / "examples" / "support-triage" / "tickets.jsonl"


def as_user(user: str, folder: Path) -> dict[str, Any]:
    """Settings of a client that is this user of the bus."""
    lines = Path(os.environ["LLAMADUO_SMOKE_ENV_FILE"]).read_text().splitlines()
    passwords = dict(line.split("=", 1) for line in lines)
    return {
        "nats_url": os.environ["LLAMADUO_SMOKE_NATS"],
        "nats_user": user,
        "nats_password": SecretStr(passwords[password_variable(user)]),
        "state_dir": folder,
        "log_level": "WARNING",
    }


@asynccontextmanager
async def bus_of(user: str, folder: Path) -> AsyncIterator[Bus]:
    """The bus as this user sees it."""
    bus = await Bus.connect(BusSettings(**as_user(user, folder)), user)
    try:
        yield bus
    finally:
        await bus.close()


SPEC = {
    "name": "triage",
    "coverage": "tickets.jsonl",
    "base_model": "someone/small-model",
    "service_llm": {
        "model": "openai:scripted-teacher",
        "base_url": "http://emulator:8080/v1",
        "requests_per_minute": 60_000,
    },
    "gate": {"absolute": {"exact-match.exact": 0.7}},
    "evaluators": ["exact-match", "llm-judge"],
    "splits": {"train": 30, "validation": 24, "test": 200, "holdout": 50},
    "marking": {"shard_rows": 10, "wave_shards": 6},
    "recipe": {"steps": 5},
}
"""The demo's task; both evaluators must mark every shard that decides."""


def compose(*words: str, **environment: str) -> str:
    """What `docker compose` says."""
    command = [*json.loads(os.environ["LLAMADUO_SMOKE_COMPOSE"]), *words]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def submit(folder: Path) -> str:
    """`llamaduo migrate` in the CLI's container, which sees `folder`; the migration's id."""
    folder.mkdir()
    folder.chmod(0o755)  # the container's user is another one
    (folder / "migration.yaml").write_text(yaml.safe_dump(SPEC))
    (folder / "tickets.jsonl").write_bytes(TICKETS.read_bytes())
    words = ("run", "--rm", "--no-deps", "-T", "cli", "migrate", "--json", "migration.yaml")
    said = json.loads(compose(*words, LLAMADUO_FILES=str(folder)))
    assert said["new"] is True
    return str(said["migration"])


async def both_judges_wait(bus: Bus) -> bool:
    """Whether two replicas ask for shards: one that came late would find nothing left to share."""
    (judges,) = [info for info in await list_evaluators(bus.js) if info.name == "evaluator-llm-judge"]
    return (judges.num_waiting or 0) >= 2


async def log_of(bus: Bus, migration: str) -> list[AnyEvent]:
    return [e.event async for e in bus.log(follow=False) if e.event.migration == migration]


@pytest.mark.timeout(240)
async def test_the_loop_closes_and_two_judges_share_its_shards(tmp_path: Path) -> None:
    """Data, marks and decisions come from containers; training and answers from the plain fakes in this process."""
    local = [
        trainer(TrainerSettings(**as_user("trainer", tmp_path / "t"), training_engine="fake", fake_seconds=0.1)),
        inference(InferenceSettings(**as_user("inference", tmp_path / "i"), inference_engine="fake")),
    ]
    async with bus_of("operator", tmp_path) as bus, serving(*local):
        await until(lambda: both_judges_wait(bus), seconds=90, what="two judges that wait for work")
        migration = await asyncio.to_thread(submit, tmp_path / "files")

        async def the_end() -> list[AnyEvent] | None:
            log = await log_of(bus, migration)
            return log if fold(log).ended is not None else None

        log = await until(the_end, seconds=200, what="the end of the migration")
    view = fold(log)
    assert isinstance(view.ended, MigrationCompleted), view.ended
    assert isinstance(view.decision(0), EvalFailed)
    assert isinstance(view.passed, EvalPassed)

    marks = [event for event in log if isinstance(event, EvalScored)]
    assert set(Counter(event.id for event in marks).values()) == {1}, "a shard was marked twice"
    by_judge = Counter(event.source for event in marks if event.evaluator == "llm-judge" and not event.skipped)
    assert len(by_judge) == 2, f"the replicas did not share the shards: {by_judge}"
    assert min(by_judge.values()) >= 2, f"one replica did nearly all the work: {by_judge}"
    assert len({event.source for event in marks if event.evaluator == "exact-match"}) == 1


NOBODY_MAY = "nobody.may.publish.here"


async def is_refused(user: str, subject: str) -> bool:
    """Whether the server refuses what this user publishes on `subject`."""
    said: list[str] = []

    async def hear(error: Exception) -> None:
        said.append(str(error))

    settings = as_user(user, Path())
    client = await nats.connect(
        settings["nats_url"],
        user=user,
        password=settings["nats_password"].get_secret_value(),
        inbox_prefix=f"_INBOX_{user}".encode(),
        error_cb=hear,
    )
    await client.publish(subject, b"{}")
    # The server answers in order: once this refusal has come, one of the subject before it would have come too.
    await client.publish(NOBODY_MAY, b"{}")

    async def heard() -> bool:
        return any(NOBODY_MAY in line for line in said)

    await until(heard, seconds=10, what="the refusal that must come")
    await client.close()
    assert all("permissions violation" in line.lower() for line in said), said
    return any(f'"{subject}"'.lower() in line.lower() for line in said)


@pytest.mark.parametrize(
    ("user", "subject", "allowed"),
    [
        ("trainer", "adapter.trained.probe", False),
        ("trainer", "progress.trainer", True),
        ("trainer", "eval.passed", False),
        ("evaluator-llm-judge", "migration.completed", False),
        ("synthesizer", "$JS.API.STREAM.DELETE.EVENTS", False),
        ("synthesizer", "$JS.API.CONSUMER.MSG.NEXT.EVENTS.verdict", False),
        ("verdict", "$JS.ACK.EVENTS.trainer.1.1.1.1.1", False),
        ("verdict", "$JS.API.STREAM.INFO.EVENTS", True),
    ],
)
async def test_a_user_may_do_its_own_work_only(user: str, subject: str, allowed: bool) -> None:
    assert await is_refused(user, subject) is not allowed


def containers() -> list[Any]:
    """All running containers of the lane, as the engine describes them."""
    ids = compose("ps", "--quiet").split()
    found: list[Any] = json.loads(subprocess.run(["docker", "inspect", *ids], check=True, capture_output=True).stdout)
    return found


async def test_containers_are_confined_and_healthy() -> None:
    async def all_healthy() -> list[Any] | None:
        found = await asyncio.to_thread(containers)
        return found if all(c["State"]["Health"]["Status"] == "healthy" for c in found) else None

    by_service: dict[str, list[Any]] = {}
    for container in await until(all_healthy, seconds=60, what="all containers healthy"):
        by_service.setdefault(container["Config"]["Labels"]["com.docker.compose.service"], []).append(container)
    assert {name: len(them) for name, them in by_service.items()} == {
        "nats": 1, "verdict": 1, "synthesizer": 1, "judge": 2, "judge-exact": 1, "emulator": 1,
    }  # fmt: skip
    for name, them in by_service.items():
        for container in them:
            host = container["HostConfig"]
            assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and host["Memory"] > 0, name
            assert host["RestartPolicy"]["Name"] == "unless-stopped", name
            if name != "nats":
                assert container["Config"]["User"] == "10001:10001", name
                assert container["RestartCount"] == 0, name
