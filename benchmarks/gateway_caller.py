"""An application, as a process: so many requests a second whatever the answers take. Orders on stdin.

On stdout an empty line when it begins, and at the end one JSON list: of each request when it was sent and how long it
took, in seconds, its status (0: none), and who served it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import aiohttp
from pydantic import BaseModel


class CallerOrders(BaseModel):
    """Which model is asked where, how often in a second, and how often in all."""

    url: str
    model: str
    per_second: float
    requests: int


class Asked(BaseModel):
    """One request; `at` is in seconds since the epoch."""

    at: float
    seconds: float
    status: int
    served_by: str = ""


PROMPT = "Where is my parcel? Order A4821, I am at ann@example.org or +49 171 2345678. " * 8


async def run(orders: CallerOrders) -> list[Asked]:
    """Send each request at its time."""
    done: list[Asked] = []
    begins = time.time() + 0.2
    sys.stdout.write("\n")
    sys.stdout.flush()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as http:

        async def one(number: int) -> None:
            due = begins + number / orders.per_second
            await asyncio.sleep(max(0.0, due - time.time()))
            messages = [{"role": "user", "content": f"{number}: {PROMPT}"}]
            body = json.dumps({"model": orders.model, "messages": messages}).encode()
            headers = {"Content-Type": "application/json"}
            at, began = time.time(), time.perf_counter()
            status, served_by = 0, ""
            try:
                async with http.post(f"{orders.url}/chat/completions", data=body, headers=headers) as answer:
                    await answer.read()
                    status, served_by = answer.status, answer.headers.get("x-llamaduo-served-by", "")
            except (aiohttp.ClientError, OSError):
                pass
            done.append(Asked(at=at, seconds=time.perf_counter() - began, status=status, served_by=served_by))

        await asyncio.gather(*(one(number) for number in range(orders.requests)))
    return done


if __name__ == "__main__":
    told = asyncio.run(run(CallerOrders.model_validate_json(sys.stdin.read())))
    sys.stdout.write(json.dumps([one.model_dump() for one in told]))
