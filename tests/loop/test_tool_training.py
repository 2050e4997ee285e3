"""Rows with tools through TRL itself, on a model of a few thousand weights: both wordings, and who is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaduo.datasets import dump_rows
from llamaduo.migrations.recipe import Recipe
from llamaduo.tool_calls import ToolWording
from services.trainer.engine import ADAPTER_FILES, TrainingImpossible, TrainJob
from tests.unit.test_tool_wording import IGNORES, RENDERS, byte_tokenizer
from tests.unit.test_tools import calling, going_on

pytestmark = [pytest.mark.training, pytest.mark.timeout(300)]

ROWS = [*(calling(f"where is number {n} of mine", f"A{n}") for n in range(8)), going_on("close A1")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=256,
        eos_token_id=257,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("wording", "template", "answer"),
    [("template", RENDERS, "<tool_call>"), ("text", IGNORES, '{"tool_calls":[')],
)
def test_the_answer_alone_is_learnt_in_either_wording(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wording: ToolWording, template: str, answer: str
) -> None:
    from services.trainer import trl_training, weak_rows

    seen: list[str] = []  # what each row teaches
    count = trl_training._count_labels

    def look(job: TrainJob, dataset: Any) -> tuple[int, int]:
        for labels in dataset["labels"]:
            seen.append(byte_tokenizer().decode([token for token in labels if token != weak_rows.IGNORED]))
        return count(job, dataset)

    monkeypatch.setattr(trl_training, "_count_labels", look)
    job = _job(model, tmp_path, wording, template)
    done = trl_training.train(job, lambda _: None, lambda: None, lambda: False)
    assert (done.rows_kept, done.rows_cut, done.steps) == (len(ROWS), 0, 2)
    assert {path.name for path in job.out.iterdir()} == set(ADAPTER_FILES)
    assert sum(text.startswith(answer) for text in seen) == len(ROWS) - 1
    assert sum(text.startswith("It is closed.") for text in seen) == 1
    assert all(text.rstrip().endswith("<|im_end|>") and "<|im_start|>" not in text for text in seen)


def test_a_template_without_tools_is_refused_before_a_step(model: Path, tmp_path: Path) -> None:
    from services.trainer import trl_training

    job = _job(model, tmp_path, "template", IGNORES)
    with pytest.raises(TrainingImpossible, match="does not render tools"):
        trl_training.train(job, lambda _: None, lambda: pytest.fail("it began"), lambda: False)


def _job(model: Path, folder: Path, wording: ToolWording, template: str) -> TrainJob:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    rows = folder / "train.jsonl"
    rows.write_bytes(dump_rows(ROWS))
    return TrainJob(
        train=rows,
        base_folder=model,
        recipe=Recipe(steps=2, batch_size=2, threads=1, max_length=2048),
        tool_wording=wording,
        out=folder / "adapter",
        work=folder / "work",
    )
