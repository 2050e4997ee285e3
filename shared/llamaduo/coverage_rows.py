"""Makes a row of what was read: one JSON object in any of the shapes in which prompts and answers are kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import ValidationError

from llamaduo.datasets import Message, Row, make_row, row_id
from llamaduo.migrations.spec import Column
from llamaduo.names import did_you_mean, nearest
from llamaduo.nesting import is_deeper
from llamaduo.plain_words import shown

ROLES = get_args(Message.model_fields["role"].annotation)
COLUMNS: tuple[Column, ...] = get_args(Column)

Columns = Mapping[Column, str]
"""One of COLUMNS -> the name under which it is found, where that is another."""

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
_ASKED_AND_ANSWERED: tuple[Column, ...] = ("messages", "prompt", "response", "completion")
_SHAPE = "a row needs `messages`, or `prompt` and `response`"
_MESSAGE_KEYS = ("role", "content", "weight", "tool_calls", "tool_call_id")
# What providers add to an answer that says nothing the small model could learn.
_ASIDE = ("annotations", "audio", "reasoning", "reasoning_content", "refusal", "function_call", "name")
_FORMATS = ("text", "json_object", "json_schema")
MOST_LEVELS = 100
"""Lists and objects within each other: what lies deeper could be read here, and not be written down again."""


class BadRow(ValueError):
    """A row that cannot be used; `key` is where in the row, as a path."""

    def __init__(self, why: str, key: str | None = None, hint: str | None = None) -> None:
        super().__init__(why)
        self.why, self.key, self.hint = why, key, hint


def row_of(raw: Any, columns: Columns | None = None) -> Row:
    """A row from a parsed object in any of the accepted shapes; columns of the team's own become `meta`.

    BadRow says what is wrong.
    """
    if not isinstance(raw, dict):
        raise BadRow(f"a row is a JSON object, not {shown(raw)}")
    if is_deeper(raw, MOST_LEVELS):
        raise BadRow(f"is nested too deeply: {MOST_LEVELS} levels at most")
    try:
        json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadRow("holds half a character (a lone surrogate, \\ud800 to \\udfff)") from error
    if (stored := _stored(raw)) is not None:
        return stored
    for meant, name in (columns or {}).items():
        if meant in _ASKED_AND_ANSWERED and name not in raw:
            raise BadRow(f"has no column {name!r}, where `{meant}` should be", hint=did_you_mean(name, raw))
    names = {meant: (columns or {}).get(meant, meant) for meant in COLUMNS}
    given: dict[str, Any] = {meant: raw[name] for meant, name in names.items() if name in raw}
    if isinstance(raw.get("request"), dict) and isinstance(raw.get("response"), dict):
        return _logged(_body(raw["request"]), _body(raw["response"]), _others(raw, ("request", "response")))
    if isinstance(given.get("messages"), list) and isinstance(raw.get("choices"), list):
        return _logged(raw, raw, {})
    used: list[Column]
    if "messages" in given:
        messages = messages_of(given["messages"])
        used = ["messages"]
    elif "prompt" in given and ("response" in given or "completion" in given):
        answer: Column = "response" if "response" in given else "completion"
        messages = _from_columns(given, answer, names)
        used = ["prompt", answer, "system"]
    else:
        raise BadRow(*_unknown_shape(raw, given))
    return _row(messages, given, _others(raw, [names[one] for one in (*used, "tools", "response_format")]))


def _row(messages: list[Message], given: Mapping[str, Any], meta: dict[str, Any]) -> Row:
    return make_row(
        messages,
        tools=tools_of(_parsed(given.get("tools"))),
        response_format=_response_format(_parsed(given.get("response_format"))),
        meta=meta,
    )


def _others(raw: Mapping[str, Any], used: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in used}


def _stored(raw: Mapping[str, Any]) -> Row | None:
    """The row, where this is one that LlamaDuo wrote: it has the id of its content, and no column but ours."""
    if not isinstance(raw.get("id"), str) or "messages" not in raw or not raw.keys() <= Row.model_fields.keys():
        return None
    try:
        row = Row.model_validate(raw)
    except ValidationError:
        return None
    return row if row.id == row_id(row.messages, row.tools, row.response_format) else None


def _body(half: dict[str, Any]) -> dict[str, Any]:
    """A request or a response without the envelope that a log of HTTP calls or a batch puts around it."""
    return half["body"] if isinstance(half.get("body"), dict) else half


def _logged(request: Mapping[str, Any], response: Mapping[str, Any], own: dict[str, Any]) -> Row:
    """A row from what was asked of a chat completions API and what it answered.

    The caller's `metadata` and the name of the model that answered become `meta`, below the log's own columns.
    """
    prompt, choices = request.get("messages"), response.get("choices")
    if response.get("error"):
        raise BadRow("the call failed: there is no answer to learn", "response.error")
    if not isinstance(prompt, list):
        raise BadRow("must be a list of messages, not " + shown(prompt), "request.messages")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadRow("holds no answer", "response.choices")
    ended = choices[0].get("finish_reason")
    if ended in ("length", "content_filter"):
        raise BadRow("the answer is not whole", "choices[0].finish_reason", f"it ended by {ended!r}")
    if request.get("functions"):
        raise BadRow("the old form of tools is not read", "request.functions", "write them as `tools`")
    metadata = request.get("metadata")
    model = response.get("model") or request.get("model")
    meta = {"model": model} if isinstance(model, str) else {}
    meta |= metadata if isinstance(metadata, dict) else {}
    return _row(messages_of([*prompt, choices[0].get("message")]), request, {**meta, **own})


def _parsed(value: Any) -> Any:
    """The value itself, or what its text is as JSON: tables hold lists and objects as text. Blank: None."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return value if is_deeper(parsed, MOST_LEVELS) else parsed


def _response_format(value: Any) -> dict[str, Any] | None:
    where, example = "response_format", '{"type": "json_schema", "json_schema": {"name": …, "schema": …}}'
    if value is None:
        return None
    if not isinstance(value, dict):
        raise BadRow(f"must be an object with `type`, not {shown(value)}", where, example)
    kind = value.get("type")
    if kind not in _FORMATS:
        raise BadRow(f"must be text, json_object or json_schema, not {shown(kind)}", f"{where}.type", example)
    if kind == "json_schema":
        inner = value.get("json_schema")
        if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
            raise BadRow("holds no `schema`", f"{where}.json_schema", example)
        if not isinstance(inner.get("name"), str):
            raise BadRow("is missing", f"{where}.json_schema.name", example)
    return None if kind == "text" else value


def _unknown_shape(raw: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    if isinstance(raw.get("choices"), list):
        return "holds an answer without its prompt", None, "a stored completion needs its `messages` beside `choices`"
    if "preferred_output" in raw:
        return "a pair of preferences is no row", None, "`messages` with the preferred answer last"
    wanted = [key for key in ("prompt", "response") if key not in given]
    renamed: dict[str, str] = {}
    for key in raw:
        meant = _OTHER_COLUMNS.get(key.lower()) or nearest(key, [*wanted, "messages"])
        if meant in (*wanted, "messages") and meant not in renamed.values():
            renamed[key] = meant
    has = f"; it has {', '.join(f'`{key}`' for key in list(raw)[:6])}" if raw else ""
    hint = "did you mean " + " and ".join(f"`{meant}` for `{key}`" for key, meant in renamed.items()) + "?"
    return _SHAPE + has, None, hint if renamed else None


def _from_columns(given: Mapping[str, Any], answer: Column, names: Columns) -> list[Message]:
    columns: list[tuple[str, Column]] = [("user", "prompt"), ("assistant", answer)]
    if given.get("system") not in (None, ""):
        columns.insert(0, ("system", "system"))
    return [
        Message.model_validate({"role": role, "content": _text(given[name], names[name])}) for role, name in columns
    ]


def prompt_of(raw: Any) -> list[Message]:
    """The messages of a request, in whatever order they come. BadRow says what is wrong."""
    if not isinstance(raw, list) or not raw:
        raise BadRow(f"must be a list of messages, not {shown(raw)}", "messages")
    return [_message(one, f"messages[{place}]") for place, one in enumerate(raw)]


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """The tools of a row or a request; None where there are none. BadRow says what is wrong."""
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise BadRow(f"must be a list of tools, not {shown(value)}", "tools")
    for place, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(
                "is no tool", f"tools[{place}]", '{"type": "function", "function": {"name": …, "parameters": …}}'
            )
    return value


def messages_of(raw: Any) -> list[Message]:
    """A whole conversation that ends with the assistant's answer. BadRow says what is wrong, and where."""
    raw = _parsed(raw)
    if not isinstance(raw, list):
        raise BadRow(f"must be a list of messages, not {shown(raw)}", "messages")
    if len(raw) < 2:
        raise BadRow("needs at least a user message and the assistant's answer", "messages")
    messages = [_message(one, f"messages[{place}]") for place, one in enumerate(raw)]
    _check_order(messages)
    if raw[-1].get("weight") == 0:
        raise BadRow("the answer has weight 0: there is nothing to learn", f"messages[{len(raw) - 1}].weight")
    return messages


def _message(raw: Any, where: str) -> Message:
    if not isinstance(raw, dict):
        raise BadRow(f"must be an object with `role` and `content`, not {shown(raw)}", where)
    if raw.get("refusal"):
        raise BadRow("the service LLM refused to answer", f"{where}.refusal")
    if raw.get("function_call"):
        raise BadRow("the old form of a tool call is not read", f"{where}.function_call", "write it as `tool_calls`")
    if raw.get("audio"):
        raise BadRow("only text can be learnt", f"{where}.audio")
    if raw.get("name") and raw.get("role") != "tool":
        raise BadRow("a name would not be passed on", f"{where}.name", "put it into the content")
    for key in raw:
        if key not in (*_MESSAGE_KEYS, *_ASIDE):
            raise BadRow("unknown key", f"{where}.{key}", did_you_mean(key, ("role", "content")))
    for key in ("role",) if raw.get("tool_calls") else ("role", "content"):
        if key not in raw:
            raise BadRow("is missing", f"{where}.{key}")
    if raw.get("weight") not in (None, 0, 1) or isinstance(raw.get("weight"), bool):
        raise BadRow(f"must be 0 or 1, not {shown(raw['weight'])}", f"{where}.weight")
    # What was `system` is `developer` for OpenAI's later models.
    role = "system" if raw["role"] == "developer" else raw["role"]
    if role not in ROLES:
        meant = isinstance(role, str) and (_OTHER_ROLES.get(role.lower()) or nearest(role, ROLES))
        raise BadRow(
            f"must be {', '.join(ROLES[:-1])} or {ROLES[-1]}, not {shown(role)}",
            f"{where}.role",
            f"did you mean {meant!r}?" if meant else None,
        )
    calls = _tool_calls(raw.get("tool_calls"), role, f"{where}.tool_calls")
    answers = raw.get("tool_call_id")
    if role == "tool" and not isinstance(answers, str):
        raise BadRow("must name the call that it answers", f"{where}.tool_call_id")
    silent = (calls and raw.get("content") in (None, "")) or (role == "tool" and raw["content"] == "")
    content = "" if silent else _text(raw["content"], f"{where}.content")
    return Message(role=role, content=content, tool_calls=calls, tool_call_id=answers if role == "tool" else None)


def _tool_calls(value: Any, role: str, where: str) -> list[dict[str, Any]] | None:
    """Calls as OpenAI writes them, but for their arguments, which become objects."""
    if value is None or value == []:
        return None
    if role != "assistant":
        raise BadRow("only the assistant calls tools", where)
    if not isinstance(value, list):
        raise BadRow(f"must be a list of calls, not {shown(value)}", where)
    calls = []
    for place, call in enumerate(value):
        here = f"{where}[{place}].function"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("must hold `name` and `arguments`", here)
        arguments = _parsed(function.get("arguments"))
        if arguments is not None and not isinstance(arguments, dict):
            raise BadRow("must be a JSON object", f"{here}.arguments")
        plain = {"name": function["name"], "arguments": arguments or {}}
        calls.append({"id": str(call.get("id", place)), "type": "function", "function": plain})
    return calls


def _text(value: Any, where: str) -> str:
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        value = "\n".join(_part(part, f"{where}[{place}]") for place, part in enumerate(value))
    if not isinstance(value, str):
        raise BadRow("has no value" if value is None else f"must be text, not {shown(value)}", where)
    if not value.strip():
        raise BadRow("is blank" if value else "is empty", where)
    return value


def _part(part: Mapping[str, Any], where: str) -> str:
    if part.get("type") not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
        raise BadRow(f"only text can be learnt, not {shown(part.get('type'))}", where)
    return str(part["text"])


def _check_order(messages: Iterable[Message]) -> None:
    """A system message may come first; then user and assistant take turns, and the assistant has the last word.

    A call of tools is followed by their answers, and those by the assistant.
    """
    before: Message | None = None
    for place, message in enumerate(messages):
        role, where = message.role, f"messages[{place}].role"
        if role == "system" and place:
            raise BadRow("a system message can only be the first", where)
        if role == "tool" and not (before and (before.role == "tool" or before.tool_calls)):
            raise BadRow("a tool's message must follow the call of it", where)
        if role == "user" and before and (before.role == "tool" or before.tool_calls):
            raise BadRow("the assistant's turn: a call of tools, their answers, then its own", where)
        if role == "assistant" and (before is None or before.role == "system"):
            raise BadRow("the assistant cannot begin: a user message must come before", where)
        if before and role == before.role and role != "tool":
            raise BadRow(f"two {role} messages in a row: user and assistant take turns", where)
        before = message
    if before is not None and before.role != "assistant":
        raise BadRow("the last message must be the assistant's answer", where)
