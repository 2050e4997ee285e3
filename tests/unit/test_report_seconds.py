"""Seconds per stage: unions of intervals, clipped to a window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaduo.event_parts import WorkSpan
from llamaduo.migrations.seconds import covered, seconds_within
from tests.unit.synthetic_log import at, span


def test_overlaps_count_once_and_the_window_clips() -> None:
    spans = [span("training", -5, 4), span("training", 2, 6), span("service_llm", 5, 8), span("marking", 20, 30)]
    seconds = seconds_within(spans, at(0), at(10))
    assert (seconds.training, seconds.service_llm, seconds.marking) == (6, 3, 0)
    assert seconds.other == 2
    assert seconds.wall == 10


def test_loading_a_model_counts_as_generation() -> None:
    seconds = seconds_within([span("model_load", 0, 3), span("generation", 2, 5)], at(0), at(10))
    assert seconds.generation == 5


def test_what_came_before_the_first_work_is_not_in_the_share() -> None:
    seconds = seconds_within([span("training", 8, 17)], at(0), at(18))
    assert seconds.other == 9
    assert seconds.other_share == pytest.approx(0.1)


def test_an_empty_window_has_no_seconds() -> None:
    assert seconds_within([span("training", 0, 3)], at(5), at(5)).wall == 0


spans_in_ints = st.lists(st.tuples(st.integers(-5, 25), st.integers(0, 12)), max_size=12)


@given(spans_in_ints)
def test_the_union_is_what_counting_every_second_gives(pairs: list[tuple[int, int]]) -> None:
    spans = [(at(start), at(start + length)) for start, length in pairs]
    by_second = sum(any(start <= s < start + length for start, length in pairs) for s in range(20))
    assert covered(spans, at(0), at(20)) == by_second


@given(spans_in_ints, st.integers(1, 19))
def test_windows_add_up(pairs: list[tuple[int, int]], cut: int) -> None:
    spans: list[WorkSpan] = [span("training", start, start + length) for start, length in pairs if length]
    first, second = seconds_within(spans, at(0), at(cut)), seconds_within(spans, at(cut), at(20))
    whole = seconds_within(spans, at(0), at(20))
    assert first.training + second.training == pytest.approx(whole.training)
    assert first.other + second.other == pytest.approx(whole.other)
    assert whole.training + whole.other == pytest.approx(whole.wall)
