"""DPO after fine-tuning: the answers of train rows against what the fine-tuned model wrongly says to them.

Runs in the training child process only: importing it loads torch. Test rows never come here; whether the result is
kept is decided by the validation rows.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from llamaduo.datasets import Row
from llamaduo.event_parts import PreferenceTraining
from services.trainer.checkpoints import StoppedEarly
from services.trainer.engine import TrainJob
from services.trainer.rows import in_plain_words

# Room for an answer that is longer than all that were taught.
MORE_TOKENS = 8


def prefer(
    trainer: Any, tokenizer: Any, job: TrainJob, train: list[Row], validation: list[Row], stop: Callable[[], bool]
) -> PreferenceTraining:
    """Trains `trainer.model` on in place, and puts its weights back where validation says that this was no gain.

    Kept is what gives more validation answers word for word, or as many at no greater loss. `trainer` is the
    SFTTrainer at its best checkpoint. StoppedEarly as soon as `stop` says True; nothing is kept of it then.
    """
    recipe, model = job.recipe, trainer.model
    preference = recipe.preference
    assert preference is not None
    limit = max((_tokens(tokenizer, _answer(row)) for row in train), default=0) + MORE_TOKENS

    def answers_to(rows: list[Row]) -> list[str]:
        with trainer.accelerator.autocast():
            return greedy_answers(model, tokenizer, rows, 2 * recipe.batch_size, limit, stop)

    chance = random.Random(job.seed)  # noqa: S311 (a choice of rows, not a secret)
    asked = chance.sample(train, min(preference.rows, len(train)))
    pairs = wrong_pairs(asked, answers_to(asked))
    outcome = PreferenceTraining(asked=len(asked), pairs=len(pairs))
    if not pairs:
        return outcome

    judged = chance.sample(validation, min(preference.rows, len(validation)))
    before = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    exact_before, loss_before = _exact(judged, answers_to(judged)), _loss(trainer)
    _dpo(trainer, tokenizer, job, pairs, stop)
    exact_after, loss_after = _exact(judged, answers_to(judged)), _loss(trainer)
    kept = math.isfinite(loss_after) and (exact_after, -loss_after) >= (exact_before, -loss_before)
    if not kept:
        set_peft_model_state_dict(model, before)
    return outcome.model_copy(
        update={
            "kept": kept,
            "validated": len(judged),
            "exact_before": exact_before,
            "exact_after": exact_after,
            "loss_before": loss_before,
            "loss_after": loss_after if math.isfinite(loss_after) else None,
        }
    )


def wrong_pairs(rows: list[Row], answers: list[str]) -> list[dict[str, Any]]:
    """Conversational DPO rows of those that were answered in other words than the row's own."""
    pairs = []
    for row, answer in zip(rows, answers, strict=True):
        messages = in_plain_words(row)
        if answer and answer != _answer(row):
            rejected = {**messages[-1], "content": answer}
            pairs.append({"prompt": messages[:-1], "chosen": messages[-1:], "rejected": [rejected]})
    return pairs


def greedy_answers(
    model: Any, tokenizer: Any, rows: list[Row], batch: int, limit: int, stop: Callable[[], bool]
) -> list[str]:
    """The model's answers of at most `limit` tokens, stripped, in the order of `rows`."""
    was_training = model.training
    model.eval()
    answers = [""] * len(rows)
    prompts = [in_plain_words(row)[:-1] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: sum(len(message["content"]) for message in prompts[i]))
    for start in range(0, len(order), batch):
        if stop():
            raise StoppedEarly
        some = order[start : start + batch]
        given = tokenizer.apply_chat_template(
            [prompts[i] for i in some],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            tokenizer_kwargs={"padding_side": "left"},
        ).to(model.device)
        with torch.no_grad():
            written = model.generate(**given, max_new_tokens=limit, do_sample=False, use_cache=True)
        texts = tokenizer.batch_decode(written[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(some, texts, strict=True):
            answers[i] = text.strip()
    model.train(was_training)
    return answers


def _dpo(trainer: Any, tokenizer: Any, job: TrainJob, pairs: list[dict[str, Any]], stop: Callable[[], bool]) -> None:
    recipe, model = job.recipe, trainer.model
    preference = recipe.preference
    assert preference is not None
    # TRL gives the base another forward, with another set of outputs than its SFTTrainer needs afterwards.
    base = model.get_base_model()
    forward = base.forward
    folder = job.work / "preference"
    dpo = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(folder),
            num_train_epochs=1,
            # Of each pair both answers are in a batch.
            per_device_train_batch_size=max(1, recipe.batch_size // 2),
            beta=preference.beta,
            learning_rate=preference.learning_rate,
            max_length=recipe.max_length,
            bf16=trainer.args.bf16,
            use_cpu=trainer.args.use_cpu,
            gradient_checkpointing=trainer.args.gradient_checkpointing,
            seed=job.seed,
            data_seed=job.seed,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        callbacks=[_Stopping(stop)],
    )
    dpo.remove_callback(PrinterCallback)
    dpo.train()
    # The copy of the adapter that DPO measured against.
    model.delete_adapter("ref")
    base.forward = forward
    shutil.rmtree(folder, ignore_errors=True)


class _Stopping(TrainerCallback):  # type: ignore[misc]
    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self._stop():
            raise StoppedEarly


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _exact(rows: list[Row], answers: list[str]) -> int:
    return sum(answer == _answer(row) for row, answer in zip(rows, answers, strict=True))


def _answer(row: Row) -> str:
    """What is taught: tool calls are words in it."""
    content: str = in_plain_words(row)[-1]["content"]
    return content.strip()


def _loss(trainer: Any) -> float:
    """Of all validation rows, nats a token."""
    return float(trainer.evaluate()["eval_loss"])
