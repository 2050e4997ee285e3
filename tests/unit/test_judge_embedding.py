"""Nearness in meaning, with real vectors: those that all-MiniLM-L6-v2 has for some words, reduced to 32 numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from llamaduo.conformance import examine
from llamaduo.errors import PermanentError
from llamaduo.evaluators import Evaluator, Score, Task
from services.judge.catalogue import make
from services.judge.embedding import DEFAULT_MODEL, cosine, load, looks_like_a_folder
from tests.support import environment
from tests.unit.judge_tasks import row, task

VECTORS = Path(__file__).with_name("word_vectors.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model2vec model as anybody would have it on disk."""
    from model2vec import StaticModel
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = json.loads(VECTORS.read_text("utf-8"))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0} | {word: n for n, word in enumerate(words, 1)}, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    rows = numpy.array([[0.0] * 32, *words.values()], dtype=numpy.float32)
    target = tmp_path_factory.mktemp("model")
    StaticModel(rows, tokenizer).save_pretrained(str(target))
    return str(target)


async def marked(model: str, reference: str, *answers: str | None) -> list[Score]:
    scores = await make("embedding", None).score([row("a", reference, *answers)], task(options={"model": model}))
    assert isinstance(scores, list)
    return scores


async def test_what_means_the_same_is_nearer_than_what_does_not(folder: str) -> None:
    late = "The parcel arrived late."
    answers = ("the parcel arrived late", "your delivery was delayed", "I forgot my password", late, None)
    same_words, near, far, same, missing = [one.value for one in await marked(folder, late, *answers)]
    assert same == 100 and missing is None
    assert same_words == pytest.approx(100, abs=0.01) and near is not None and far is not None
    assert 30 < near < 90 and far < near - 25


async def test_what_is_unknown_or_opposite(folder: str) -> None:
    assert [one.value for one in await marked(folder, "refund", "", "xyzzy", "rain")][:2] == [0, 0]
    assert cosine(load(folder), "refund", "rain") == 0
    [unknown] = await marked(folder, "xyzzy plugh", "refund")
    assert unknown.value is None and unknown.reason == "the model knows no word of the reference"


async def test_it_keeps_the_rules_of_evaluators(folder: str) -> None:
    inner = make("embedding", None)

    async def score(rows: object, given: Task) -> object:
        return await inner.score(rows, task(options={"model": folder}))  # type: ignore[arg-type]

    tried = Evaluator(inner.name, inner.version, inner.metrics, score)  # type: ignore[arg-type]
    failed = [check async for check in examine(tried) if check.state == "failed"]
    assert failed == []


async def test_a_missing_model_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PermanentError, match=r"no such model2vec folder here .*option `model`"):
        await marked(str(tmp_path / "nothing"), "x", "y")
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(PermanentError, match="embedding: model"):
        await marked(str(tmp_path), "x", "y")
    with pytest.raises(PermanentError, match="no option 'modell'"):
        await make("embedding", None).score([row("a", "x", "y")], task(options={"modell": "x"}))


def test_a_model_of_the_hub_that_is_not_here_is_told_so(tmp_path: Path) -> None:
    code = f"from services.judge.embedding import load; load({DEFAULT_MODEL!r})"
    env = environment(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    tried = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert tried.returncode and "cannot be had from the Hub" in tried.stderr.splitlines()[-1]


async def test_without_the_library_it_says_which_extra(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model2vec", None)
    load.cache_clear()
    with pytest.raises(PermanentError, match=r"pip install 'llamaduo\[embedding\]'"):
        await marked(folder, "x", "y")


def test_declaring_it_loads_no_library() -> None:
    code = "import sys; from services.judge.catalogue import make; make('embedding', None); "
    code += "assert not {'model2vec', 'numpy', 'tokenizers', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "folder"), [("minishlab/potion-base-8M", False), ("./x", True), ("/a/b", True), ("model", True)]
)
def test_ids_of_the_hub_and_folders(name: str, folder: bool) -> None:
    assert looks_like_a_folder(name) == folder
