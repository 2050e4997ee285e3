"""Settings of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from llamaduo.settings import ServiceSettings


class TrainerSettings(ServiceSettings):
    """Read from the environment, prefix `LLAMADUO_`."""

    training_engine: Literal["trl", "fake"] = Field("trl", description="TRL in a child process, or the fake")
    keep_spare: bool = Field(
        True, description="keep a training process with its libraries loaded for the next job (0.5 GB of memory)"
    )
    accelerator_dir: Path | None = Field(
        None, description="folder of those who use one accelerator in turn; unset: it is the trainer's alone"
    )
    fake_seconds: float = Field(0.2, ge=0, description="with engine=fake: how long a job takes")
