"""The gateway's file: what it says is checked before anybody calls, and a mistake is named with its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaduo.errors import UserInputError
from services.gateway.gateway_file import Upstream, key_of, parse_gateway_file, read_gateway_file

SERVICE = {"base_url": "https://api.example.com/v1/", "model": "gpt-4o", "api_key_env": "OPENAI_API_KEY"}


def test_an_alias_takes_the_service_of_the_file_and_passes_through_by_default() -> None:
    file = parse_gateway_file({"service": SERVICE, "aliases": {"triage": {}}})
    assert file.aliases["triage"].mode == "service" and file.aliases["triage"].fail_over
    assert file.service is not None and file.service.base_url == "https://api.example.com/v1"


@pytest.mark.parametrize(
    ("tree", "key", "words"),
    [
        ({}, None, "nobody would answer"),
        ({"aliases": {"triage": {"mode": "service"}}}, None, "has nobody to answer"),
        ({"service": SERVICE, "aliases": {"triage": {"mode": "canary"}}}, "aliases.triage", "needs one"),
        ({"service": SERVICE, "aliases": {"triage": {"canary": {"percent": 5}}}}, "aliases.triage", "belongs to"),
        ({"service": SERVICE, "aliases": {"Not A Name": {}}}, "aliases.Not A Name", "is no name"),
        ({"service": {"base_url": "api.example.com"}}, "service.base_url", "must begin with http"),
        ({"service": {"base_url": "https://me:secret@host/v1"}}, "service.base_url", "no password"),
        ({"service": {**SERVICE, "key": "x"}}, "service.key", "unknown key"),
        ({"service": {**SERVICE, "pass_authorization": True}}, "service", "not both"),
        (
            {"service": {"base_url": "http://h/v1", "api_key_env": "sk-abc"}},
            "service.api_key_env",
            "never the key itself",
        ),
    ],
)
def test_a_mistake_is_named_with_its_key(tree: dict[str, Any], key: str | None, words: str) -> None:
    with pytest.raises(UserInputError) as caught:
        parse_gateway_file(tree)
    assert caught.value.field == key and words in caught.value.message
    assert "secret" not in str(caught.value) and "sk-abc" not in str(caught.value)


def test_the_file_is_read_as_yaml(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("service: {base_url: 'http://h/v1'}\naliases:\n  triage: {mode: capture}\n")
    assert read_gateway_file(path).aliases["triage"].mode == "capture"
    path.write_text("service: {")
    with pytest.raises(UserInputError, match="not YAML"):
        read_gateway_file(path)


def test_a_key_comes_from_its_variable_or_from_the_file_that_is_named(tmp_path: Path) -> None:
    upstream = Upstream(base_url="http://h/v1", api_key_env="MY_KEY")
    secret = tmp_path / "key"
    secret.write_text("of-a-file\n")
    assert key_of(upstream, {"MY_KEY": "of-a-variable", "MY_KEY_FILE": str(secret)}) == "of-a-variable"
    assert key_of(upstream, {"MY_KEY_FILE": str(secret)}) == "of-a-file"
    assert key_of(Upstream(base_url="http://h/v1"), {"OPENAI_API_KEY": "of another one"}) is None
    with pytest.raises(UserInputError, match="MY_KEY"):
        key_of(upstream, {})
    secret.write_text("\n")
    with pytest.raises(UserInputError, match="empty"):
        key_of(upstream, {"MY_KEY_FILE": str(secret)})
