"""The arms of `training`, one run each. Importing this loads no ML library; running an arm does."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llamaduo.migrations.recipe import Recipe
from services.trainer.engine import TrainJob, TrainProgress
from services.trainer.rows import read_rows

Arm = Literal["ours", "trl_default", "trl_default_unchecked", "bare"]
ARMS: tuple[Arm, ...] = ("ours", "trl_default", "trl_default_unchecked", "bare")
# The default of TRL and of our recipe alike.
BATCH = 8


@dataclass(frozen=True)
class Work:
    """What all arms train: `steps` full batches of the rows in a JSON lines file, from a base model's folder."""

    rows: Path
    base: Path
    steps: int
    threads: int


@dataclass(frozen=True)
class ArmRun:
    """Seconds from the start of training to the end of its last step; loading, tokenizing, saving left out.

    `tokens` are those of the rows that were learned from, without padding; `answer_tokens` those with a loss.
    `peak_mb` is the most memory that the process had, loading included.
    """

    cpu_s: float
    wall_s: float
    tokens: int
    answer_tokens: int
    peak_mb: float


class _Clock:
    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._began = time.process_time(), time.perf_counter()
        self.cpu_s = self.wall_s = 0.0

    def lap(self) -> None:
        """The latest step has ended now."""
        self.cpu_s, self.wall_s = time.process_time() - self._began[0], time.perf_counter() - self._began[1]


def run_arm(arm: Arm, work: Work) -> ArmRun:
    """One run of one arm in this process. For a process of its own, or its memory and thread count mean little."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as temp:
        tokens, answer_tokens = _ours(work, clock, Path(temp)) if arm == "ours" else _trl(arm, work, clock, temp)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return ArmRun(clock.cpu_s, clock.wall_s, tokens, answer_tokens, peak_mb)


def _ours(work: Work, clock: _Clock, folder: Path) -> tuple[int, int]:
    from services.trainer.trl_training import train

    def on_progress(_: TrainProgress) -> None:
        clock.lap()

    job = TrainJob(
        train=work.rows,
        base_folder=work.base,
        recipe=Recipe(steps=work.steps, batch_size=BATCH, threads=work.threads),
        out=folder / "adapter",
        work=folder / "work",
    )
    trained = train(job, on_progress, clock.begin, lambda: False)
    return trained.total_tokens, trained.label_tokens


def _trl(arm: Arm, work: Work, clock: _Clock, folder: str) -> tuple[int, int]:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from services.trainer.trl_training import as_dataset
    from services.trainer.weak_rows import IGNORED

    class Laps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.lap()

    torch.set_num_threads(work.threads)
    common = {"output_dir": folder, "use_cpu": True, "max_steps": work.steps, "per_device_train_batch_size": BATCH}
    # All linear layers in every arm: else TRL would train another, smaller adapter.
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = str(work.base)
    if arm == "trl_default":
        args = SFTConfig(**common, report_to="none")
    elif arm == "trl_default_unchecked":
        args = SFTConfig(**common, report_to="none", gradient_checkpointing=False)
    else:
        model = AutoModelForCausalLM.from_pretrained(work.base, dtype=torch.bfloat16)
        args = SFTConfig(
            **common,
            bf16=True,
            gradient_checkpointing=False,
            max_length=512,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            report_to="none",
            seed=0,
        )
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=as_dataset(read_rows(work.rows)),
        peft_config=lora,
        callbacks=[Laps()],
    )
    clock.begin()
    trainer.train()
    labels = sum(label != IGNORED for row in trainer.train_dataset["labels"] for label in row)
    return sum(len(ids) for ids in trainer.train_dataset["input_ids"]), labels
