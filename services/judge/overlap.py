"""How much of the reference's text an answer shares: ROUGE-L by words, chrF by characters. Free."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from llamaduo.built_in_evaluators import CHRF, METRICS, ROUGE_L
from llamaduo.evaluators import Evaluator
from services.judge.each_answer import each_answer
from services.judge.options import check_options

LONGEST = 20_000
"""Characters of a text that are compared: beyond them a mark would cost more time than it tells."""

_CHRF_ORDER = 6
_CHRF_BETA = 2
_WORDS = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|\w+")
"""A word is a run of letters and digits; scripts written without spaces count sign by sign."""


def rouge_l(reference: str, candidate: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1 (Lin 2004, for one sentence); case does not count."""
    from rapidfuzz.distance import LCSseq

    expected, given = (_WORDS.findall(text[:LONGEST].casefold()) for text in (reference, candidate))
    if not expected or not given:
        return float(expected == given)
    return 2 * LCSseq.similarity(expected, given) / (len(expected) + len(given))


def chrf(reference: str, candidate: str) -> float:
    """chrF2 of one answer, 0 to 1 (Popović 2015): n-grams of 1 to 6 characters, without spaces, recall twice.

    Precision and recall are averaged over the lengths that both texts have, as sacreBLEU does.
    """
    expected, given = ("".join(text[:LONGEST].split()) for text in (reference, candidate))
    if not expected or not given:
        return float(expected == given)
    lengths = range(1, min(_CHRF_ORDER, len(expected), len(given)) + 1)
    precision = recall = 0.0
    for length in lengths:
        wanted = Counter(expected[i : i + length] for i in range(len(expected) - length + 1))
        found = Counter(given[i : i + length] for i in range(len(given) - length + 1))
        shared = (wanted & found).total()
        precision += shared / found.total()
        recall += shared / wanted.total()
    if precision + recall == 0:
        return 0.0
    precision, recall = precision / len(lengths), recall / len(lengths)
    weight = _CHRF_BETA**2
    return min(1.0, (1 + weight) * precision * recall / (weight * precision + recall))


def rouge_l_evaluator() -> Evaluator:
    """The evaluator `rouge-l` with its one metric, `f1`."""
    return _overlap(ROUGE_L, rouge_l, "words")


def chrf_evaluator() -> Evaluator:
    """The evaluator `chrf` with its one metric, `f2`."""
    return _overlap(CHRF, chrf, "character sequences")


def _overlap(name: str, measure: Callable[[str, str], float], what: str) -> Evaluator:
    (metric,) = METRICS[name]

    def mark(reference: str, answer: str) -> tuple[dict[str, float], str]:
        value = measure(reference, answer)
        return {metric: value}, f"shares {100 * value:.0f} % of its {what} with the reference"

    return Evaluator(
        name=name,
        version="1",
        metrics=METRICS[name],
        score=each_answer(
            (metric,),
            lambda row, answer, _: mark(row.reference, answer),
            check=lambda options: check_options(name, options, ()),
        ),
    )
