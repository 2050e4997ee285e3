"""The whole loop on a real server: every service for real, training and generation by their plain fakes."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llamaduo.artifacts import put_bytes, read_bytes
from llamaduo.bus.connection import Bus
from llamaduo.cli.submission import migration_id
from llamaduo.coverage_files import read_coverage
from llamaduo.datasets import dump_rows, load_rows
from llamaduo.events import (
    AdapterTrained,
    AnyEvent,
    EvalFailed,
    EvalPassed,
    EvalScored,
    MigrationCompleted,
    MigrationRequested,
)
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.report import marks_so_far
from llamaduo.migrations.spec import MigrationSpec
from services.emulator.app import make_app, start
from services.emulator.ledger import Ledger
from services.emulator.settings import EmulatorSettings
from services.inference.app import build as inference
from services.inference.settings import InferenceSettings
from services.judge.app import build as judge
from services.judge.settings import JudgeSettings
from services.synthesizer.app import build as synthesizer
from services.synthesizer.settings import SynthesizerSettings
from services.trainer.app import build as trainer
from services.trainer.settings import TrainerSettings
from services.verdict.app import build as verdict
from services.verdict.settings import VerdictSettings
from tests.support import ROOT, NatsServer, connected, nats_server, serving, until

TICKETS = ROOT / "examples" / "support-triage" / "tickets.jsonl"


def spec_of(emulator: str, **changes: Any) -> MigrationSpec:
    """The demo's spec, with the emulator as its service LLM."""
    return MigrationSpec.model_validate(
        {
            "name": "triage",
            "coverage": str(TICKETS),
            "base_model": "fake",
            "service_llm": {"model": "openai:scripted-teacher", "base_url": emulator, "requests_per_minute": 60_000},
            "gate": {"absolute": {"exact-match.exact": 0.7}},
            "evaluators": ["exact-match", {"name": "llm-judge", "role": "advisory"}],
            "splits": {"train": 30, "validation": 24, "test": 200, "holdout": 50},
            "recipe": {"steps": 5},
            **changes,
        }
    )


async def submit(bus: Bus, spec: MigrationSpec) -> str:
    """What `llamaduo migrate` does."""
    rows = read_coverage(Path(spec.coverage))
    ref = await put_bytes(await bus.artifacts(), dump_rows(rows), "application/x-ndjson")
    migration = migration_id(spec, rows, 1)
    await bus.publish(MigrationRequested(migration=migration, spec=spec.model_dump(mode="json"), coverage=ref))
    return migration


async def log_of(bus: Bus, migration: str) -> list[AnyEvent]:
    return [e.event async for e in bus.log(follow=False) if e.event.migration == migration]


async def ended(bus: Bus, migration: str) -> MigrationView | None:
    log = await log_of(bus, migration)
    view = fold(log) if log else None
    return view if view is not None and view.ended is not None else None


@asynccontextmanager
async def emulator(**settings: Any) -> AsyncIterator[str]:
    """The emulator on a free port; its URL."""
    runner, port = await start(make_app(EmulatorSettings(**settings), Ledger()), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        await runner.cleanup()


def all_services(server: NatsServer, folder: Path) -> list[Any]:
    common: dict[str, Any] = {"nats_url": server.url, "profile": "faults", "log_level": "WARNING"}

    def of(name: str) -> dict[str, Any]:
        return {**common, "replica": name, "state_dir": folder / name}

    return [
        verdict(VerdictSettings(**of("verdict"))),
        synthesizer(SynthesizerSettings(**of("synthesizer"))),
        trainer(TrainerSettings(**of("trainer"), training_engine="fake")),
        inference(InferenceSettings(**of("inference"), inference_engine="fake")),
        judge(JudgeSettings(**of("exact"), evaluator="exact-match")),
        judge(JudgeSettings(**of("llm"), evaluator="llm-judge")),
    ]


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with nats_server(tmp_path / "nats") as running:
        yield running


async def test_a_failed_verdict_sets_off_the_round_that_passes(server: NatsServer, tmp_path: Path) -> None:
    async with connected(server, tmp_path) as bus, emulator() as url, serving(*all_services(server, tmp_path)):
        migration = await submit(bus, spec_of(url))
        view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
        assert isinstance(view.ended, MigrationCompleted), view.ended
        assert isinstance(view.decision(0), EvalFailed)
        assert isinstance(view.passed, EvalPassed)
        data = view.dataset(view.passed.round)
        assert data is not None and data.added == 150 and data.rows["train"] == 30 + 150 * view.passed.round
        once = Counter(type(e).__name__ + str(e.job_key()) for e in view.events.values())
        assert set(once.values()) == {1}
        assert {e.evaluator for e in view.of_type(EvalScored)} == {"exact-match", "llm-judge"}
        copied = marks_so_far(view, "nearest", "test")
        assert copied["exact-match"]["exact"].n == 200 and "llm-judge" not in copied
        assert view.alias is not None and view.alias.alias == "triage"
        assert len(view.of_type(AdapterTrained)) == view.passed.round + 1
        weak = {one.row for one in view.of_type(AdapterTrained)[0].weak}
        train = load_rows(await read_bytes(await bus.artifacts(), data.splits["train"]))
        assert weak & {seed for row in train if row.lineage for seed in row.lineage.seeds}, (
            "examples of the next round"
        )
        async with aiohttp.ClientSession() as http:
            ledger = await (await http.get(url.removesuffix("/v1") + "/emulator/ledger")).json()
        made = sum(getattr(e, "calls", None).made for e in view.events.values() if hasattr(e, "calls"))  # type: ignore[union-attr]
        assert made > 200 and ledger, (made, ledger)


async def test_a_provider_is_a_setting(server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same spec with another URL, model name and key runs unchanged, and the key is checked."""
    monkeypatch.setenv("ANOTHER_KEY", "sk-right")
    async with (
        connected(server, tmp_path) as bus,
        emulator(api_key="sk-right", model_name="other-model") as url,
        serving(*all_services(server, tmp_path)),
    ):
        llm = {
            "model": "openai:other-model",
            "base_url": url,
            "api_key_env": "ANOTHER_KEY",
            "requests_per_minute": 60_000,
        }
        migration = await submit(bus, spec_of(url, service_llm=llm))
        view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
        assert isinstance(view.ended, MigrationCompleted), view.ended
        assert "sk-right" not in "".join(e.model_dump_json() for e in view.events.values())
        assert os.environ["ANOTHER_KEY"] == "sk-right"
        await asyncio.sleep(0)
