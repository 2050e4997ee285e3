"""Reads and checks a coverage dataset: the team's own prompts and answers, one JSON object a line.

A file of another kind is recognised by its beginning (`other_kind`), a line is parsed (`parse_line`), and what was
parsed is made a row (`row_of`), so that a further kind of file needs only its own way to the second step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from llamaduo.datasets import Message, Row, make_row
from llamaduo.errors import UserInputError
from llamaduo.input_files import other_encoding, why_unreadable
from llamaduo.names import did_you_mean, nearest
from llamaduo.plain_words import shown

MAX_ROW_BYTES = 1_000_000
LINES_NAMED = 10
ROLES = get_args(Message.model_fields["role"].annotation)

_OTHER_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant"}
_OTHER_COLUMNS = {
    "instruction": "prompt",
    "question": "prompt",
    "input": "prompt",
    "query": "prompt",
    "answer": "response",
    "output": "response",
    "reply": "response",
    "conversations": "messages",
    "conversation": "messages",
}
_SHAPE = "a row needs `messages`, or `prompt` and `response`"


class BadRow(ValueError):
    """A row that cannot be used; `key` is where in the row, as a path."""

    def __init__(self, why: str, key: str | None = None, hint: str | None = None) -> None:
        super().__init__(why)
        self.why, self.key, self.hint = why, key, hint


@dataclass(frozen=True)
class BadLine:
    """A line that is no row, by its 1-based number."""

    number: int
    problem: BadRow


@dataclass
class Coverage:
    """What a file holds: its different rows, and its bad lines."""

    rows: dict[str, Row] = field(default_factory=dict)
    bad: list[BadLine] = field(default_factory=list)


def read_coverage(path: Path) -> list[Row]:
    """Read and check a coverage dataset. Exact repeats are dropped.

    UserInputError names the first bad line with its reason, and the numbers of others.
    """
    found = scan(path)
    if found.bad:
        raise _refusal(found.bad, path)
    if not found.rows:
        raise UserInputError("holds no rows", file=str(path))
    return list(found.rows.values())


def scan(path: Path) -> Coverage:
    """All rows and all bad lines of a file. UserInputError where it is no file of rows at all."""
    if problem := why_unreadable(path):
        raise UserInputError(problem[0], file=str(path), hint=problem[1])
    with path.open("rb") as file:
        head = file.read(4096)
    if other := other_kind(head):
        raise UserInputError(other[0], file=str(path), line=other[2], hint=other[1])
    found = Coverage()
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = row_of(parse_line(line))
            found.rows.setdefault(row.id, row)
        except BadRow as problem_of_row:
            found.bad.append(BadLine(number, problem_of_row))
    return found


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _refusal(bad: list[BadLine], path: Path) -> UserInputError:
    first, others = bad[0], [line.number for line in bad[1:]]
    why = first.problem.why
    if others:
        named = ", ".join(map(str, others[:LINES_NAMED])) + (", …" if len(others) > LINES_NAMED else "")
        why += f"; {len(bad)} lines are bad, also {named}"
    return UserInputError(why, file=str(path), line=first.number, field=first.problem.key, hint=first.problem.hint)


def other_kind(head: bytes) -> tuple[str, str, int | None] | None:
    """(what it is, what to do, line) of a file that does not begin as JSON lines do."""
    if encoding := other_encoding(head):
        return encoding, "JSON lines in UTF-8 are read", None
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    first = text.partition(b"\n")[0].strip()
    line = head[: len(head) - len(text)].count(b"\n") + 1
    if text.startswith(b"["):
        return "is one JSON array, not JSON lines", "jq -c '.[]' FILE > rows.jsonl", line
    if first == b"{":
        return "has objects that span several lines, not one a line", "jq -c . FILE > rows.jsonl", line
    if first and not first.startswith((b"{", b'"')) and any(mark in first for mark in b",;\t"):
        return "looks like CSV, not JSON lines", "one JSON object a line: docs/spec.md#the-coverage-dataset", line
    return None


def parse_line(line: bytes) -> Any:
    """The JSON value that a line is. BadRow where it is none, or says something twice."""
    if len(line) > MAX_ROW_BYTES:
        raise BadRow(f"longer than {MAX_ROW_BYTES} bytes")
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadRow(
            f"is not UTF-8 text (byte 0x{line[error.start]:02x})", hint="iconv -f LATIN1 -t UTF-8, if it is Latin-1"
        ) from error
    try:
        return json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise BadRow(f"not JSON: {error.msg} at column {error.colno}", hint=_json_hint(text)) from error
    except RecursionError as error:
        raise BadRow("not JSON that can be read: nested too deeply") from error
    except BadRow:
        raise
    except ValueError as error:
        raise BadRow("not JSON that can be read: a number is too long") from error


def _json_hint(text: str) -> str | None:
    if text.startswith("{'"):
        return "JSON wants double quotes"
    return "one object a line" if text.count('{"') > 1 and "}{" in text.replace(" ", "") else None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise BadRow("this key stands twice in one object", key)
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise BadRow(f"{name} is no JSON")


def row_of(raw: Any) -> Row:
    """A row from a parsed line in any of the accepted shapes; columns of the team's own become `meta`."""
    if not isinstance(raw, dict):
        raise BadRow(f"a row is a JSON object, not {shown(raw)}")
    try:
        json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadRow("holds half a character (a lone surrogate, \\ud800 to \\udfff)") from error
    if "messages" in raw:
        messages, known = _from_messages(raw["messages"]), {"messages"}
    elif "prompt" in raw and ("response" in raw or "completion" in raw):
        answer = "response" if "response" in raw else "completion"
        messages, known = _from_columns(raw, answer), {"prompt", answer, "system"}
    else:
        raise BadRow(*_unknown_shape(raw))
    return make_row(messages, meta={key: value for key, value in raw.items() if key not in known})


def _unknown_shape(raw: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    wanted = [key for key in ("prompt", "response") if key not in raw]
    renamed: dict[str, str] = {}
    for key in raw:
        meant = _OTHER_COLUMNS.get(key.lower()) or nearest(key, [*wanted, "messages"])
        if meant in (*wanted, "messages") and meant not in renamed.values():
            renamed[key] = meant
    has = f"; it has {', '.join(f'`{key}`' for key in list(raw)[:6])}" if raw else ""
    hint = "did you mean " + " and ".join(f"`{meant}` for `{key}`" for key, meant in renamed.items()) + "?"
    return _SHAPE + has, None, hint if renamed else None


def _from_columns(raw: Mapping[str, Any], answer: str) -> list[Message]:
    columns = [("user", "prompt"), ("assistant", answer)]
    if raw.get("system") not in (None, ""):
        columns.insert(0, ("system", "system"))
    return [Message.model_validate({"role": role, "content": _text(raw[name], name)}) for role, name in columns]


def _from_messages(raw: Any) -> list[Message]:
    if not isinstance(raw, list):
        raise BadRow(f"must be a list of messages, not {shown(raw)}", "messages")
    if len(raw) < 2:
        raise BadRow("needs at least a user message and the assistant's answer", "messages")
    messages = [_message(one, f"messages[{place}]") for place, one in enumerate(raw)]
    _check_order(messages)
    return messages


def _message(raw: Any, where: str) -> Message:
    if not isinstance(raw, dict):
        raise BadRow(f"must be an object with `role` and `content`, not {shown(raw)}", where)
    for key in raw:
        if key not in ("role", "content"):
            hint = "tool calls cannot be learnt yet" if key.startswith("tool") else None
            raise BadRow("unknown key", f"{where}.{key}", hint or did_you_mean(key, ("role", "content")))
    for key in ("role", "content"):
        if key not in raw:
            raise BadRow("is missing", f"{where}.{key}")
    role = raw["role"]
    if role not in ROLES:
        meant = isinstance(role, str) and (_OTHER_ROLES.get(role.lower()) or nearest(role, ROLES))
        raise BadRow(
            f"must be {', '.join(ROLES[:-1])} or {ROLES[-1]}, not {shown(role)}",
            f"{where}.role",
            f"did you mean {meant!r}?" if meant else None,
        )
    return Message(role=role, content=_text(raw["content"], f"{where}.content"))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadRow("has no value" if value is None else f"must be text, not {shown(value)}", where)
    if not value.strip():
        raise BadRow("is blank" if value else "is empty", where)
    return value


def _check_order(messages: Iterable[Message]) -> None:
    """A system message may come first; then user and assistant take turns, and the assistant has the last word."""
    roles: list[str] = [message.role for message in messages]
    for place, role in enumerate(roles):
        where, before = f"messages[{place}].role", roles[place - 1] if place else None
        if role == "system" and place:
            raise BadRow("a system message can only be the first", where)
        if role == "assistant" and before in (None, "system"):
            raise BadRow("the assistant cannot begin: a user message must come before", where)
        if role == before:
            raise BadRow(f"two {role} messages in a row: user and assistant take turns", where)
    if roles[-1] != "assistant":
        raise BadRow("the last message must be the assistant's answer", f"messages[{len(roles) - 1}].role")
