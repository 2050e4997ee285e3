"""The benchmark of fault runs goes on where it was stopped, and its summary hides nothing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import faults
from tests.faults.run import Outcome
from tests.faults.schedule import KINDS, Fault


def line(seed: int, *problems: str, **more: Any) -> dict[str, Any]:
    struck = [{"kind": "kill", "victim": "trainer", "recovery": float(seed)}]
    return {
        "seed": seed, "problems": list(problems), "seconds": 10.0 + seed, "struck": struck, "calls": 100, "again": 1,
        "left_out": [], **more,
    }  # fmt: skip


def chosen(out: Path, **more: Any) -> argparse.Namespace:
    return argparse.Namespace(shard=1, out=out, failed=False, summary=False, quick=True, **more)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders of the runs that were played; every run is sound."""
    names: list[str] = []

    async def play(folder: Path, _port: int, _faults: Sequence[Fault]) -> Outcome:
        names.append(folder.name)
        return Outcome({}, {"call": 1}, set(), seconds=9.0)

    monkeypatch.setattr(faults, "play", play)
    monkeypatch.setattr(faults, "left_out", dict)
    return names


async def test_a_rerun_plays_only_the_seeds_that_are_missing(tmp_path: Path, played: list[str]) -> None:
    (tmp_path / "shard-1.jsonl").write_text(json.dumps(line(51)) + "\n" + '{"seed": 52, "prob')
    result = await faults.faults(chosen(tmp_path))
    assert played == ["calm", "52"]
    assert result["runs"] == 2
    await faults.faults(chosen(tmp_path))
    assert played == ["calm", "52"]


async def test_failed_seeds_are_played_again_only_when_asked(tmp_path: Path, played: list[str]) -> None:
    (tmp_path / "shard-1.jsonl").write_text(json.dumps(line(51, "lost")) + "\n" + json.dumps(line(52)) + "\n")
    assert (await faults.faults(chosen(tmp_path)))["failed"] == [51]
    assert played == []
    again = chosen(tmp_path)
    again.failed = True
    result = await faults.faults(again)
    assert played == ["calm", "51"]
    assert result["failed"] == [] and result["failed_before"] == [51]


def test_the_summary_counts_kinds_violations_and_recovery() -> None:
    silent = line(3, struck=[{"kind": "cut", "victim": "verdict", "recovery": None}])
    result = faults.summary([line(1), line(2, "lost", "twice"), silent])
    assert (result["runs"], result["failed"], result["violations"], result["faults"]) == (3, [2], 2, 3)
    assert result["kinds"]["kill"] == {"struck": 2, "recovery_s": {"n": 2, "p50": 1.0, "p99": 2.0, "max": 2.0}}
    assert result["kinds"]["cut"] == {"struck": 1, "recovery_s": {"n": 0}}
    assert set(result["kinds"]) == set(KINDS) and result["victims"] == {"trainer": 2, "verdict": 1}


def test_the_section_takes_its_own_place_and_leaves_the_rest() -> None:
    part = faults.section(faults.summary([line(1)]))
    once = faults.with_section("# Results\n\ntext\n\n## Other\n\nmore\n", part)
    assert faults.with_section(once, part) == once
    between = faults.with_section(f"# Results\n\n{faults.HEADING}\n\nold\n\n## Other\n\nmore\n", part)
    assert (
        "old" not in between and "| kill | 1 | 1.0 | 1.0 | 1 |" in between and between.endswith("## Other\n\nmore\n")
    )
