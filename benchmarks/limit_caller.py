"""One replica of `limits`, as a process: asks the service LLM as fast as it may. Orders on stdin, sends on stdout.

`{"began": …, "kind": "answered" | …}` is written for each request as it ends, so a killed replica has told all but
what was in flight.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path

from pydantic import BaseModel

from llamaduo.bus.connection import Bus
from llamaduo.errors import BudgetExhausted, LlamaDuoError
from llamaduo.migrations.spec import Budgets, ServiceLLM
from llamaduo.service_llm import Call, ProviderSender, Reply, SendFailed, ServiceLLMClient
from llamaduo.settings import BusSettings


class Orders(BaseModel):
    """What one replica does. Times are seconds since the epoch; `calls` ends it as well as `ends`."""

    nats_url: str
    state_dir: Path
    name: str
    migration: str
    llm: ServiceLLM
    budgets: Budgets = Budgets()
    begins: float
    ends: float
    calls: int = 1_000_000
    prompt_characters: int = 0
    max_tokens: int = 64


def _tell(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class _Timed(ProviderSender):
    """Tells when each request was sent and what came of it."""

    async def __call__(self, call: Call, idempotency_key: str) -> Reply:
        began, kind = time.time(), "unknown"
        try:
            reply = await super().__call__(call, idempotency_key)
            kind = "answered"
            return reply
        except SendFailed as failure:
            kind = failure.kind
            raise
        finally:
            _tell(began=began, kind=kind)


async def run(orders: Orders) -> None:
    """Ask until the time, the calls or the budget is over."""
    settings = BusSettings(nats_url=orders.nats_url, profile="faults", state_dir=orders.state_dir)
    bus = await Bus.connect(settings, orders.name, wait=True)
    sender = _Timed()
    sender.check(orders.llm)
    client = ServiceLLMClient(
        ledger=await bus.bucket("ledger"),
        budget=await bus.bucket("budget"),
        permits=await bus.bucket("permits"),
        replica=orders.name,
        send=sender,
    )
    numbers = itertools.islice(itertools.count(), orders.calls)

    def call(number: int) -> Call:
        text = f"Order A{number:04}: where is my parcel? ({orders.name})".ljust(orders.prompt_characters, ".")
        return Call(
            messages=[{"role": "user", "content": text}],
            llm=orders.llm,
            migration=orders.migration,
            job=f"job-{orders.name}",
            max_tokens=orders.max_tokens,
        )

    async def work() -> None:
        for number in numbers:
            if time.time() >= orders.ends:
                return
            try:
                await client.ask(call(number), orders.budgets)
            except BudgetExhausted:
                return
            except LlamaDuoError as error:
                _tell(error=str(error))

    await asyncio.sleep(max(0.0, orders.begins - time.time()))
    waiting = [asyncio.create_task(work()) for _ in range(orders.llm.concurrency)]
    _, late = await asyncio.wait(waiting, timeout=max(1.0, orders.ends - time.time()))
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    await client.close()
    await bus.close()


if __name__ == "__main__":
    asyncio.run(run(Orders.model_validate_json(sys.stdin.read())))
