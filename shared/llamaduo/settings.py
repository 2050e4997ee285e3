"""What every service reads from its environment (prefix `LLAMADUO_`). Secrets are masked and never logged."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from llamaduo.errors import UserInputError
from llamaduo.plain_words import in_words

S = TypeVar("S", bound=BaseSettings)


class BusSettings(BaseSettings):
    """How to reach the bus and the artifacts."""

    model_config = SettingsConfigDict(env_prefix="LLAMADUO_", extra="ignore")

    nats_url: str = Field("nats://127.0.0.1:4222", description="one URL, or several separated by commas")
    nats_user: str | None = Field(None, description="NATS user of this service")
    nats_password: SecretStr | None = Field(None, description="its password")
    nats_password_file: Path | None = Field(None, description="a file that holds that password")
    nats_ca: Path | None = Field(
        None, description="PEM of who signed the bus's certificate; asks for TLS, as tls:// does"
    )
    nats_cert: Path | None = Field(
        None, description="PEM of this client's own certificate, for a bus that asks for one"
    )
    nats_key: Path | None = Field(None, description="PEM of its key")
    http_ca: Path | None = Field(
        None, description="PEM of who signed the services' certificates; unset: those the machine trusts"
    )
    artifacts_url: str | None = Field(
        None, description="file:///folder, s3://bucket/prefix, …; unset: the JetStream object store"
    )
    profile: Literal["default", "faults"] = Field(
        "default", description="`faults` shortens ack waits, leases and retry delays for fault tests"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector that services send traces to: http://host:4318/v1/traces"
    )
    state_dir: Path = Field(Path(".llamaduo"), description="scratch files, model cache, logs")


class ServiceSettings(BusSettings):
    """What every long-running service has beside that."""

    http_host: str = Field("127.0.0.1", description="where /healthz, /readyz and /metrics listen")
    http_cert: Path | None = Field(
        None, description="PEM of a certificate: HTTP goes over TLS, the OpenAI endpoint too"
    )
    http_key: Path | None = Field(None, description="PEM of its key")
    http_port: int = Field(0, ge=0, le=65535, description="0: a free port")
    port_file: Path | None = Field(None, description="where to write the port that was taken")
    replica: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}", description="name of this process"
    )


def secret_of(given: SecretStr | None, file: Path | None, *, what: str, variable: str) -> str | None:
    """A secret from its variable, else from the file that `<variable>_FILE` names; None where neither is set.

    UserInputError where the file cannot be read or is empty.
    """
    if given is not None and (secret := given.get_secret_value().strip()):
        return secret
    if file is None:
        return None
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = f"{what} cannot be read: {type(error).__name__}"
        raise UserInputError(why, file=str(file), field=f"{variable}_FILE") from error
    if not secret:
        raise UserInputError(f"{what} is empty", file=str(file), field=f"{variable}_FILE")
    return secret


def bus_login(settings: BusSettings) -> tuple[str, str] | None:
    """User and password for the bus; None where it has no users. UserInputError where only one is there."""
    password = secret_of(
        settings.nats_password,
        settings.nats_password_file,
        what="the bus's password",
        variable="LLAMADUO_NATS_PASSWORD",
    )
    if settings.nats_user and password is None:
        raise UserInputError("there is a user and no password", field="LLAMADUO_NATS_PASSWORD")
    if password is not None and not settings.nats_user:
        raise UserInputError("there is a password and no user", field="LLAMADUO_NATS_USER")
    return (settings.nats_user, password) if settings.nats_user and password is not None else None


def read_settings(model: type[S], **given: Any) -> S:
    """Settings from the environment, with these in their place. UserInputError names the variable that is wrong."""
    try:
        return model(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"])
        raise UserInputError(in_words(first), field=f"{model.model_config['env_prefix']}{name}".upper()) from error
