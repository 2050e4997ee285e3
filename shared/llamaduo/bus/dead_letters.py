"""Dead letters: look at them, put them back, or drop them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from datetime import datetime

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from llamaduo.bus.connection import Bus
from llamaduo.bus.kv import KeyConflict
from llamaduo.bus.topology import DEAD_LETTERS
from llamaduo.bus.work import Record
from llamaduo.errors import UserInputError
from llamaduo.event_parts import CallCounts
from llamaduo.events import AnyEvent, WorkFailed
from llamaduo.identity import identity


@dataclass(frozen=True)
class DeadLetter:
    """A message that could not be worked on."""

    id: str
    seq: int
    subject: str
    consumer: str
    migration: str
    error: str
    attempts: int
    at: datetime
    body: bytes
    logged: int
    """Its place in the log."""


async def bury(
    bus: Bus,
    message: Msg,
    event: AnyEvent | None,
    *,
    reason: str,
    tries: int,
    source: str,
    calls: CallCounts | None = None,
) -> None:
    """Keep a message with its body and reason, and say so in the log. `event` is None where it is none of ours.

    The id holds stream, sequence number, time and consumer: a recreated stream counts from 1 again, and two
    consumers may give up on one message.
    """
    meta = message.metadata
    given = message.headers or {}
    letter = hashlib.sha256(
        f"{meta.stream}\n{meta.sequence.stream}\n{meta.timestamp.isoformat()}\n{meta.consumer}".encode()
    ).hexdigest()[:32]
    headers = {
        **{name: value for name, value in given.items() if not name.startswith("Nats-")},
        "Nats-Msg-Id": f"dead:{letter}",
        "llamaduo-dead-letter": letter,
        "llamaduo-subject": message.subject,
        "llamaduo-consumer": meta.consumer,
        "llamaduo-error": json.dumps(reason[:2000]),
        "llamaduo-attempts": str(tries),
        "llamaduo-seq": str(meta.sequence.stream),
    }
    await bus.publish_dead_letter(meta.consumer, message.subject, message.data, headers)
    failed = WorkFailed(
        migration=event.migration if event else given.get("llamaduo-migration", "unknown"),
        consumer=meta.consumer,
        subject=message.subject,
        job=event.id if event else "",
        error=reason[:2000],
        attempts=tries,
        dead_letter=letter,
        source=source,
        calls=calls or CallCounts(),
    )
    await bus.publish(failed)


async def list_dead(bus: Bus) -> list[DeadLetter]:
    """All dead letters, oldest first."""
    state = (await bus.js.stream_info(DEAD_LETTERS)).state
    if state.messages == 0:
        return []
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, inactive_threshold=30, mem_storage=True
    )
    info = await bus.js.add_consumer(DEAD_LETTERS, config)
    sub = await bus.js.pull_subscribe_bind(consumer=info.name, stream=DEAD_LETTERS)
    letters: list[DeadLetter] = []
    while len(letters) < state.messages:
        for message in await sub.fetch(256, timeout=5):
            headers = message.headers or {}
            letters.append(
                DeadLetter(
                    id=headers.get("llamaduo-dead-letter", ""),
                    seq=message.metadata.sequence.stream,
                    subject=headers.get("llamaduo-subject", message.subject),
                    consumer=headers.get("llamaduo-consumer", ""),
                    migration=headers.get("llamaduo-migration", ""),
                    error=json.loads(headers.get("llamaduo-error", '""')),
                    attempts=int(headers.get("llamaduo-attempts", "0")),
                    at=message.metadata.timestamp,
                    body=message.data,
                    logged=int(headers.get("llamaduo-seq", "0")),
                )
            )
    await sub.unsubscribe()
    return letters


async def find_dead(bus: Bus, letter: str) -> DeadLetter:
    """One dead letter by id or the beginning of it. UserInputError if none or several match."""
    found = [dead for dead in await list_dead(bus) if dead.id.startswith(letter)]
    if len(found) != 1:
        raise UserInputError(f"{len(found)} dead letters begin with {letter!r}", hint="see `llamaduo dlq list`")
    return found[0]


async def replay(bus: Bus, dead: DeadLetter) -> None:
    """Put the message back on its subject, free its job for as many tries again, and drop the letter.

    UserInputError where the log has no such message: any evaluator may write letters, and the operator's word counts.
    """
    original = await bus.stored(dead.logged) if dead.logged else None
    if original is None or (original.subject, original.body) != (dead.subject, dead.body):
        raise UserInputError(
            f"the log has no such message as dead letter {dead.id} holds", hint="`llamaduo dlq drop` removes it"
        )
    await _free_job(bus, dead)
    again = identity("replay", dead.id, dead.seq)
    headers = {"Nats-Msg-Id": f"replay:{again}", "content-type": "application/json"}
    if dead.migration:
        headers["llamaduo-migration"] = dead.migration
    await bus.republish(dead.subject, dead.body, headers)
    await drop(bus, dead)


async def _free_job(bus: Bus, dead: DeadLetter) -> None:
    try:
        event_id = json.loads(dead.body)["id"]
    except (ValueError, KeyError, TypeError):
        return
    bucket = await bus.bucket("work")
    key = f"{dead.consumer}.{event_id}"
    while (entry := await bucket.get(key)) is not None:
        record = Record.model_validate_json(entry.value)
        if record.state == "done":
            return
        fresh = record.model_copy(update={"state": "free", "until": 0.0, "releases": record.starts})
        with contextlib.suppress(KeyConflict):  # whoever gave it up may be writing that down just now
            await bucket.update(key, fresh.model_dump_json().encode(), entry.revision)
            return


async def drop(bus: Bus, dead: DeadLetter) -> None:
    """Delete a dead letter."""
    try:
        await bus.js.delete_msg(DEAD_LETTERS, dead.seq)
    except NotFoundError as error:
        raise UserInputError(f"dead letter {dead.id} is gone already") from error
