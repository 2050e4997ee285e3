"""The benchmark's model earns the marks that it is asked to, from the judge that the emulator is."""

from __future__ import annotations

import json
import random
from statistics import fmean, pstdev

import pytest

from benchmarks.graded_engine import FIELDS, fields_right, partly_right
from services.emulator.judging import compare

REFERENCE = '{"intent":"refund","product":"lamp","order":null,"urgency":"high"}'


@pytest.mark.parametrize("mean", [0.5, 0.6, 0.8, 0.9])
def test_marks_have_the_mean_and_spread_asked_for(mean: float) -> None:
    chance = random.Random(5)
    marks = [fields_right(mean, 0.22, chance) / FIELDS for _ in range(20_000)]
    assert fmean(marks) == pytest.approx(mean, abs=0.01)
    assert pstdev(marks) == pytest.approx(0.22, abs=0.02)


@pytest.mark.parametrize("right", range(FIELDS + 1))
def test_an_answer_has_as_many_fields_right_as_it_should(right: int) -> None:
    answer = partly_right(REFERENCE, right, random.Random(1))
    assert json.loads(answer).keys() == json.loads(REFERENCE).keys()
    assert compare(REFERENCE, "   " + answer).similarity == 25 * right
