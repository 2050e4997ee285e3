"""Answers a synthesis prompt with new pairs, of its cases or like its examples; and checks such pairs."""

from __future__ import annotations

import json
import re

from pydantic import JsonValue

from services.emulator.chat import ChatRequest, conversation_key
from services.emulator.draws import draws
from services.emulator.grammar import INTENTS, URGENCIES
from services.emulator.likeness import is_near_copy
from services.emulator.teacher import understand
from services.emulator.writer import write_message

DEFAULT_PAIRS = 5
MAX_PAIRS = 50
NEAR_COPY = 85.0
_TRIES_A_PAIR = 100
_LONGEST_EXAMPLE = 400  # characters; a longer line of the prompt is no support message
_COUNT = re.compile(r"\b(\d{1,4})\s+(?:(?:new|more|further)\s+)?pairs\b", re.IGNORECASE)
_CASE = re.compile(r"^\d+\. .*(\{.*\})", re.MULTILINE)
_CALLED = re.compile(r'\\?"tool_calls\\?":\[\{\\?"name\\?":\\?"(\w+)')
_INTENT = re.compile(r'\\?"intent\\?"\s*:\s*\\?"([a-z_]+)')


def pairs_wanted(prompt: str) -> int:
    """The number in text like "Write 10 new pairs", the last of them, 1 to 50; 5 where there is none."""
    found: list[str] = _COUNT.findall(prompt)
    return min(max(int(found[-1]), 1), MAX_PAIRS) if found else DEFAULT_PAIRS


def intents_shown(prompt: str) -> list[str]:
    """Intents of the records in the prompt's examples, in the order of the grammar."""
    seen = set(_INTENT.findall(prompt))
    return [intent for intent in INTENTS if intent in seen]


def cases_asked(prompt: str) -> list[tuple[str | None, str | None]]:
    """(intent, urgency) of each numbered line that names a record's values; None for what it leaves open."""
    cases = []
    for text in _CASE.findall(prompt):
        try:
            record: JsonValue = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            intent, urgency = record.get("intent"), record.get("urgency")
            cases.append(
                (
                    intent if isinstance(intent, str) and intent in INTENTS else None,
                    urgency if isinstance(urgency, str) and urgency in URGENCIES else None,
                )
            )
    return cases


def messages_shown(prompt: str) -> list[str]:
    """What could be an example's message: each line, without a label, and the texts of a line that is JSON."""
    found: dict[str, None] = {}
    for line in prompt.splitlines():
        found[line.strip()] = None
        found[re.sub(r"^\W*[\w ]{1,20}:\s*", "", line).strip()] = None
        try:
            record: JsonValue = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            found.update({value: None for value in record.values() if isinstance(value, str)})
    return [text for text in found if 0 < len(text) <= _LONGEST_EXAMPLE]


def write_pairs(request: ChatRequest) -> list[dict[str, str]]:
    """Pairs `{"prompt": message, "answer": record}`, none a near copy of a line of the prompt or of another.

    Where the examples call a tool, the record is the arguments of such a call. Where the prompt lists a case for each
    pair, they are of these. Otherwise half of them have an intent that the
    examples show (where there are any), the others any intent: data aimed only at what was weak unlearns the
    rest. A function of the request's messages, schema and seed.
    """
    prompt = request.prompt()
    rng = draws("synthesis", conversation_key(request))
    shown = intents_shown(prompt)
    wanted = pairs_wanted(prompt)
    cases = cases_asked(prompt)
    if len(cases) != wanted:
        cases = [(None, None)] * wanted
    texts = messages_shown(prompt)
    called = _CALLED.search(prompt)
    pairs: list[dict[str, str]] = []
    for number, (asked, urgency) in enumerate(cases):
        intent = asked or rng.choice(shown if shown and number % 2 == 0 else INTENTS)
        for _ in range(_TRIES_A_PAIR):
            message = write_message(rng, intent, urgency)
            if not is_near_copy(message.text, texts, NEAR_COPY):
                texts.append(message.text)
                record = message.meaning.as_json()
                answer = _call(called[1], record) if called else record
                pairs.append({"prompt": message.text, "answer": answer})
                break
    return pairs


def _call(tool: str, record: str) -> str:
    return json.dumps({"tool_calls": [{"name": tool, "arguments": json.loads(record)}]}, separators=(",", ":"))


def check_pairs(request: ChatRequest) -> list[dict[str, JsonValue]]:
    """What it says of each numbered pair of the prompt: kept where the answer is the record it would give itself."""
    checks: list[dict[str, JsonValue]] = []
    for line in request.last_user_text().splitlines():
        try:
            pair: JsonValue = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(pair, dict) and isinstance(pair.get("number"), int):
            record, answer = understand(str(pair.get("prompt"))).as_json(), str(pair.get("answer"))
            called = _CALLED.search(answer)
            keep = answer == (_call(called[1], record) if called else record)
            reason = "the answer is right" if keep else "the answer is another"
            checks.append({"number": pair["number"], "reason": reason, "keep": keep})
    return checks
