"""A streamed answer put together again from its server-sent events, as it would have come in one piece."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

JOINED = ("content", "refusal", "reasoning_content", "reasoning")


@dataclass
class Assembled:
    """Fed with a stream's bytes as they come, cut anywhere; `body` gives the answer once it is whole."""

    _rest: bytes = b""
    _head: dict[str, Any] = field(default_factory=dict)
    _choices: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, part: bytes) -> None:
        """The next bytes.

        ValueError, KeyError, TypeError or AttributeError where they are no chunks of a completion.
        """
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                self._take(json.loads(data))

    def _take(self, chunk: dict[str, Any]) -> None:
        for key in ("id", "created", "model", "system_fingerprint", "usage"):
            if chunk.get(key) is not None:
                self._head[key] = chunk[key]
        for choice in chunk["choices"]:
            index = choice["index"]
            known = self._choices.setdefault(
                index, {"index": index, "message": {"role": "assistant", "content": None}, "finish_reason": None}
            )
            _merge(known["message"], choice.get("delta") or {})
            if choice.get("finish_reason") is not None:
                known["finish_reason"] = choice["finish_reason"]

    def body(self) -> dict[str, Any] | None:
        """The whole completion; None where a choice has not come to its end."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        if not choices or any(choice["finish_reason"] is None for choice in choices):
            return None
        return {**self._head, "object": "chat.completion", "choices": choices}


def _merge(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, value in delta.items():
        if key in JOINED and isinstance(value, str):
            message[key] = (message.get(key) or "") + value
        elif key == "tool_calls":
            for call in value or []:
                _merge_call(message.setdefault("tool_calls", []), call)
        elif value is not None and key != "role":
            message[key] = value


def _merge_call(calls: list[dict[str, Any]], part: dict[str, Any]) -> None:
    """One part of a call goes to the call of its index; only its arguments come in pieces."""
    index = part.get("index", len(calls))
    while len(calls) <= index:
        if len(calls) > 128:
            raise ValueError("more calls than a completion has")
        calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[index], part.get("function") or {}
    call["id"] = part.get("id") or call["id"]
    call["function"]["name"] = function.get("name") or call["function"]["name"]
    call["function"]["arguments"] += function.get("arguments") or ""
