"""Which fault befalls a request: drawn from (seed, who asks, how often it has asked), so runs replay."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import JsonValue

from services.emulator.answers import Answer
from services.emulator.draws import digest, draws, share

_MARK = re.compile(r'(":)(\d+)(?=[,}])')

Fault = Literal["none", "rate_limited", "server_error", "cut", "malformed", "refused", "empty", "odd"]


@dataclass(frozen=True)
class FaultRates:
    """Shares of requests, each 0 to 1; together at most 1."""

    rate_limited: float = 0.0
    server_error: float = 0.0
    cut: float = 0.0
    malformed: float = 0.0
    refused: float = 0.0
    empty: float = 0.0
    odd: float = 0.0


def draw_fault(rates: FaultRates, seed: int, caller: str, arrival: int) -> Fault:
    """The fault of a caller's `arrival`-th request (1-based); `caller` is its idempotency key or its body."""
    place = share("fault", seed, caller, arrival)
    table: tuple[tuple[Fault, float], ...] = (
        ("rate_limited", rates.rate_limited),
        ("server_error", rates.server_error),
        ("cut", rates.cut),
        ("malformed", rates.malformed),
        ("refused", rates.refused),
        ("empty", rates.empty),
        ("odd", rates.odd),
    )
    for fault, rate in table:
        if place < rate:
            return fault
        place -= rate
    return "none"


def cut_off(answer: Answer, seed: int, caller: str, arrival: int) -> Answer:
    """The answer as a model that ran into its token limit leaves it: a first part, reason "length"."""
    kept = 0.2 + 0.6 * share("cut", seed, caller, arrival)
    return replace(answer, text=answer.text[: int(len(answer.text) * kept)], finish_reason="length")


def malform(answer: Answer, seed: int, caller: str, arrival: int) -> Answer:
    """The answer as a careless model gives it: prose around it, broken JSON, or an item without a field.

    A list of items keeps its other items, so that a client may save the good part.
    """
    rng = draws("malformed", seed, caller, arrival)
    kind = rng.choice(("prose", "broken", "incomplete"))
    if kind == "prose":
        text = f"Sure! Here you go:\n{answer.text}\nLet me know if I can help further."
    elif kind == "broken":
        text = answer.text.replace('":', '" ', 1).rstrip("}")
    else:
        text = _drop_a_field(answer.text, rng.random())
    return replace(answer, text=text)


def refuse(answer: Answer) -> Answer:
    """No answer, by the provider's content filter."""
    return replace(answer, text="", tool=None, finish_reason="content_filter")


def empty(answer: Answer) -> Answer:
    """An answer without text."""
    return replace(answer, text="")


def odd_numbers(answer: Answer, seed: int, caller: str, arrival: int) -> Answer:
    """The answer with its whole numbers (marks) written as people do: "85/100", "85 %", 85.5. Others as they are."""
    written = draws("odd", seed, caller, arrival).choice(('"{}/100"', '"{} %"', "{}.5"))
    return replace(
        answer, text=_MARK.sub(lambda found: found[1] + written.format(min(99, int(found[2]))), answer.text)
    )


def spoil(fault: Fault, answer: Answer, seed: int, caller: str, arrival: int) -> Answer:
    """The answer as a fault leaves it; unchanged where the fault is none of an answer, or finds nothing to spoil."""
    match fault:
        case "cut":
            return cut_off(answer, seed, caller, arrival)
        case "malformed":
            return malform(answer, seed, caller, arrival)
        case "refused":
            return refuse(answer)
        case "empty":
            return empty(answer)
        case "odd":
            return odd_numbers(answer, seed, caller, arrival)
        case _:
            return answer


def _drop_a_field(text: str, place: float) -> str:
    """The JSON object without one field of its own, or of one item where it holds a list of objects."""
    record: JsonValue = json.loads(text)
    target = record
    if isinstance(record, dict):
        for value in record.values():
            if isinstance(value, list) and value:
                target = value[int(place * len(value))]
    if isinstance(target, dict) and target:
        del target[list(target)[-1]]
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False)


def caller_of(idempotency_key: str | None, body: bytes) -> str:
    """What the faults of a request are drawn by: its idempotency key, or its body where it has none."""
    return f"key {idempotency_key}" if idempotency_key is not None else f"body {digest(body.hex())}"
