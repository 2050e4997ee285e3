"""Fine-tuning with TRL and PEFT. Runs in the training child process only: importing it loads torch.

Nothing of the ML libraries' types leaves this file: it takes a TrainJob and gives plain numbers.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import math
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PrinterCallback,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from llamaduo.datasets import Row
from llamaduo.migrations.recipe import Recipe
from llamaduo.tools_in_words import in_words
from services.trainer.checkpoints import StoppedEarly, mark_whole, newest_whole
from services.trainer.engine import ADAPTER_FILES, TrainingImpossible, TrainJob, TrainProgress
from services.trainer.rendering import tokenized
from services.trainer.rows import read_rows, row_order
from services.trainer.weak_rows import IGNORED, weak_rows

# Up to this many tokens a row, plain attention is the quickest on CPUs with AMX; beyond, it takes much memory.
EAGER_UP_TO = 256
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")


@dataclass(frozen=True)
class Trained:
    """What a run to the end gave; see TrainResult for the fields' meaning."""

    best_step: int
    steps: int
    loss: float
    validation_loss: float | None
    validation_curve: list[tuple[int, float]]
    weak: list[tuple[str, float]]
    rows_given: int
    rows_kept: int
    rows_cut: int
    label_tokens: int
    total_tokens: int
    device: str
    precision: str
    versions: dict[str, str]


def train(
    job: TrainJob,
    on_progress: Callable[[TrainProgress], None],
    on_loaded: Callable[[], None],
    stop: Callable[[], bool],
) -> Trained:
    """Trains `job` and writes its adapter folder.

    `on_loaded` is called right before the first step. `stop` is asked after each step; once it says True, a
    checkpoint is written and StoppedEarly raised. Raises TrainingImpossible where the rows or the recipe cannot
    be trained with.
    """
    recipe = job.recipe
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    cuda = torch.cuda.is_available()
    precision = _precision(recipe, cuda)
    tokenizer = AutoTokenizer.from_pretrained(job.base_folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise TrainingImpossible(f"{job.base_folder}: the base model has no chat template")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    rows = read_rows(job.train)
    train_set, lengths = _dataset(rows, job, tokenizer)
    kept_validation = read_rows(job.validation) if job.validation else []
    longest = min(recipe.max_length, max(lengths))
    trainer = AnswerTrainer(
        model=_base_model(job, cuda, precision, longest),
        args=_arguments(job, cuda, precision, bool(kept_validation)),
        train_dataset=train_set,
        eval_dataset=_dataset(kept_validation, job, tokenizer)[0] if kept_validation else None,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[_Reporter(recipe.steps, on_progress, stop)],
    )
    trainer.remove_callback(PrinterCallback)
    if kept_validation and not len(trainer.eval_dataset):
        raise TrainingImpossible(f"{job.validation}: no row is shorter than max_length={recipe.max_length}")
    label_tokens, total_tokens = _count_labels(job, trainer.train_dataset)

    on_loaded()
    checkpoint = newest_whole(job.work)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = trainer.state
    if state.global_step < recipe.steps:
        raise StoppedEarly
    _write_adapter(trainer.model, job)
    weak = trainer.weak_rows(recipe.batch_size) if kept_validation else []

    curve = [(int(e["step"]), float(e["eval_loss"])) for e in state.log_history if "eval_loss" in e]
    losses = [float(e["loss"]) for e in state.log_history if "loss" in e][-10:]
    rows_kept = len(trainer.train_dataset)
    return Trained(
        best_step=int(state.best_global_step) if curve else recipe.steps,
        steps=recipe.steps,
        loss=sum(losses) / len(losses),
        validation_loss=float(state.best_metric) if curve else None,
        validation_curve=curve,
        weak=weak,
        rows_given=len(rows),
        rows_kept=rows_kept,
        # A row whose prompt alone fills the limit is gone, one whose answer crosses it is cut.
        rows_cut=sum(count > recipe.max_length for count in lengths) - (len(rows) - rows_kept),
        label_tokens=label_tokens,
        total_tokens=total_tokens,
        device=torch.cuda.get_device_name() if cuda else f"cpu ({torch.get_num_threads()} threads)",
        precision=f"nf4, {precision}" if getattr(trainer.model, "is_loaded_in_4bit", False) else precision,
        versions=_versions(),
    )


class AnswerTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer with a fixed order of rows and, on a CPU, the LM head run on the answers' tokens only.

    TRL's fused head skips the prompt's tokens on a GPU alone; on a CPU it would cost as much as the model.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        batch_size = self.args.per_device_train_batch_size * self.accelerator.num_processes
        batches = self.args.max_steps * self.args.gradient_accumulation_steps
        lengths = [len(ids) for ids in dataset["input_ids"]]
        return _FixedOrder(row_order(lengths, batch_size, batches, self.args.seed))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy of the labelled tokens, nats a token."""
        if return_outputs or self.args.device.type != "cpu" or "logits_to_keep" not in _parameters(model):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        logits, labels = answer_logits(model, inputs)
        learned = labels != IGNORED
        loss = torch.nn.functional.cross_entropy(logits[learned].float(), labels[learned], reduction="sum")
        return loss / (learned.sum() if num_items_in_batch is None else num_items_in_batch)

    def weak_rows(self, batch_size: int) -> list[tuple[str, float]]:
        """What the model, as it is now, has not learnt of the validation rows; see the function of that name."""

        def logits_of(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            with self.compute_loss_context_manager():
                return answer_logits(self.model, {name: value.to(self.args.device) for name, value in batch.items()})

        self.model.eval()
        ids = list(self.eval_dataset["row"])
        return weak_rows(self.eval_dataset, ids, batch_size, self.data_collator, logits_of)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none: the card would name this machine's folders."""


def answer_logits(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (rows, columns, words) and labels (rows, columns) of the columns in which any row has a token to learn;
    where the model can, no others are computed.
    """
    labels = torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
    columns = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
    some = {"logits_to_keep": columns} if "logits_to_keep" in _parameters(model) else {}
    logits = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, **some
    ).logits
    return (logits if some else logits[:, columns]), labels[:, columns]


def _parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    """Of the base model's forward, which the adapter's wrapper passes everything on to."""
    return inspect.signature(model.get_base_model().forward).parameters


class _FixedOrder(torch.utils.data.Sampler, Sized):  # type: ignore[misc]
    def __init__(self, order: list[int]) -> None:
        self._order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Tells of each step, marks checkpoints as whole, and stops the run when asked to."""

    def __init__(self, steps: int, on_progress: Callable[[TrainProgress], None], stop: Callable[[], bool]) -> None:
        self._steps, self._on_progress, self._stop = steps, on_progress, stop
        self._loss: float | None = None

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs or "eval_loss" in logs:
            self._loss = float(logs["loss"]) if "loss" in logs else self._loss
            validation = float(logs["eval_loss"]) if "eval_loss" in logs else None
            if not all(math.isfinite(value) for value in (self._loss, validation) if value is not None):
                raise TrainingImpossible(
                    f"the loss is no longer a number at step {state.global_step}: lower learning_rate"
                )
            self._on_progress(
                TrainProgress(step=state.global_step, steps=self._steps, loss=self._loss, validation_loss=validation)
            )

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._stop() and state.global_step < self._steps:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _precision(recipe: Recipe, cuda: bool) -> str:
    if recipe.precision != "auto":
        return recipe.precision
    if cuda:
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    # Without matrix units for bf16, a CPU multiplies it at half the speed of fp32.
    info = Path("/proc/cpuinfo")
    return "bf16" if info.is_file() and "amx_bf16" in info.read_text() else "fp32"


def _dataset(rows: list[Row], job: TrainJob, tokenizer: Any) -> tuple[Any, list[int]]:
    """The rows as TRL takes them, and how many tokens each has.

    Conversational prompt and completion is the only form in which TRL masks the prompt for every template. Tools are
    in words, just as inference asks with them, or rendered here.
    """
    if job.tool_wording == "template":
        ready = tokenized(rows, tokenizer)
        lengths = [len(row["input_ids"]) for row in ready]
        return Dataset.from_list([{**one, "row": row.id} for one, row in zip(ready, rows, strict=True)]), lengths
    plain = [[message.model_dump() for message in in_words(row.messages, row.tools)] for row in rows]
    lengths = [len(ids) for ids in tokenizer.apply_chat_template(plain, return_dict=True)["input_ids"]]
    pairs = [{"prompt": m[:-1], "completion": m[-1:], "row": row.id} for m, row in zip(plain, rows, strict=True)]
    return Dataset.from_list(pairs), lengths


def _base_model(job: TrainJob, cuda: bool, precision: str, longest: int) -> Any:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    quantization = None
    if job.recipe.quantization == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    eager = not cuda and precision == "bf16" and longest <= EAGER_UP_TO
    return AutoModelForCausalLM.from_pretrained(
        job.base_folder,
        dtype=dtype,
        attn_implementation="eager" if eager else "sdpa",
        device_map={"": 0 if cuda else "cpu"},
        quantization_config=quantization,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )


def _arguments(job: TrainJob, cuda: bool, precision: str, validates: bool) -> Any:
    recipe = job.recipe
    every = min(recipe.validate_every, recipe.steps)
    return SFTConfig(
        output_dir=str(job.work),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size * 2,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup,
        max_length=recipe.max_length,
        completion_only_loss=True,
        shuffle_dataset=False,
        packing=False,
        bf16=precision == "bf16",
        use_cpu=not cuda,
        gradient_checkpointing=cuda,
        seed=job.seed,
        data_seed=job.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        eval_strategy="steps" if validates else "no",
        eval_steps=every if validates else None,
        prediction_loss_only=True,
        load_best_model_at_end=validates,
        metric_for_best_model="eval_loss" if validates else None,
        greater_is_better=False if validates else None,
        push_to_hub=False,
    )


def _count_labels(job: TrainJob, dataset: Any) -> tuple[int, int]:
    if not len(dataset):
        raise TrainingImpossible(
            f"{job.train}: in every row the prompt alone fills max_length={job.recipe.max_length}: raise it"
        )
    labels = sum(label != IGNORED for row in dataset["labels"] for label in row)
    total = sum(len(row) for row in dataset["input_ids"])
    if not 0 < labels < total:
        raise TrainingImpossible(
            f"{job.train}: {labels} of {total} tokens would be learned: the prompt is not told from the answer"
        )
    return labels, total


def _write_adapter(model: Any, job: TrainJob) -> None:
    """Writes the adapter's two files, without anything in them that differs from run to run."""
    partial = job.out.with_name(f"{job.out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial, safe_serialization=True)
    for file in partial.iterdir():
        if file.name not in ADAPTER_FILES:
            file.unlink()
        else:
            file.chmod(0o644)
    config_file = partial / "adapter_config.json"
    config = json.loads(config_file.read_text("utf-8"))
    config["base_model_name_or_path"] = job.base_name or job.base_folder.name
    config["target_modules"] = sorted(config["target_modules"])
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    shutil.rmtree(job.out, ignore_errors=True)
    partial.rename(job.out)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, "llamaduo"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
