"""Wilson intervals against values known from the literature, and their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaduo.event_parts import MetricRange
from llamaduo.migrations.intervals import fixed_marks, mean_by_row, wilson
from tests.unit.synthetic_log import marked

UNIT = MetricRange()


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3 (score, without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_agrees_with_the_literature(right: int, n: int, low: float, high: float) -> None:
    interval = wilson([1.0] * right + [0.0] * (n - right), UNIT, 0.95)
    assert interval.mean == pytest.approx(right / n)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)
    assert interval.n == n


def test_is_on_the_metrics_own_scale() -> None:
    unit = wilson([0.2, 0.6, 1.0], UNIT, 0.9)
    hundred = wilson([20, 60, 100], MetricRange(high=100), 0.9)
    shifted = wilson([-6, 2, 10], MetricRange(low=-10, high=10), 0.9)
    assert hundred.low == pytest.approx(100 * unit.low)
    assert hundred.high == pytest.approx(100 * unit.high)
    assert shifted.mean == pytest.approx(-10 + 20 * unit.mean)


@given(st.lists(st.floats(-2, 3), min_size=1, max_size=60), st.floats(0.51, 0.999))
def test_holds_its_mean_and_stays_on_the_scale(values: list[float], confidence: float) -> None:
    interval = wilson(values, UNIT, confidence)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_more_confidence_is_wider(values: list[float]) -> None:
    narrow, wide = wilson(values, UNIT, 0.8), wilson(values, UNIT, 0.99)
    assert wide.high - wide.low > narrow.high - narrow.low


@pytest.mark.parametrize(
    ("values", "scale", "confidence"),
    [([], UNIT, 0.95), ([0.5], MetricRange(low=1, high=1), 0.95), ([0.5], UNIT, 1.0)],
)
def test_refuses_what_has_no_interval(values: list[float], scale: MetricRange, confidence: float) -> None:
    with pytest.raises(ValueError, match="an interval needs"):
        wilson(values, scale, confidence)


def test_the_prompt_is_the_unit_and_abstains_are_left_out() -> None:
    scored = [event for event in marked("base", 3, 0) if event.type == "eval.scored"]
    judged = [e for e in scored if e.evaluator == "llm-judge"]
    again = [e.model_copy(update={"repeat": 1}) for e in judged]
    means, abstained = mean_by_row([*judged, *again])
    assert len(means["similarity"]) == 6
    assert abstained == {"similarity": 4}
    marks = fixed_marks({"llm-judge": [*judged, *again]}, 0.95)
    assert marks["llm-judge"]["similarity"].n == 6
    assert marks["llm-judge"]["similarity"].mean == pytest.approx(80)
