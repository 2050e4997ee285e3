"""The whole system in one process, on a real nats-server, with training and generation by fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.limits import ledger_of
from llamaduo.artifacts import put_bytes
from llamaduo.bus.connection import Bus
from llamaduo.bus.service import Service
from llamaduo.cli.submission import migration_id
from llamaduo.coverage_files import read_coverage
from llamaduo.datasets import dump_rows
from llamaduo.events import MigrationRequested
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.spec import MigrationSpec
from llamaduo.service_llm.call import KEY_PREFIX
from llamaduo.service_llm.ledger import LedgerEntry
from services.inference.app import build as inference
from services.inference.engines import MakeEngine
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
"""The demo's dataset, which the emulator can answer, judge and write more of."""


def services(
    server: NatsServer, folder: Path, evaluators: Sequence[str], make: MakeEngine | None = None
) -> list[Service]:
    """One replica of every service; `make` gives inference's engine, else it is the fake one."""

    def of(name: str) -> dict[str, Any]:
        common = {"nats_url": server.url, "profile": "faults", "log_level": "WARNING"}
        return {**common, "replica": name, "state_dir": folder / name}

    return [
        verdict(VerdictSettings(**of("verdict"))),
        synthesizer(SynthesizerSettings(**of("synthesizer"))),
        trainer(TrainerSettings(**of("trainer"), training_engine="fake")),
        inference(InferenceSettings(**of("inference"), inference_engine="fake"), make),
        *(judge(JudgeSettings(**of(f"judge-{name}"), evaluator=name)) for name in evaluators),
    ]


@asynccontextmanager
async def whole_system(folder: Path, evaluators: Sequence[str], make: MakeEngine | None = None) -> AsyncIterator[Bus]:
    """A bus with all services at work on it."""
    with nats_server(folder / "nats") as server:
        async with connected(server, folder) as bus, serving(*services(server, folder, evaluators, make)):
            yield bus


async def submit(bus: Bus, spec: MigrationSpec) -> str:
    """Ask for a migration as `llamaduo migrate` does; its id."""
    rows = read_coverage(Path(spec.coverage))
    ref = await put_bytes(await bus.artifacts(), dump_rows(rows), "application/x-ndjson")
    migration = migration_id(spec, rows, 1)
    await bus.publish(MigrationRequested(migration=migration, spec=spec.model_dump(mode="json"), coverage=ref))
    return migration


async def view_of(bus: Bus, migration: str) -> MigrationView:
    """What the log says of a migration now."""
    return fold([e.event async for e in bus.log(follow=False) if e.event.migration == migration])


async def ended(bus: Bus, migration: str, seconds: float) -> MigrationView:
    """The migration once it is over. AssertionError after so many seconds."""

    async def over() -> MigrationView | None:
        view = await view_of(bus, migration)
        return view if view.ended is not None else None

    return await until(over, seconds=seconds, what=f"the end of {migration}")


async def entries(bus: Bus) -> dict[str, LedgerEntry]:
    """All that our own ledger knows, by key: the provider was sent the same key."""
    ledger, found = await bus.bucket("ledger"), {}
    for key in await ledger.keys(KEY_PREFIX):
        if (stored := await ledger.get(key)) is not None:
            found[key] = LedgerEntry.model_validate_json(stored.value)
    return found


async def books(bus: Bus, url: str) -> tuple[dict[str, Any], dict[str, LedgerEntry]]:
    """The emulator's ledger and ours, once every answer that the first has given stands in the second.

    What a migration's end withdraws is on its way for a little longer. AssertionError if an answer stays away.
    """

    async def balanced() -> tuple[dict[str, Any], dict[str, LedgerEntry]] | None:
        provider, ours = await ledger_of(url), await entries(bus)
        totals = provider["totals"]
        at_rest = totals["arrived"] == totals["completed"] + totals["refused_429"] + totals["failed_500"]
        kept = sum(entry.answer is not None for entry in ours.values())
        return (provider, ours) if at_rest and kept == totals["completed"] else None

    return await until(balanced, seconds=60, what="every answer in our ledger")
