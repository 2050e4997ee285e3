"""The recipe: how an adapter is trained. Part of the spec, of the trained adapter's event, and of its id."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llamaduo.migrations.strict import Strict


class Preference(Strict):
    """DPO after the fine-tuning: answers of train rows against what the fine-tuned model wrongly says to them.

    What comes out is kept only where it answers more validation rows word for word, or as many at no greater loss.
    """

    rows: int = Field(64, ge=1, le=10_000, description="Train rows that the model is asked to answer, at most.")
    beta: float = Field(0.1, gt=0, le=10, description="How closely the model is held to what it was before.")
    learning_rate: float = Field(5e-5, gt=0, le=0.1, description="Highest learning rate.")


class Recipe(Strict):
    """Settings of one LoRA or QLoRA fine-tuning; the same for every round of a migration.

    The step count is fixed, not the number of epochs: were it to grow with the data, a better score could be
    due to longer training and not to the new rows. Choose it so large that the validation loss is flat at its
    end. Any key that is not listed here is an error.
    """

    steps: int = Field(100, ge=1, le=100_000, description="Optimizer steps, the same in every round.")
    batch_size: int = Field(8, ge=1, le=1024, description="Rows in one forward pass.")
    start: Literal["base", "previous"] = Field(
        "base",
        description="What a round after the first begins with: the base model, or the adapter of the round before. "
        "Either way it is trained on all rows, old and new.",
    )
    continued_rate: float = Field(
        0.5, gt=0, le=1, description="With `start: previous`: share of `learning_rate` in rounds after the first."
    )
    accumulation: int = Field(1, ge=1, le=1024, description="Forward passes in one optimizer step.")
    learning_rate: float = Field(1e-3, gt=0, le=0.1, description="Highest learning rate; cosine decay to zero.")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the rate rises from zero.")
    rank: int = Field(16, ge=1, le=512, description="LoRA rank; the serving engine must allow as much.")
    alpha: int = Field(32, ge=1, le=4096, description="LoRA alpha; the update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input while training.")
    max_length: int = Field(
        512,
        ge=16,
        le=1_048_576,
        description="Longest row in tokens. Longer rows lose the end of their answer, or are left out where "
        "the prompt alone fills it; both are counted and reported.",
    )
    quantization: Literal["none", "nf4"] = Field(
        "none", description="`nf4` holds the base weights in 4 bits while training (QLoRA)."
    )
    validate_every: int = Field(
        20,
        ge=1,
        le=100_000,
        description="Steps between two looks at the validation loss; the adapter with the lowest is kept. "
        "Checkpoints are written at the same steps.",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Number format of weights and compute; `auto` is bf16 where the machine is fast at it (a GPU "
        "that has it, a CPU with AMX), else fp32.",
    )
    preference: Preference | None = Field(None, description="DPO on own failures after the steps; off by default.")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads of the training process; all cores where it is not set."
    )
