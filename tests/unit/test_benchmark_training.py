"""How the training benchmark makes its figures of the arms' runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.training import compared
from benchmarks.training_arms import ARMS, Arm, ArmRun

RUN = ArmRun(cpu_s=10, wall_s=20, tokens=1000, answer_tokens=100, peak_mb=1500)


def repeat(**seconds: float) -> dict[str, ArmRun]:
    """One repeat; arms that are not named take ten CPU seconds."""
    return {arm: replace(RUN, cpu_s=seconds.get(arm, 10)) for arm in ARMS}


def test_a_ratio_is_taken_within_one_repeat_and_above_one_where_ours_is_faster() -> None:
    found = compared([repeat(ours=5, bare=10), repeat(ours=10, bare=10), repeat(ours=20, bare=60)])
    assert found["ratio_cpu"]["bare"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert found["ratio_wall"]["bare"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert found["tokens_per_cpu_s"] == {"ours": 100, "trl_default": 100, "trl_default_unchecked": 100, "bare": 100}
    assert "ours" not in found["ratio_cpu"]


@pytest.mark.parametrize("arm", ARMS)
def test_arms_that_learned_from_other_tokens_are_not_compared(arm: Arm) -> None:
    runs = [repeat(), {**repeat(), arm: replace(RUN, tokens=999)}]
    with pytest.raises(ValueError, match="same tokens"):
        compared(runs)
