"""ROUGE-L and chrF give what their papers and sacreBLEU give."""

from __future__ import annotations

import time

import pytest

from services.judge.overlap import chrf, rouge_l


@pytest.mark.parametrize(
    ("candidate", "value"),
    [("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4), ("the gunman police killed", 2 / 4)],
)
def test_rouge_l_gives_the_example_of_its_paper(candidate: str, value: float) -> None:
    assert rouge_l("police killed the gunman", candidate) == pytest.approx(value)


def test_rouge_l_is_f1_over_words_of_any_script_without_case() -> None:
    reference = "The quick brown fox jumps over the lazy dog"
    assert rouge_l(reference, "the quick brown dog jumps on THE log.") == pytest.approx(10 / 17)
    assert rouge_l("你好世界", "你好，世界") == 1
    assert rouge_l("Straße", "STRASSE") == 1
    assert (rouge_l("", ""), rouge_l("x", ""), rouge_l("", "x")) == (1, 0, 0)


@pytest.mark.parametrize(
    ("candidate", "reference", "percent"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 100),
        ("the cat is on mat", "the cat sat on the mat", 35.000752131273686),
        ("abc", "abd", 38.888888888888886),
        ("Ein Haus am See", "Das Haus am See liegt", 48.35957988390571),
        ("x", "hello world", 0),
        ("a", "ab", 55.55555555555556),
        ("你好世界", "你好，世界", 33.99581589958159),
        ("Refund the customer and close the ticket.", "Close the ticket after the refund.", 53.06532528853651),
    ],
)
def test_chrf_gives_what_sacrebleu_2_6_gives(candidate: str, reference: str, percent: float) -> None:
    assert 100 * chrf(reference, candidate) == pytest.approx(percent, abs=1e-9)


def test_a_huge_answer_costs_no_more_than_a_long_one() -> None:
    began = time.perf_counter()
    assert chrf("a short reference", "word " * 1_000_000) < 0.1
    assert rouge_l("a short reference", "word " * 1_000_000) == 0
    assert time.perf_counter() - began < 5
