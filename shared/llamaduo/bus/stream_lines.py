"""Messages of a stream as lines of JSON, and the artifacts that they refer to."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nats.aio.msg import Msg
from pydantic import ValidationError

from llamaduo.event_parts import ArtifactRef

NO_LONGER_TRUE = "Nats-"
"""Headers that begin so are orders to the server that took the message: only its id is kept."""
MESSAGE_ID = "Nats-Msg-Id"


@dataclass(frozen=True)
class Line:
    """A stored message: its place, where and when it was published, headers and body."""

    seq: int
    subject: str
    at: datetime
    headers: dict[str, str]
    body: bytes


def line_of(message: Msg) -> Line:
    """A message as it came from its stream."""
    meta = message.metadata
    kept = {
        name: value
        for name, value in (message.headers or {}).items()
        if name == MESSAGE_ID or not name.startswith(NO_LONGER_TRUE)
    }
    return Line(meta.sequence.stream, message.subject, meta.timestamp, kept, message.data)


def encoded(line: Line) -> bytes:
    """One line of JSON, with its end. A body that is no text is in base64."""
    about: dict[str, Any] = {"seq": line.seq, "subject": line.subject, "at": line.at.isoformat()}
    if line.headers:
        about["headers"] = line.headers
    try:
        about["body"] = line.body.decode()
    except UnicodeDecodeError:
        about["base64"] = base64.b64encode(line.body).decode()
    return json.dumps(about, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


def decoded(raw: bytes) -> Line:
    """The message of a line. ValueError or KeyError if it is none."""
    about = json.loads(raw)
    body = base64.b64decode(about["base64"]) if "base64" in about else about["body"].encode()
    return Line(about["seq"], about["subject"], datetime.fromisoformat(about["at"]), about.get("headers", {}), body)


def references(body: bytes) -> list[ArtifactRef]:
    """Every artifact that a body refers to, also within JSON that is kept as text (results in a job's record)."""
    if b"sha256" not in body:
        return []
    try:
        return list(_within(json.loads(body)))
    except (ValueError, RecursionError):  # no event of ours
        return []


def _within(value: Any) -> Iterator[ArtifactRef]:
    if isinstance(value, dict):
        if {"uri", "sha256", "size"} <= value.keys():
            with contextlib.suppress(ValidationError):
                yield ArtifactRef.model_validate(value)
        for one in value.values():
            yield from _within(one)
    elif isinstance(value, list):
        for one in value:
            yield from _within(one)
    elif isinstance(value, str) and '"sha256"' in value:
        yield from references(value.encode())
