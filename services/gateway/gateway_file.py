"""The file that says what each alias means: read strictly, once, at the start."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from llamaduo.errors import UserInputError
from llamaduo.input_files import read_text
from llamaduo.migrations.spec import NAME_PATTERN, VARIABLE_PATTERN
from llamaduo.migrations.spec_file import PATTERNS
from llamaduo.migrations.strict import Strict
from llamaduo.plain_words import in_words

Mode = Literal["service", "capture", "shadow", "canary", "local"]
AliasName = Annotated[str, Field(pattern=NAME_PATTERN)]


class Upstream(Strict):
    """A server that speaks OpenAI's API, and how it is asked."""

    base_url: str = Field(description="ends in /v1; of Azure it ends in /openai/deployments/NAME")
    model: str | None = Field(None, description="the name it knows; unset: the one that the caller gave")
    api_key_env: str | None = Field(
        None, pattern=VARIABLE_PATTERN, description="variable that holds its key; NAME_FILE may name a file instead"
    )
    azure_api_version: str | None = Field(
        None, description="set where it is Azure: sent along, and the key as `api-key`"
    )
    pass_authorization: bool = Field(False, description="send the caller's own Authorization instead of a key")
    timeout_s: float = Field(120.0, gt=0, description="seconds without a byte of an answer")
    connect_s: float = Field(3.0, gt=0, description="seconds for a connection")

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        if "@" in value.partition("://")[2].partition("/")[0]:
            raise ValueError("must hold no user and no password: they would be seen in metrics and logs")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _one_credential(self) -> Self:
        if self.pass_authorization and self.api_key_env:
            raise ValueError("either `api_key_env` or `pass_authorization`, not both")
        return self


class Canary(Strict):
    """Whose requests the local model answers."""

    percent: float = Field(ge=0, le=100, description="of all keys, by a hash that stays")
    key: str = Field("user", pattern=r"^(user|header:[A-Za-z0-9-]+)$", description="`user` or `header:NAME`")


class Capture(Strict):
    """What is kept of the traffic, where the mode records any."""

    sample: float = Field(1.0, ge=0, le=1, description="share of all requests")
    redact: tuple[Literal["email", "phone", "card"], ...] = Field(
        ("email", "phone"), description="what is replaced before anything is written"
    )
    patterns: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str] = Field(
        default_factory=dict, description="name -> regular expression of what else is replaced, by [NAME]"
    )
    most_bytes: int = Field(1024 * 1024, ge=1, description="of one answer; a larger one is not kept")

    @field_validator("patterns")
    @classmethod
    def _are_expressions(cls, value: dict[str, str]) -> dict[str, str]:
        for name, pattern in value.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{name} is no regular expression: {error}") from error
        return value


class Alias(Strict):
    """Who answers when an application names this alias as its model."""

    mode: Mode = "service"
    service: Upstream | None = Field(None, description="unset: the file's `service`")
    local: Upstream | None = Field(None, description="unset: the adapter that was promoted under this name")
    canary: Canary | None = None
    capture: Capture = Capture()
    fail_over: bool = Field(True, description="whether the local model answers when the service LLM does not")

    @model_validator(mode="after")
    def _canary_is_said(self) -> Self:
        if (self.mode == "canary") != (self.canary is not None):
            raise ValueError("`canary` belongs to `mode: canary`, and it needs one")
        return self


class GatewayFile(Strict):
    """The whole file."""

    service: Upstream | None = Field(
        None, description="for model names that are no alias, and aliases without their own"
    )
    aliases: dict[AliasName, Alias] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _somebody_answers(self) -> Self:
        if self.service is None and not self.aliases:
            raise ValueError("neither `service` nor `aliases` is given: nobody would answer")
        without = [name for name, alias in self.aliases.items() if not (alias.service or self.service or alias.local)]
        if without:
            raise ValueError(f"alias {without[0]} has nobody to answer: give it, or the file, a `service`")
        return self


def read_gateway_file(path: Path) -> GatewayFile:
    """The file at `path`. UserInputError names the key that is wrong."""
    try:
        tree = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserInputError(f"is not YAML: {str(error).splitlines()[0]}", file=str(path)) from error
    return parse_gateway_file(tree, str(path))


def parse_gateway_file(tree: object, file: str = "gateway.yaml") -> GatewayFile:
    """The file's content as read from YAML. UserInputError names the key that is wrong."""
    try:
        return GatewayFile.model_validate(tree if tree is not None else {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise UserInputError(in_words(first, PATTERNS), file=file, field=key or None) from error


def key_of(upstream: Upstream, environment: Mapping[str, str]) -> str | None:
    """The upstream's key, from its variable or the file that `NAME_FILE` names; None where it names none.

    UserInputError names the variable where there is none, or the file where it cannot be read.
    """
    name = upstream.api_key_env
    if name is None:
        return None
    if key := environment.get(name, "").strip():
        return key
    if file := environment.get(f"{name}_FILE"):
        if key := read_text(Path(file)).strip():
            return key
        raise UserInputError("the key is empty", file=file, field=name)
    raise UserInputError(
        f"no key for {upstream.base_url}", field=name, hint=f"set {name}, or {name}_FILE to a file that holds it"
    )
