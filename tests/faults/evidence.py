"""What a run left behind, read raw: every message of the log, the buckets, the stored bytes, the emulator's count.

Nothing of the product is used here, so that a mistake of its readers cannot hide what it wrote.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from base64 import urlsafe_b64decode
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import nats
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

Json = dict[str, Any]
AT_ONCE = 64


@dataclass(frozen=True)
class Message:
    """One message of a stream; `at` is the server's time of it, in seconds since the epoch."""

    seq: int
    subject: str
    headers: dict[str, str]
    body: Json
    at: float


@dataclass
class Evidence:
    """All of it, at `taken` (seconds since the epoch)."""

    log: list[Message] = field(default_factory=list)
    dead: list[Message] = field(default_factory=list)
    buckets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """bucket -> key -> value"""
    objects: dict[str, tuple[str, int]] = field(default_factory=dict)
    """name -> SHA-256 and size of the bytes that are stored under it"""
    files: dict[str, bytes] = field(default_factory=dict)
    """name -> those bytes"""
    emulator: dict[str, dict[str, int]] = field(default_factory=dict)
    """idempotency key -> arrived and completed, by the emulator's own count"""
    taken: float = 0.0


async def gather(nats_url: str, emulator_url: str, *, patience: float = 9.0) -> Evidence:
    """Read everything, once no job is claimed any more or `patience` seconds have passed."""
    client = await nats.connect(nats_url, connect_timeout=5)
    try:
        js = client.jetstream(timeout=10)
        deadline = time.time() + patience
        while claimed(await _bucket(js, "work"), time.time()) and time.time() < deadline:
            await asyncio.sleep(0.2)
        found = Evidence(
            log=[_message(one) for one in await _all(js, "EVENTS")],
            dead=[_message(one) for one in await _all(js, "DEAD_LETTERS")],
            buckets={name: await _bucket(js, name) for name in ("work", "ledger", "budget")},
        )
        await _read_objects(js, found)
        async with aiohttp.ClientSession() as http, http.get(f"{emulator_url}/emulator/ledger") as answer:
            found.emulator = (await answer.json())["keys"]
        found.taken = time.time()
        return found
    finally:
        await client.close()


def claimed(work: dict[str, Any], now: float) -> list[str]:
    """Jobs that somebody says he has in hand."""
    return [key for key, record in work.items() if record["state"] == "running" and record["until"] > now]


async def _all(js: JetStreamContext, stream: str) -> list[RawStreamMsg]:
    """Every message there is, by its number."""
    state = (await js.stream_info(stream)).state
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> RawStreamMsg | None:
        async with room:
            try:
                return await js.get_msg(stream, number)
            except NotFoundError:
                return None

    numbers = range(state.first_seq, state.last_seq + 1) if state.messages else []
    return [message for message in await asyncio.gather(*map(one, numbers)) if message is not None]


async def _newest(js: JetStreamContext, stream: str, prefix: str) -> dict[str, bytes]:
    """The newest message of each subject, by what follows `prefix`."""
    subjects = (await js.stream_info(stream, subjects_filter=f"{prefix}>")).state.subjects or {}
    room = asyncio.Semaphore(AT_ONCE)

    async def one(subject: str) -> tuple[str, bytes]:
        async with room:
            message = await js.get_last_msg(stream, subject)
            return subject.removeprefix(prefix), message.data or b""

    return dict(await asyncio.gather(*map(one, subjects)))


async def _bucket(js: JetStreamContext, name: str) -> dict[str, Any]:
    stored = await _newest(js, f"KV_{name}", f"$KV.{name}.")
    return {key: json.loads(value) for key, value in stored.items() if value}


async def _read_objects(js: JetStreamContext, found: Evidence) -> None:
    chunks: dict[str, list[bytes]] = {}
    for message in await _all(js, "OBJ_artifacts"):
        subject = str(message.subject)
        if subject.startswith("$O.artifacts.C."):
            chunks.setdefault(subject.removeprefix("$O.artifacts.C."), []).append(message.data or b"")
    for name, value in (await _newest(js, "OBJ_artifacts", "$O.artifacts.M.")).items():
        body = b"".join(chunks.get(json.loads(value)["nuid"], []))
        key = urlsafe_b64decode(name).decode()
        found.objects[key] = (hashlib.sha256(body).hexdigest(), len(body))
        found.files[key] = body


def _message(raw: RawStreamMsg) -> Message:
    assert raw.time is not None
    return Message(
        seq=int(raw.seq or 0),
        subject=str(raw.subject),
        headers=dict(raw.headers or {}),
        body=json.loads(raw.data or b"{}"),
        at=raw.time.timestamp(),
    )
