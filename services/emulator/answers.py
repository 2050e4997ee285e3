"""From a chat request to the text the emulated model says. A function of messages, schema and seed alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil

from services.emulator.chat import ChatRequest, wanted
from services.emulator.judging import mark, prefer
from services.emulator.synthesis import check_pairs, write_pairs
from services.emulator.teacher import understand


@dataclass(frozen=True)
class Answer:
    """What is said: `text` is the content, or the arguments of `tool` where one is called."""

    text: str
    tool: str | None
    finish_reason: str


def tokens(text: str) -> int:
    """A rough token count: a quarter of the characters, at least 1 for a text that is not empty."""
    return ceil(len(text) / 4)


def answer(request: ChatRequest) -> Answer:
    """The whole answer, cut where the request's own token limit cuts it."""
    want = wanted(request)
    if want.kind == "synthesis":
        text = json.dumps({"pairs": write_pairs(request)}, separators=(",", ":"), ensure_ascii=False)
    elif want.kind == "check":
        text = json.dumps({"checks": check_pairs(request)}, separators=(",", ":"), ensure_ascii=False)
    elif want.kind == "judge":
        text = mark(request.last_user_text()).as_json()
    elif want.kind == "pairwise":
        text = prefer(request.last_user_text()).as_json()
    else:
        text = understand(request.last_user_text()).as_json()
    limit = request.token_limit()
    if limit is not None and tokens(text) > limit:
        return Answer(text[: limit * 4], want.tool, "length")
    return Answer(text, want.tool, "tool_calls" if want.tool else "stop")
