"""A real process, killed, leaves at most what it had in flight to be bought again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.limit_caller import Orders
from benchmarks.limits import caller, emulator, ledger_of, run_callers
from llamaduo.migrations.spec import Budgets, ServiceLLM
from llamaduo.service_llm import rebought
from llamaduo.service_llm.budget import spent
from tests.support import connected, nats_server, until

IN_FLIGHT = 8


async def test_killed_in_the_middle_it_buys_again_at_most_what_was_in_flight_and_lists_it(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server, emulator(tmp_path / "emulator", latency_ms=400) as url:
        async with connected(server, tmp_path) as bus:
            orders = Orders(
                nats_url=server.url,
                state_dir=tmp_path / "caller",
                name="caller",
                migration="m",
                llm=ServiceLLM(
                    model="openai:scripted-teacher", base_url=url, requests_per_minute=60_000, concurrency=IN_FLIGHT
                ),
                budgets=Budgets(calls=1_000),
                begins=0,
                ends=time.time() + 600,
                calls=40,
            )

            async def billed() -> dict[str, Any] | None:
                ledger = await ledger_of(url)
                return ledger if ledger["totals"]["completed"] >= 12 else None

            async with caller(orders) as process:
                await until(billed, what="twelve answers")
                process.kill()
                await process.wait()
            told = await run_callers([orders])
            assert all(line.get("kind") == "answered" for line in told), told

            keys = (await ledger_of(url))["keys"]
            assert len(keys) == 40
            assert all(count["completed"] in (1, 2) for count in keys.values())
            twice = {key for key, count in keys.items() if count["completed"] == 2}
            again = {key for key, count in keys.items() if count["arrived"] == 2}
            listed = {one.key for one in await rebought(await bus.bucket("ledger"), "m")}
            assert 0 < len(listed) <= IN_FLIGHT
            assert twice <= again <= listed
            record = await spent(await bus.bucket("budget"), "m")
            assert (record.settled.calls, record.held) == (40 + len(listed), {})
