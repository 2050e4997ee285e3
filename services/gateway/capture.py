"""What was asked and answered, as rows of traffic: sampled, redacted, in the spool before the answer ends."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.gateway.assembling import Assembled
from services.gateway.metrics import CAPTURED
from services.gateway.redaction import Rule, redacted
from services.gateway.spool import Spool, SpoolFull
from services.gateway.upstream import Target

log = logging.getLogger(__name__)

ASKED = ("messages", "tools", "tool_choice", "response_format")
ANSWERED = ("choices", "usage", "model")
LARGE_BYTES = 64 * 1024
"""Of a request and its answer together; what is larger is redacted in a thread, so that others' answers go on."""
NO_ANSWER = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class CaptureRules:
    """What of an alias's traffic is kept: this share of all requests, and these rules on what is replaced in it."""

    sample: float = 1.0
    redaction: Sequence[Rule] = ()
    most_bytes: int = 1024 * 1024


def sampled(request_id: str, share: float) -> bool:
    """Whether a request belongs to the sample; the same for all that is kept of it."""
    digest = hashlib.sha256(f"sample\n{request_id}".encode()).hexdigest()
    return int(digest[:13], 16) < share * 16**13


@dataclass(frozen=True)
class Recorder:
    """Records the answers to one request. `shadow_of` is the request whose answer another model has given."""

    spool: Spool
    rules: CaptureRules
    alias: str
    request_id: str
    asked: dict[str, Any]
    shadow_of: str | None = None

    def begin(self, target: Target, *, streamed: bool) -> CapturedAnswer:
        """An answer of status 200 begins to come."""
        return CapturedAnswer(self, target, streamed)


class CapturedAnswer:
    """One answer on its way. Nothing here raises: an answer is worth more than its record."""

    def __init__(self, recorder: Recorder, target: Target, streamed: bool) -> None:
        self._recorder, self._target, self._streamed = recorder, target, streamed
        self._assembled, self._parts = Assembled(), list[bytes]()
        self._size = 0
        self._problem = ""

    def add(self, part: bytes) -> None:
        """The next bytes of it."""
        self._size += len(part)
        if self._problem:
            return
        if self._size > self._recorder.rules.most_bytes:
            self._problem = "too_large"
        elif not self._streamed:
            self._parts.append(part)
        else:
            try:
                self._assembled.add(part)
            except NO_ANSWER:
                self._problem = "unreadable"

    def finish(self) -> Awaitable[None] | None:
        """It is whole: written before this returns, or once what this gives was awaited."""
        if not self._problem and self._size > LARGE_BYTES:
            return asyncio.to_thread(self._keep)
        self._keep()
        return None

    def _keep(self) -> None:
        alias = self._recorder.alias
        outcome = self._problem or self._kept()
        CAPTURED.labels(alias, outcome).inc()

    def _kept(self) -> str:
        try:
            body = self._assembled.body() if self._streamed else json.loads(b"".join(self._parts))
            if body is None:
                return "not_whole"
            line = row_line(self._recorder, self._target, body)
        except NO_ANSWER:
            return "unreadable"
        try:
            self._recorder.spool.write(self._recorder.alias, line)
        except SpoolFull:
            return "spool_full"
        except OSError as error:
            log.warning("%s was not captured: %s", self._recorder.request_id, error)
            return "disk"
        return "kept"


def row_line(recorder: Recorder, target: Target, body: dict[str, Any]) -> bytes:
    """A row as a line of JSON: one of the shapes in which coverage datasets are read.

    TypeError or KeyError where `body` is no completion.
    """
    request = {key: recorder.asked[key] for key in ASKED if recorder.asked.get(key) is not None}
    response = {key: body[key] for key in ANSWERED if body.get(key) is not None}
    if not isinstance(body["choices"], list) or not body["choices"]:
        raise TypeError("no choices")
    by = recorder.rules.redaction
    row = {
        "id": recorder.request_id,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "alias": recorder.alias,
        "served_by": target.place,
        "request": {**request, "messages": redacted(request["messages"], by)},
        "response": {**response, "choices": redacted(response["choices"], by)},
    }
    if recorder.shadow_of is not None:
        row["shadow_of"] = recorder.shadow_of
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"
