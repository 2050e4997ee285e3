"""The loss on the answers' tokens alone is TRL's own loss, only cheaper: checked on a tiny random model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.trainer.engine import TrainingImpossible

pytestmark = [pytest.mark.training, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig

    from services.trainer.trl_training import AnswerTrainer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    words = {f"w{i}": i for i in range(97)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w1", eos_token="w2"
    )
    # Prompts and answers of many lengths, so that the answers begin and end at other places in each row.
    rows = []
    for i in range(6):
        ids = [3 + (i * 31 + 7 * k) % 90 for k in range(12 + 3 * i)]
        prompt = 2 + 2 * i
        rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    folder: Path = tmp_path_factory.mktemp("trainer")
    return AnswerTrainer(
        model=LlamaForCausalLM(config),
        args=SFTConfig(
            output_dir=str(folder), max_steps=3, per_device_train_batch_size=2, use_cpu=True, bf16=False, seed=5,
            gradient_checkpointing=False, report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )  # fmt: skip


@pytest.mark.parametrize("given", [None, 40])
def test_loss_and_gradients_equal_trls(trainer: Any, given: int | None) -> None:
    from trl import SFTTrainer

    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    outcomes = []
    for compute in (SFTTrainer.compute_loss, type(trainer).compute_loss):
        trainer.model.train()
        trainer.model.zero_grad()
        loss = compute(trainer, trainer.model, dict(batch), num_items_in_batch=given)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        outcomes.append((float(loss.detach()), gradients))
    (theirs, their_gradients), (ours, our_gradients) = outcomes
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert len(our_gradients) > 10
    for name, gradient in our_gradients.items():
        assert gradient.abs().max() > 0, name
        assert (gradient - their_gradients[name]).abs().max() < 1e-5, name


def test_batches_come_in_the_fixed_order(trainer: Any) -> None:
    from services.trainer.rows import row_order

    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    order = row_order(lengths, 2, 3, 5)
    batches = [batch["input_ids"] for batch in trainer.get_train_dataloader()]
    assert [len(batch) for batch in batches] == [2, 2, 2]
    firsts = [int(row[0]) for batch in batches for row in batch]
    assert firsts == [trainer.train_dataset[i]["input_ids"][0] for i in order]


@pytest.mark.parametrize("logs", [{"loss": float("nan")}, {"eval_loss": float("inf")}])
def test_a_loss_that_is_no_number_is_a_named_error(logs: dict[str, float]) -> None:
    from services.trainer.trl_training import _Reporter

    reporter = _Reporter(9, lambda _: None, lambda: False)
    reporter.on_log(None, SimpleNamespace(global_step=1), None, {"loss": 1.0})
    with pytest.raises(TrainingImpossible, match="step 2: lower learning_rate"):
        reporter.on_log(None, SimpleNamespace(global_step=2), None, logs)


def test_rows_not_learnt_are_those_with_a_likelier_token_somewhere_in_the_answer(trainer: Any) -> None:
    import torch

    from services.trainer.trl_training import answer_logits
    from services.trainer.weak_rows import weak_rows

    ids = [f"row{i}" for i in range(6)]
    learned = {1, 4}

    def logits_of(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's own logits; those of the learned rows say what is right."""
        logits, labels = answer_logits(trainer.model, batch)
        for place, tokens in enumerate(batch["input_ids"].tolist()):
            if any(tokens[: len(r)] == r for r in (trainer.train_dataset[i]["input_ids"] for i in learned)):
                logits[place] = 20.0 * torch.nn.functional.one_hot(labels[place].clamp(min=0), logits.shape[-1])
        return logits, labels

    trainer.model.eval()
    found = weak_rows(trainer.train_dataset, ids, 4, trainer.data_collator, logits_of)
    assert sorted(row for row, _ in found) == ["row0", "row2", "row3", "row5"]
    losses = [loss for _, loss in found]
    assert losses == sorted(losses, reverse=True)
    expected = weak_rows(trainer.train_dataset, ids, 1, trainer.data_collator, logits_of)
    assert dict(found) == pytest.approx(dict(expected), rel=1e-4), "whatever the batch"
