"""Secrets in settings and in errors are shown to nobody."""

from __future__ import annotations

import base64
import importlib
import io
import json
import logging
import pkgutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from pydantic_settings import BaseSettings

import services
from llamaduo.errors import RetryableError, describe
from llamaduo.masking import MASK, is_secret_name, learn, learn_environment, masked
from llamaduo.settings import BusSettings, ServiceSettings
from llamaduo.telemetry import JsonLines


def all_settings() -> list[type[BaseSettings]]:
    found: list[type[BaseSettings]] = [BusSettings, ServiceSettings]
    for module in pkgutil.iter_modules(services.__path__):
        try:
            settings = importlib.import_module(f"services.{module.name}.settings")
        except ModuleNotFoundError:
            continue
        found += [v for v in vars(settings).values() if isinstance(v, type) and issubclass(v, BaseSettings)]
    return found


@pytest.mark.parametrize("model", all_settings(), ids=lambda model: model.__name__)
def test_every_setting_that_is_a_secret_is_masked_however_settings_are_shown(model: type[BaseSettings]) -> None:
    # A path to a file with a secret is none itself.
    fields = model.model_fields.items()
    secrets = [name for name, field in fields if is_secret_name(name) and "Path" not in str(field.annotation)]
    given: dict[str, Any] = dict.fromkeys(secrets, "canary-of-a-setting")
    made = model(**given)
    for name in secrets:
        assert isinstance(getattr(made, name), SecretStr), f"{name} must be a SecretStr"
    shown = [repr(made), str(made), f"{made.model_dump()}", made.model_dump_json(), str(vars(made))]
    assert not any("canary" in text for text in shown)


def test_the_settings_that_are_secrets_are_found_by_their_names() -> None:
    named = {name for model in all_settings() for name in model.model_fields if is_secret_name(name)}
    assert {"nats_password", "engine_api_key", "engine_api_key_file", "api_key"} <= named
    assert not named & {"max_length", "api_keys_file", "port_file", "ledger_file"}


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("OPENAI_API_KEY", True), ("HF_TOKEN", True), ("HF_TOKEN_FILE", True), ("NATS_PASSWORD", True),
        ("AWS_SECRET_ACCESS_KEY", True), ("MAX_TOKENS", False), ("PATH", False), ("KEYBOARD", False),
        ("LLAMADUO_API_KEYS_FILE", False),
    ],
)  # fmt: skip
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret_name(name) == secret


@pytest.mark.parametrize("secret", ["sk-unit-1a2b3c4d", 'quo"ted\\ns/ec+ret?', "schlüssel-4711"])
def test_a_secret_is_masked_in_every_spelling_and_at_every_place(secret: str) -> None:
    learn(secret)
    for before in ("", "a", "ab", "user:"):
        for code in (base64.b64encode, base64.urlsafe_b64encode):
            coded = code((before + secret + "!").encode()).decode()
            whole = masked(f"[{coded}]")
            assert MASK in whole and len(whole) < len(coded), coded
    assert masked(f"x{secret}y") == f"x{MASK}y"
    assert secret not in masked(json.dumps({"key": secret})) and json.dumps(secret)[1:-1] not in masked(
        json.dumps(secret)
    )


def test_what_is_too_short_to_be_a_secret_is_left_as_it_is() -> None:
    learn("none")
    learn("")
    learn(None)
    assert masked("none of these") == "none of these"


def test_variables_files_and_urls_are_learnt(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_unit_from_a_file\n")
    learn_environment(
        {
            "SOME_API_KEY": "sk-unit-variable",
            "HF_TOKEN_FILE": str(tmp_path / "token"),
            "OTHER_TOKEN_FILE": str(tmp_path / "missing"),
            "LLAMADUO_NATS_URL": "nats://me:unit-password-in-url@bus:4222",
            "PATH": "/usr/bin",
            "LLAMADUO_NATS_KEY": str(tmp_path / "token"),
            "LONG_KEY": "unit-long-key" * 1000,
        }
    )
    text = masked("sk-unit-variable hf_unit_from_a_file unit-password-in-url /usr/bin")
    assert text == f"{MASK} {MASK} {MASK} /usr/bin"
    assert masked(f"cannot read {tmp_path / 'token'}") == f"cannot read {tmp_path / 'token'}"
    assert masked("unit-long-key" * 1000) == MASK


def test_logs_and_reasons_of_failures_are_masked() -> None:
    learn("sk-unit-in-an-error")
    logger, out = logging.Logger("unit"), io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines("unit"))
    logger.addHandler(handler)
    try:
        raise RetryableError("Bearer sk-unit-in-an-error was refused")
    except RetryableError as error:
        logger.exception("failed with %s", "sk-unit-in-an-error")
        assert describe(error) == f"RetryableError: Bearer {MASK} was refused"
    line = json.loads(out.getvalue())
    assert "sk-unit" not in out.getvalue() and MASK in line["message"] and MASK in line["exception"]
