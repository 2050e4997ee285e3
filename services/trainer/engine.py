"""What training an adapter means to the rest of the service: the job, its progress, its result, its errors."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from llamaduo.errors import PermanentError, RetryableError
from llamaduo.event_parts import PreferenceTraining
from llamaduo.migrations.recipe import Recipe
from llamaduo.tool_calls import ToolWording

LOG_NAME = "train.log"
WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = ("adapter_config.json", WEIGHTS)


class TrainJob(BaseModel):
    """One training run.

    `train` and `validation` are JSON lines of `llamaduo.datasets.Row`. `out` is the adapter folder to write; it
    appears only when it is complete. `work` keeps checkpoints: the same job given the same `work` again goes on
    where it stopped, another job given it starts anew. Equal rows, base, recipe, seed and previous adapter make a
    bit-identical adapter on one machine, interrupted or not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Path
    validation: Path | None = None
    base_folder: Path
    base_name: str = Field("", description="written into the adapter's config; the folder's name if empty")
    previous: Path | None = Field(None, description="weights of the adapter to go on from, as safetensors")
    recipe: Recipe = Recipe()
    seed: int = 0
    tool_wording: ToolWording = "text"
    out: Path
    work: Path


class TrainProgress(BaseModel):
    """After a step: its training loss, and the validation loss where this step was validated (else None)."""

    model_config = ConfigDict(frozen=True)

    step: int
    steps: int
    loss: float | None
    validation_loss: float | None = None


class TrainResult(BaseModel):
    """A finished adapter and all that is worth reporting of its making."""

    model_config = ConfigDict(frozen=True)

    files: dict[str, str] = Field(description="the adapter's files by name, with their SHA-256")
    best_step: int = Field(description="the step the adapter is from; the last where there is no validation")
    steps: int
    loss: float = Field(description="mean training loss of the last ten steps, nats a token")
    validation_loss: float | None = Field(description="at `best_step`, nats a token")
    validation_curve: list[tuple[int, float]] = Field(description="step and validation loss")
    weak: list[tuple[str, float]] = Field(
        default_factory=list,
        description="validation rows that it would not answer word for word, with their loss in nats a token; the "
        "highest first",
    )
    rows_given: int
    rows_kept: int = Field(description="rows given less those whose prompt alone fills `max_length`")
    rows_cut: int = Field(description="kept rows that lost the end of their answer to `max_length`")
    label_tokens: int = Field(description="tokens of the kept rows that are learned: those of the answers")
    total_tokens: int = Field(description="tokens of the kept rows")
    preference: PreferenceTraining | None = None
    seed: int
    device: str
    precision: str
    versions: dict[str, str]
    began: datetime = Field(description="UTC; the training process had its libraries loaded and took the job")
    ended: datetime = Field(description="UTC; the adapter's files were complete")
    seconds_loading: float = Field(description="share of that time spent before the first step")
    peak_rss_mb: float


class TrainingEngine(Protocol):
    """Trains adapters, one job at a time."""

    async def train(self, job: TrainJob, on_progress: Callable[[TrainProgress], None]) -> TrainResult:
        """Runs `job` to its end. When cancelled, keeps a checkpoint where it can, and leaves within 20 s.

        Raises TrainingFailed (trying again may help and goes on from the last checkpoint) or TrainingImpossible.
        """
        ...


class TrainingFailed(RetryableError):
    """The training process ended without an adapter; the message carries its last words."""


class TrainingImpossible(PermanentError):
    """This job cannot be trained here however often it is tried: out of memory, or rows that cannot be used."""
