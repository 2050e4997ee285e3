"""Settings of the inference service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from llamaduo.settings import ServiceSettings, secret_of


class InferenceSettings(ServiceSettings):
    """Read from the environment, prefix `LLAMADUO_`."""

    inference_engine: Literal["vllm", "url", "fake"] = Field(
        "vllm", description="vLLM of our own, one by URL, or the fake"
    )
    engine_url: str | None = Field(None, description="with engine=url: an OpenAI-compatible vLLM, ending in /v1")
    engine_model: str | None = Field(
        None,
        description="with engine=url: served name of the base model; unset: what fits the migration's base model",
    )
    engine_api_key: SecretStr | None = Field(None, description="with engine=url: its key, if it asks for one")
    engine_api_key_file: Path | None = Field(None, description="a file that holds that key")
    vllm_python: Path = Field(Path(".venv-vllm/bin/python"), description="interpreter of vLLM's own environment")
    base_model: str | None = Field(None, description="start vLLM with this at once; else with the first migration")
    dtype: str = Field("auto", description="vLLM's dtype")
    max_length: int = Field(2048, ge=64, description="tokens of prompt and answer")
    max_adapters: int = Field(4, ge=1, le=64, description="adapters served at once")
    max_rank: int | None = Field(
        None,
        ge=1,
        le=512,
        description="largest adapter rank; unset: that of the migration (on a CPU more costs time)",
    )
    concurrency: int = Field(32, ge=1, le=1024, description="prompts in flight")
    share_engine: bool = Field(
        True,
        description="whether a migration with another base model may take the engine while an alias is served; the "
        "alias is not served meanwhile. Off: such work is refused",
    )
    return_after_s: float = Field(
        10.0, ge=0, description="seconds without a request after which the engine goes back to an alias's base model"
    )
    accelerator_dir: Path | None = Field(
        None, description="folder of those who use one accelerator in turn; unset: it is this replica's alone"
    )
    shards_at_once: int = Field(2, ge=1, le=16, description="shards answered side by side")
    api_host: str = Field("127.0.0.1", description="where the OpenAI endpoint of the served models listens")
    api_port: int = Field(0, ge=0, le=65535, description="0: a free port")
    api_keys_file: Path | None = Field(
        None, description="keys that callers of that endpoint must show (`llamaduo keys new`); unset: any caller"
    )
    api_max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="larger requests get 413")
    fake_delay_s: float = Field(0.0, ge=0, description="with engine=fake: seconds a prompt takes")


def engine_key(settings: InferenceSettings) -> str | None:
    """The key of an engine by URL, if it has one. UserInputError where its file cannot be read or is empty."""
    return secret_of(
        settings.engine_api_key,
        settings.engine_api_key_file,
        what="the engine's key",
        variable="LLAMADUO_ENGINE_API_KEY",
    )
