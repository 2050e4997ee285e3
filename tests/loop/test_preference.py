"""DPO on own failures with a tiny random model: what it learns from, and when it is taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaduo.datasets import Message, Row, make_row
from llamaduo.migrations.recipe import Preference, Recipe
from services.trainer.checkpoints import StoppedEarly
from services.trainer.engine import TrainJob

pytestmark = [pytest.mark.training, pytest.mark.timeout(300)]

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} end {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def rows(first: int, count: int) -> list[Row]:
    """Prompts of one to four words, each answered by one word."""
    return [
        make_row(
            [
                Message(role="user", content=" ".join(f"w{(i + k) % 40}" for k in range(1 + i % 4))),
                Message(role="assistant", content=f"w{40 + i % 5}"),
            ]
        )
        for i in range(first, first + count)
    ]


class Stage:
    """A trainer that has not trained, its job and rows."""

    def __init__(self, folder: Path) -> None:
        import torch
        from peft import LoraConfig
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        from trl import SFTConfig

        from services.trainer.trl_training import AnswerTrainer, as_dataset

        torch.manual_seed(0)
        words = ["pad", "end", "user", "assistant", "unknown", *(f"w{i}" for i in range(60))]
        plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="unknown"))
        plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="pad", eos_token="end")
        self.tokenizer.chat_template = TEMPLATE
        config = LlamaConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
        self.train, self.validation = rows(0, 8), rows(20, 4)
        self.job = TrainJob(
            train=folder / "train",
            base_folder=folder,
            recipe=Recipe(batch_size=4, max_length=32, preference=Preference(rows=6, learning_rate=0.05)),
            out=folder / "out",
            work=folder / "work",
        )
        self.trainer = AnswerTrainer(
            model=LlamaForCausalLM(config),
            args=SFTConfig(
                output_dir=str(folder), max_steps=1, use_cpu=True, bf16=False, gradient_checkpointing=False,
                report_to="none", disable_tqdm=True, prediction_loss_only=True,
            ),
            train_dataset=as_dataset(self.train),
            eval_dataset=as_dataset(self.validation),
            processing_class=self.tokenizer,
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip

    def weights(self) -> dict[str, Any]:
        from peft import get_peft_model_state_dict

        return {name: tensor.clone() for name, tensor in get_peft_model_state_dict(self.trainer.model).items()}

    def prefer(self, stop: bool = False) -> Any:
        from services.trainer.trl_preference import prefer

        return prefer(self.trainer, self.tokenizer, self.job, self.train, self.validation, lambda: stop)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_a_pair_is_the_rows_answer_and_what_was_said_instead() -> None:
    from services.trainer.trl_preference import wrong_pairs

    some = rows(0, 3)
    pairs = wrong_pairs(some, ["w40", "something else", ""])
    assert pairs == [
        {
            "prompt": [some[1].messages[0].model_dump()],
            "chosen": [some[1].messages[1].model_dump()],
            "rejected": [{**some[1].messages[1].model_dump(), "content": "something else"}],
        }
    ], "right and empty answers teach nothing"


def test_answers_do_not_depend_on_the_batch(stage: Stage) -> None:
    from services.trainer.trl_preference import greedy_answers

    model = stage.trainer.model
    together = greedy_answers(model, stage.tokenizer, stage.train, 8, 5, lambda: False)
    alone = [greedy_answers(model, stage.tokenizer, [row], 1, 5, lambda: False)[0] for row in stage.train]
    assert together == alone and len(set(together)) > 1


@pytest.mark.parametrize("better", [True, False])
def test_validation_decides_whether_it_is_kept(stage: Stage, better: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([2.0, 1.9 if better else 2.1])
    monkeypatch.setattr("services.trainer.trl_preference._loss", lambda _: next(losses))
    monkeypatch.setattr("services.trainer.trl_preference._exact", lambda *_: 1)
    before, forward = stage.weights(), stage.trainer.model.get_base_model().forward
    outcome = stage.prefer()
    assert outcome.asked == 6 and 0 < outcome.pairs <= 6 and outcome.validated == 4
    assert (outcome.kept, outcome.loss_before) == (better, 2.0)
    assert same(stage.weights(), before) != better
    assert list(stage.trainer.model.peft_config) == ["default"]
    assert stage.trainer.model.get_base_model().forward == forward


def test_the_trainer_can_still_be_asked_for_its_loss(stage: Stage) -> None:
    outcome = stage.prefer()
    assert outcome.loss_before != outcome.loss_after
    now = stage.trainer.evaluate()["eval_loss"]
    assert now == pytest.approx(outcome.loss_after if outcome.kept else outcome.loss_before)


def test_it_stops_when_asked(stage: Stage) -> None:
    with pytest.raises(StoppedEarly):
        stage.prefer(stop=True)
