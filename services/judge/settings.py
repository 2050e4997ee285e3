"""Settings of the judge."""

from __future__ import annotations

from pydantic import Field

from llamaduo.settings import ServiceSettings


class JudgeSettings(ServiceSettings):
    """Read from the environment, prefix `LLAMADUO_`. One process runs one evaluator."""

    shards_at_once: int = Field(1, ge=1, le=16, description="shards marked side by side")
    evaluator: str = Field("exact-match", description="which evaluator this process runs")
