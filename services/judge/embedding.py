"""How near an answer is to the reference in meaning: cosine of their static embeddings. Free, and runs here.

Static embeddings (model2vec) are a table of vectors, one a token, averaged over a text: no torch, no GPU, and
thousands of texts a second. They see which words are meant, not their order.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from llamaduo.built_in_evaluators import EMBEDDING, METRICS
from llamaduo.datasets import ShardRow
from llamaduo.errors import PermanentError
from llamaduo.evaluators import Evaluator
from services.judge.each_answer import Options, each_answer
from services.judge.options import check_options, text_option

if TYPE_CHECKING:
    from model2vec import StaticModel

NAME = EMBEDDING
METRIC = "cosine"
DEFAULT_MODEL = "minishlab/potion-base-8M"
LONGEST = 20_000
"""Characters of a text that are compared."""


def embedding() -> Evaluator:
    """The evaluator `embedding` with its one metric, `cosine`.

    Option `model`: a folder with a model2vec model on the judge's machine, or its id on the Hub.
    """
    return Evaluator(
        name=NAME,
        version="1",
        metrics=METRICS[NAME],
        score=each_answer((METRIC,), _marks, check=lambda options: check_options(NAME, options, ("model",))),
    )


def cosine(model: StaticModel, reference: str, candidate: str) -> float | None:
    """0 to 100; what points away counts as 0. None where the model knows no word of the reference."""
    if reference.strip() == candidate.strip():
        return 100.0
    expected, given = model.encode([reference[:LONGEST], candidate[:LONGEST]], max_length=None)
    length, other = math.sqrt(expected @ expected), math.sqrt(given @ given)
    if length == 0:
        return None
    return min(100.0, max(0.0, 100 * float(expected @ given) / (length * other))) if other else 0.0


def _marks(row: ShardRow, answer: str, options: Options) -> tuple[dict[str, float | None], str]:
    model = load(text_option(NAME, options, "model") or DEFAULT_MODEL)
    value = cosine(model, row.reference, answer)
    if value is None:
        return {METRIC: None}, "the model knows no word of the reference"
    return {METRIC: value}, f"as near to the reference in meaning as {value:.0f} of 100"


@lru_cache(maxsize=2)
def load(model: str) -> StaticModel:
    """The model of this name, kept for the next answer. PermanentError says what is missing and what to do."""
    try:
        from model2vec import StaticModel
    except ImportError as error:
        raise PermanentError(
            f"evaluator {NAME} needs model2vec, which is not installed here: pip install 'llamaduo[embedding]'"
        ) from error
    try:
        # Without this a model that is in the cache would be fetched again.
        return StaticModel.from_pretrained(model, force_download=False)
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = "no such model2vec folder here" if looks_like_a_folder(model) else "cannot be had from the Hub"
        raise PermanentError(
            f"evaluator {NAME}: model {model!r}: {where} ({why[:200]}); set its option `model` to a folder with a "
            "model2vec model, or to one of the Hub that this machine can reach or has in its cache"
        ) from error


def looks_like_a_folder(model: str) -> bool:
    """Whether a name means a folder: an id of the Hub is `owner/name`."""
    return Path(model).is_dir() or model.startswith((".", "/", "~")) or model.count("/") != 1
