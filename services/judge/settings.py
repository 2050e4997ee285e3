"""Settings of the judge."""

from __future__ import annotations

from pydantic import Field

from llamaduo.settings import ServiceSettings


class JudgeSettings(ServiceSettings):
    """Read from the environment, prefix `LLAMADUO_`. One process runs one evaluator."""

    evaluator: str = Field("exact-match", description="which evaluator this process runs")
