"""Settings of the synthesizer."""

from __future__ import annotations

from pydantic import Field

from llamaduo.settings import ServiceSettings


class SynthesizerSettings(ServiceSettings):
    """Read from the environment, prefix `LLAMADUO_`. Keys of service LLMs are read from the variable that the
    spec names."""

    shards_at_once: int = Field(2, ge=1, le=16, description="shards the service LLM answers side by side")
