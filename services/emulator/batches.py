"""OpenAI's batches as the emulator keeps them: files in memory, batches that are done a while after they were sent.

A batch's calls are answered when it is done, all at once; what is answered is in the ledger as a batch's, at half the
price. A restart forgets files and batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from services.emulator.draws import digest, share
from services.emulator.wire import Body

Status = Literal["in_progress", "completed", "expired", "cancelled", "failed"]

AnswerCall = Callable[[str, JsonValue], tuple[int, Body]]
"""Answers the call of that `custom_id` and body: status and body."""


class BatchAsked(BaseModel):
    """The body of `POST /v1/batches`."""

    model_config = ConfigDict(extra="ignore")

    input_file_id: str
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = None


class _Line(BaseModel):
    """A line of a batch's file."""

    custom_id: str
    method: Literal["POST"]
    url: Literal["/v1/chat/completions"]
    body: JsonValue


@dataclass
class _Batch:
    id: str
    asked: BatchAsked
    created: float
    lines: list[_Line]
    status: Status = "in_progress"
    problem: str = ""
    completed: int = 0
    failed: int = 0
    files: dict[str, str] = field(default_factory=dict)


class Batches:
    """`takes_s`: seconds from sending to done. `expired`: share of calls that a batch does not come to in its time.

    `clock` gives seconds since the epoch.
    """

    def __init__(
        self, answer: AnswerCall, clock: Callable[[], float], *, takes_s: float, expired: float, seed: int
    ) -> None:
        self._answer, self._clock = answer, clock
        self._takes_s, self._expired, self._seed = takes_s, expired, seed
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, _Batch] = {}

    def keep_file(self, content: bytes) -> Body:
        """A new file."""
        name = f"file-{digest(len(self._files), content.hex())[:24]}"
        self._files[name] = content
        return {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": int(self._clock()),
            "filename": "batch.jsonl",
            "purpose": "batch",
            "status": "processed",
        }

    def file(self, name: str) -> bytes | None:
        """The content of a file, if there is one of this name."""
        return self._files.get(name)

    def create(self, asked: BatchAsked) -> Body | None:
        """A new batch; None where there is no such file. What is wrong with its lines shows in its status."""
        content = self._files.get(asked.input_file_id)
        if content is None:
            return None
        batch = _Batch(f"batch_{digest(len(self._batches), asked.input_file_id)[:24]}", asked, self._clock(), [])
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                batch.lines.append(_Line.model_validate_json(line))
            except ValidationError:
                batch.problem = batch.problem or f"line {number} is no request of a batch"
        if len({line.custom_id for line in batch.lines}) < len(batch.lines):
            batch.problem = batch.problem or "a custom_id stands in two lines"
        batch.status = "failed" if batch.problem else "in_progress"
        self._batches[batch.id] = batch
        return self._shown(batch)

    def look(self, name: str) -> Body | None:
        """A batch as it is now, if there is one of this name."""
        batch = self._batches.get(name)
        if batch is None:
            return None
        if batch.status == "in_progress" and self._clock() >= batch.created + self._takes_s:
            self._do(batch)
        return self._shown(batch)

    def cancel(self, name: str) -> Body | None:
        """Stop a batch, of which nothing has been done yet. None where there is none that could be stopped."""
        if self.look(name) is None or self._batches[name].status != "in_progress":
            return None
        self._batches[name].status = "cancelled"
        return self._shown(self._batches[name])

    def all(self) -> Body:
        """The list of all batches, the newest first, on one page."""
        shown: list[JsonValue] = [self._shown(batch) for batch in reversed(self._batches.values())]
        return {"object": "list", "data": shown, "first_id": None, "last_id": None, "has_more": False}

    def _do(self, batch: _Batch) -> None:
        good: list[Body] = []
        bad: list[Body] = []
        for line in batch.lines:
            if share("expired", self._seed, batch.id, line.custom_id) < self._expired:
                late: Body = {"code": "batch_expired", "message": "This request could not be executed in time."}
                bad.append({"custom_id": line.custom_id, "response": None, "error": late})
                batch.status = "expired"
                continue
            status, body = self._answer(line.custom_id, line.body)
            response: Body = {"status_code": status, "request_id": "emulated", "body": body}
            (good if status == 200 else bad).append(
                {"custom_id": line.custom_id, "response": response, "error": None}
            )
        batch.completed, batch.failed = len(good), len(bad)
        if batch.status == "in_progress":
            batch.status = "completed"
        for key, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                content = "".join(json.dumps(line) + "\n" for line in lines)
                batch.files[key] = str(self.keep_file(content.encode())["id"])

    def _shown(self, batch: _Batch) -> Body:
        errors: Any = {"object": "list", "data": [{"code": "invalid", "message": batch.problem}]}
        metadata: Any = batch.asked.metadata
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.asked.endpoint,
            "completion_window": batch.asked.completion_window,
            "input_file_id": batch.asked.input_file_id,
            "status": batch.status,
            "created_at": int(batch.created),
            "metadata": metadata,
            "errors": errors if batch.problem else None,
            "request_counts": {
                "total": len(batch.lines),
                "completed": batch.completed,
                "failed": batch.failed,
            },
            **batch.files,
        }
