"""Dead letters: look at them, put them back, or drop them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError
from pydantic import BaseModel, ValidationError

from llamaduo.bus.connection import Bus, header_bytes
from llamaduo.bus.kv import KeyConflict
from llamaduo.bus.topology import DEAD_LETTER_PREFIX, DEAD_LETTERS
from llamaduo.bus.work import Record
from llamaduo.errors import UserInputError
from llamaduo.event_parts import CallCounts
from llamaduo.events import MIGRATION_PATTERN, AnyEvent, WorkFailed
from llamaduo.identity import identity

TRACE = "llamaduo-trace"
"""The header that tells a trace from a dead letter."""
PUBLISHED_AT = "llamaduo-at"
"""Header of a letter that was restored from a backup: when it was first stored."""
GONE_ALREADY = (10037, 10057)
"""What the server says of a message that is not there to be deleted."""
LONGEST_HEADER = 512
MOST_HEADERS = 16
"""Of the message's own headers, which whoever sent it could make as long as a message may be."""


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
    log_seq: int
    """Where the message stands in the log."""
    cut_from: int | None = None
    """Bytes of the whole body, where it was too large to be kept; None: `body` is all of it."""


class Trace(BaseModel):
    """What became of a dead letter that is gone."""

    id: str
    what: Literal["put back", "dropped"]
    by: str
    at: datetime
    subject: str
    consumer: str
    migration: str
    error: str


class LetterGone(UserInputError):
    """A dead letter that was put back or dropped before."""

    def __init__(self, trace: Trace) -> None:
        who = f" by {trace.by}" if trace.by else ""
        super().__init__(f"dead letter {trace.id} was {trace.what}{who} at {trace.at:%Y-%m-%d %H:%M:%S} UTC")
        self.trace = trace


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
    given = {
        name: value for name, value in (message.headers or {}).items() if len(name) + len(value) < LONGEST_HEADER
    }
    letter = hashlib.sha256(
        f"{meta.stream}\n{meta.sequence.stream}\n{meta.timestamp.isoformat()}\n{meta.consumer}".encode()
    ).hexdigest()[:32]
    migration = event.migration if event else given.get("llamaduo-migration", "")
    if not re.fullmatch(MIGRATION_PATTERN, migration):
        migration = "unknown"
    kept = [(name, value) for name, value in given.items() if not name.startswith(("Nats-", "llamaduo-"))]
    headers = {
        **dict(kept[:MOST_HEADERS]),
        "llamaduo-migration": migration,
        "Nats-Msg-Id": f"dead:{letter}",
        "llamaduo-dead-letter": letter,
        "llamaduo-subject": message.subject,
        "llamaduo-consumer": meta.consumer,
        "llamaduo-error": json.dumps(reason[:2000]),
        "llamaduo-attempts": str(tries),
        "llamaduo-seq": str(meta.sequence.stream),
    }
    body = message.data
    room = bus.client.max_payload - header_bytes(headers) - LONGEST_HEADER
    if len(body) > room:
        headers["llamaduo-bytes"] = str(len(body))
        body = body[:room]
    await bus.publish_dead_letter(meta.consumer, message.subject, body, headers)
    failed = WorkFailed(
        migration=migration,
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


async def _stored(bus: Bus) -> list[Msg]:
    """Every message of the dead letters' stream, oldest first."""
    state = (await bus.js.stream_info(DEAD_LETTERS)).state
    if state.messages == 0:
        return []
    config = ConsumerConfig(
        deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, inactive_threshold=30, mem_storage=True
    )
    info = await bus.js.add_consumer(DEAD_LETTERS, config)
    sub = await bus.js.pull_subscribe_bind(consumer=info.name, stream=DEAD_LETTERS)
    found: list[Msg] = []
    try:
        while len(found) < state.messages:
            found += await sub.fetch(256, timeout=5)
    except TimeoutError:
        pass  # somebody dropped some meanwhile
    await sub.unsubscribe()
    return found


async def list_dead(bus: Bus) -> list[DeadLetter]:
    """All dead letters, oldest first."""
    return [_letter(message) for message in await _stored(bus) if TRACE not in (message.headers or {})]


def _letter(message: Msg) -> DeadLetter:
    """Whoever may store dead letters may have written what he liked in their headers."""
    headers = message.headers or {}
    error = headers.get("llamaduo-error", "")
    with contextlib.suppress(ValueError):
        error = str(json.loads(error))
    return DeadLetter(
        id=headers.get("llamaduo-dead-letter", ""),
        seq=message.metadata.sequence.stream,
        subject=headers.get("llamaduo-subject", message.subject.removeprefix(DEAD_LETTER_PREFIX)),
        consumer=headers.get("llamaduo-consumer", ""),
        migration=headers.get("llamaduo-migration", ""),
        error=error,
        attempts=_number(headers.get("llamaduo-attempts")) or 0,
        at=_time(headers.get(PUBLISHED_AT)) or message.metadata.timestamp,
        body=message.data,
        log_seq=_number(headers.get("llamaduo-seq")) or 0,
        cut_from=_number(headers.get("llamaduo-bytes")),
    )


def _time(text: str | None) -> datetime | None:
    with contextlib.suppress(ValueError):
        time = datetime.fromisoformat(text or "")
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch("[0-9]{1,18}", text) else None


async def traces(bus: Bus) -> list[Trace]:
    """What became of the dead letters that are gone, oldest first."""
    found = []
    for message in await _stored(bus):
        if TRACE in (message.headers or {}):
            with contextlib.suppress(ValidationError):
                found.append(Trace.model_validate_json(message.data))
    return found


async def find_dead(bus: Bus, letter: str) -> DeadLetter:
    """One dead letter by id or the beginning of it. UserInputError if none or several match, or it is gone."""
    found = [dead for dead in await list_dead(bus) if dead.id.startswith(letter)] if letter else []
    if len(found) == 1:
        return found[0]
    if not found and letter:
        gone = [trace for trace in await traces(bus) if trace.id.startswith(letter)]
        if gone:
            raise LetterGone(gone[-1])
    many = f"{len(found)} dead letters begin" if found else "no dead letter begins"
    raise UserInputError(f"{many} with {letter!r}", hint="see `llamaduo dlq list`")


async def replay(bus: Bus, dead: DeadLetter, by: str = "") -> None:
    """Put the message back on its subject, free its job for as many tries again, and drop the letter.

    However often it is asked for, at once or after a kill: the log has it once. UserInputError where the log
    has no such message.
    """
    body = await _original(bus, dead)
    await _free_job(bus, dead)
    again = identity("replay", dead.id, dead.seq)
    headers = {"Nats-Msg-Id": f"replay:{again}", "content-type": "application/json"}
    if dead.migration:
        headers["llamaduo-migration"] = dead.migration
    await bus.republish(dead.subject, body, headers)
    await _remove(bus, dead, "put back", by)


async def drop(bus: Bus, dead: DeadLetter, by: str = "") -> None:
    """Delete a dead letter; a trace of it stays as long as it would have."""
    await _remove(bus, dead, "dropped", by)


async def _remove(bus: Bus, dead: DeadLetter, what: Literal["put back", "dropped"], by: str) -> None:
    shown = dead.error[:200]
    trace = Trace(
        id=dead.id, what=what, by=by, at=datetime.now(UTC), subject=dead.subject, consumer=dead.consumer,
        migration=dead.migration, error=shown,
    )  # fmt: skip
    headers = {"Nats-Msg-Id": f"trace:{identity(dead.id, dead.seq)}", TRACE: what}
    await bus.publish_dead_letter("gone", what.replace(" ", "-"), trace.model_dump_json().encode(), headers)
    try:
        await bus.js.delete_msg(DEAD_LETTERS, dead.seq)
    except APIError as error:
        if error.err_code not in GONE_ALREADY:
            raise


async def _original(bus: Bus, dead: DeadLetter) -> bytes:
    """The body of the message, as the log has it: any evaluator may write dead letters.

    UserInputError where the log has no such message.
    """
    stored = await bus.stored(dead.log_seq) if dead.log_seq else None
    if stored is not None and stored.subject == dead.subject and stored.body.startswith(dead.body):
        whole = len(dead.body) if dead.cut_from is None else dead.cut_from
        if len(stored.body) == whole:
            return stored.body
    raise UserInputError(
        f"the log has no such message as dead letter {dead.id} holds", hint="`llamaduo dlq drop` removes it"
    )


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
