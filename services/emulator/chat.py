"""What a chat completion request asks for: its messages, and which kind of answer its schema calls for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Kind = Literal["task", "synthesis", "check", "judge", "pairwise"]
Schema = dict[str, JsonValue]


class _Part(BaseModel):
    type: str
    text: str = ""


class Message(BaseModel):
    """One chat message; `content` is a text or a list of parts, of which the texts are read."""

    role: str
    content: str | list[_Part] | None = None

    def text(self) -> str:
        """The message's text; "" where it has none."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.type == "text")
        return self.content or ""


class _JsonSchema(BaseModel):
    name: str = ""
    schema_: Schema = Field(default_factory=dict, alias="schema")


class _ResponseFormat(BaseModel):
    type: str
    json_schema: _JsonSchema | None = None


class _Function(BaseModel):
    name: str
    parameters: Schema = Field(default_factory=dict)


class _Tool(BaseModel):
    type: Literal["function"]
    function: _Function


class _StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`; keys that do not change our answer are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: list[Message] = Field(min_length=1)
    response_format: _ResponseFormat | None = None
    tools: list[_Tool] = Field(default_factory=list)
    tool_choice: JsonValue = None
    n: int = Field(default=1, ge=1, le=16)
    seed: int | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stream: bool = False
    stream_options: _StreamOptions | None = None

    def prompt(self) -> str:
        """All messages' texts, in order, separated by empty lines."""
        return "\n\n".join(message.text() for message in self.messages)

    def last_user_text(self) -> str:
        """The last user message's text; "" where there is none."""
        return next((one.text() for one in reversed(self.messages) if one.role == "user"), "")

    def token_limit(self) -> int | None:
        """The most tokens of answer that the caller allows."""
        return self.max_completion_tokens or self.max_tokens


@dataclass(frozen=True)
class Wanted:
    """The answer's kind, its JSON schema ({} for free text), and the tool to call with it, if any."""

    kind: Kind
    schema: Schema
    tool: str | None


def _properties(schema: Schema) -> set[str]:
    properties = schema.get("properties")
    return set(properties) if isinstance(properties, dict) else set()


def _kind(schema: Schema) -> Kind:
    names = _properties(schema)
    if "pairs" in names:
        return "synthesis"
    if "checks" in names:
        return "check"
    if "better" in names:
        return "pairwise"
    return "judge" if {"similarity", "precision"} <= names else "task"


def wanted(request: ChatRequest) -> Wanted:
    """Reads the kind from the schema: a native `json_schema`, else the tool forced, else the first tool."""
    native = request.response_format.json_schema if request.response_format else None
    if native is not None:
        return Wanted(_kind(native.schema_), native.schema_, None)
    if request.tools and request.tool_choice != "none":
        forced = _forced_tool(request.tool_choice)
        named = [tool.function for tool in request.tools if tool.function.name == forced]
        function = named[0] if named else request.tools[0].function
        return Wanted(_kind(function.parameters), function.parameters, function.name)
    return Wanted("task", {}, None)


def _forced_tool(tool_choice: JsonValue) -> str | None:
    if not isinstance(tool_choice, dict):
        return None
    function = tool_choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def conversation_key(request: ChatRequest) -> str:
    """A text that is equal for requests that must be answered equally: messages, schema and seed."""
    want = wanted(request)
    messages = [[message.role, message.text()] for message in request.messages]
    return json.dumps([messages, want.schema, want.tool, request.seed], sort_keys=True)
