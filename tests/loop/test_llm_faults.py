"""A service LLM that refuses, fails, cuts off, mumbles and says nothing: the loop completes and counts each."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from llamaduo.events import MigrationCompleted
from llamaduo.migrations.fold import MigrationView, fold
from llamaduo.migrations.report import build_report
from llamaduo.service_llm.call import KEY_PREFIX
from llamaduo.service_llm.ledger import LedgerEntry
from services.emulator.faults import draw_fault
from services.emulator.settings import EmulatorSettings
from tests.loop.test_loop import all_services, emulator, ended, log_of, spec_of, submit
from tests.support import connected, nats_server, serving, until

FAULTS: dict[str, Any] = {
    "rate_429": 0.02,
    "error_rate": 0.02,
    "cut_rate": 0.02,
    "malformed_rate": 0.02,
    "refusal_rate": 0.02,
    "empty_rate": 0.02,
    "odd_rate": 0.02,
    "seed": 3,
}


async def test_with_two_percent_of_every_fault_it_completes_and_each_is_counted(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path) as bus, emulator(**FAULTS, retry_after_s=0) as url:
            async with serving(*all_services(server, tmp_path)):
                migration = await submit(bus, spec_of(url))
                await until(lambda: ended(bus, migration), seconds=90, what="the end")

                async def all_told() -> tuple[MigrationView, dict[str, Any]] | None:
                    view, provider = fold(await log_of(bus, migration)), await ledger_of(url)
                    told = build_report(view, datetime.now(UTC)).calls.made
                    return (view, provider) if told == provider["totals"]["completed"] else None

                view, provider = await until(all_told, seconds=60, what="every call in the report")
            stored = await bus.bucket("ledger")
            entries = {key: await stored.get(key) for key in await stored.keys(KEY_PREFIX)}
    assert isinstance(view.ended, MigrationCompleted), view.ended
    totals, spoiled = provider["totals"], provider["totals"]["spoiled"]
    ours = {key: LedgerEntry.model_validate_json(one.value) for key, one in entries.items() if one is not None}
    assert sum(entry.answer is not None for entry in ours.values()) == totals["completed"], "nothing paid is lost"
    assert all(count["completed"] <= 1 for count in provider["keys"].values()), "and nothing was bought twice"

    calls = build_report(view, datetime.now(UTC)).calls
    assert (calls.made, calls.rebought) == (totals["completed"], 0)
    assert (calls.limited, calls.failed) == (totals["refused_429"], totals["refused_429"] + totals["failed_500"])
    assert (calls.refused, calls.cut, calls.empty) == (spoiled["refused"], spoiled["cut"], spoiled["empty"])
    typed = spoiled_json(provider, ours)
    assert calls.odd + calls.unreadable == sum(typed[kind] for kind in ("cut", "malformed", "odd", "empty"))
    assert calls.odd >= typed["odd"] and calls.unreadable >= typed["empty"]
    assert min(calls.limited, totals["failed_500"], calls.refused, calls.cut, calls.empty, typed["odd"]) > 0


async def ledger_of(url: str) -> dict[str, Any]:
    """The emulator's own count."""
    async with aiohttp.ClientSession() as http, http.get(url.removesuffix("/v1") + "/emulator/ledger") as answer:
        ledger: dict[str, Any] = await answer.json()
        return ledger


def spoiled_json(provider: dict[str, Any], ours: dict[str, LedgerEntry]) -> Counter[str]:
    """Faults of answers that were to be JSON. A reference answer is free text; a mark of 85.5 is one as asked for.

    What befell an answer follows from its key and from how often that arrived.
    """
    settings = EmulatorSettings(**FAULTS)
    found: Counter[str] = Counter()
    for key, entry in ours.items():
        fault = draw_fault(settings.fault_rates(), settings.seed, f"key {key}", provider["keys"][key]["arrived"])
        text = entry.answer.text if entry.answer else ""
        if not entry.purpose.startswith("reference") and (fault != "odd" or '/100"' in text or ' %"' in text):
            found[fault] += 1
    return found
