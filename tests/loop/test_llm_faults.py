"""A service LLM that refuses, fails, cuts off, mumbles and says nothing: the loop completes and counts each."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from llamaduo.events import MigrationCompleted
from llamaduo.migrations.report import build_report
from llamaduo.service_llm.call import KEY_PREFIX
from llamaduo.service_llm.ledger import LedgerEntry
from tests.loop.test_loop import all_services, emulator, ended, spec_of, submit
from tests.support import connected, nats_server, serving, until

TWO_PERCENT = {
    "rate_429": 0.02,
    "error_rate": 0.02,
    "cut_rate": 0.02,
    "malformed_rate": 0.02,
    "refusal_rate": 0.02,
    "empty_rate": 0.02,
    "odd_rate": 0.02,
}


async def test_with_two_percent_of_every_fault_it_completes_and_each_is_counted(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path) as bus, emulator(**TWO_PERCENT, retry_after_s=0, seed=3) as url:
            async with serving(*all_services(server, tmp_path)):
                migration = await submit(bus, spec_of(url))
                view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
                assert isinstance(view.ended, MigrationCompleted), view.ended
            async with aiohttp.ClientSession() as http:
                provider = await (await http.get(url.removesuffix("/v1") + "/emulator/ledger")).json()
            stored = await bus.bucket("ledger")
            entries = [await stored.get(key) for key in await stored.keys(KEY_PREFIX)]
    totals, spoiled = provider["totals"], provider["totals"]["spoiled"]
    answers = [LedgerEntry.model_validate_json(one.value).answer for one in entries if one is not None]
    assert sum(answer is not None for answer in answers) == totals["completed"], "nothing that was paid is lost"
    assert all(count["completed"] <= 1 for count in provider["keys"].values()), "and nothing was bought twice"

    calls = build_report(view, datetime.now(UTC)).calls
    withdrawn = totals["completed"] - calls.made  # marks that nobody waited for when the migration was decided
    assert 0 <= withdrawn < 60
    counted = {
        "limited": (calls.limited, totals["refused_429"]),
        "failed": (calls.failed, totals["refused_429"] + totals["failed_500"]),
        "refused": (calls.refused, spoiled["refused"]),
        "cut": (calls.cut, spoiled["cut"]),
        "empty": (calls.empty, spoiled["empty"]),
    }
    for name, (ours, theirs) in counted.items():
        assert 0 < ours <= theirs and (withdrawn or ours == theirs), (name, ours, theirs, withdrawn)
    assert 0 < calls.odd <= spoiled["odd"] + spoiled["malformed"] + spoiled["cut"]
    assert 0 < calls.unreadable <= spoiled["empty"] + spoiled["malformed"] + spoiled["cut"]
    assert calls.rebought == 0
