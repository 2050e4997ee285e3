"""Settings of the emulator: environment variables `LLAMADUO_EMULATOR_…`, overridden by the command line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.emulator.faults import FaultRates


class EmulatorSettings(BaseSettings):
    """How the emulated provider behaves. Rates are shares of requests from 0 to 1."""

    model_config = SettingsConfigDict(env_prefix="LLAMADUO_EMULATOR_", extra="ignore")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=0, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    port_file: Path | None = Field(default=None, description="file that the chosen port is written to")
    tls_cert: Path | None = Field(default=None, description="PEM of a certificate: HTTP goes over TLS")
    tls_key: Path | None = Field(default=None, description="PEM of its key")
    api_key: SecretStr | None = Field(default=None, description="key that callers must send; none: any caller")
    api_keys_file: Path | None = Field(default=None, description="file with keys of callers (llamaduo keys new)")
    model_name: str = Field(default="scripted-teacher", min_length=1, description="the one model served")
    ledger_file: Path | None = Field(default=None, description="append-only file that keeps the ledger")
    latency_ms: float = Field(default=0.0, ge=0, description="time every answer takes at least")
    rpm: int | None = Field(default=None, ge=1, description="requests admitted in any 60 seconds; none: all")
    retry_after_s: int = Field(default=1, ge=0, description="Retry-After of 429s drawn by --rate-429")
    rate_429: float = Field(default=0.0, ge=0, le=1, description="share of requests refused with 429")
    error_rate: float = Field(default=0.0, ge=0, le=1, description="share of requests answered with 500")
    cut_rate: float = Field(default=0.0, ge=0, le=1, description="share of answers cut off")
    malformed_rate: float = Field(default=0.0, ge=0, le=1, description="share of answers malformed")
    refusal_rate: float = Field(default=0.0, ge=0, le=1, description="share refused by a content filter")
    refused_text: str | None = Field(default=None, description="requests that hold this text are always refused")
    empty_rate: float = Field(default=0.0, ge=0, le=1, description="share of answers without text")
    odd_rate: float = Field(default=0.0, ge=0, le=1, description='share of marks written as "85/100", "85 %" or 85.5')
    batch_ms: float = Field(default=1000.0, ge=0, description="time from sending a batch until it is done")
    batch_expired_rate: float = Field(
        default=0.0, ge=0, le=1, description="share of a batch's requests that are not done in time"
    )
    seed: int = Field(default=0, description="seed of all faults")
    max_body_bytes: int = Field(default=1_000_000, ge=1, description="larger bodies are refused with 413")

    @model_validator(mode="after")
    def _rates_fit(self) -> Self:
        rates = self.fault_rates()
        total = sum(getattr(rates, field.name) for field in fields(rates))
        if total > 1:
            raise ValueError(f"the rates of all faults (429s, errors, spoiled answers) add up to {total:g}, above 1")
        return self

    def fault_rates(self) -> FaultRates:
        """The rates as the fault plan takes them."""
        return FaultRates(
            rate_limited=self.rate_429,
            server_error=self.error_rate,
            cut=self.cut_rate,
            malformed=self.malformed_rate,
            refused=self.refusal_rate,
            empty=self.empty_rate,
            odd=self.odd_rate,
        )
