"""The conformance kit passes what keeps its word and names what does not."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from llamaduo import conformance
from llamaduo.built_in_evaluators import EMBEDDING
from llamaduo.checker import Checker
from llamaduo.cli.evaluator_commands import chosen, metric_of
from llamaduo.cli.main import call
from llamaduo.conformance import POISON, examine
from llamaduo.datasets import ShardRow
from llamaduo.errors import UserInputError
from llamaduo.evaluators import Evaluator, Score, evaluator
from services.judge.catalogue import NAMES, make
from tests.support import ROOT


async def states(of: Evaluator) -> dict[str, tuple[str, str]]:
    return {check.name: (check.state, check.detail) async for check in examine(of)}


def honest(rows: Sequence[ShardRow]) -> list[Score]:
    return [
        Score(row.row, "score", None if answer is None else float(answer == row.reference), sample, "compared")
        for row in rows
        for sample, answer in enumerate(row.answers)
    ]


def evaluator_of(score: Callable[[Sequence[ShardRow]], list[Score]]) -> Evaluator:
    @evaluator("tried")
    async def tried(rows: Sequence[ShardRow]) -> list[Score]:
        await asyncio.sleep(0)
        return score(rows)

    return tried


# `embedding` needs a model; its own tests try it with one.
BY_RULES = [name for name in NAMES if make(name, None).cost_per_row == "free" and name != EMBEDDING]


@pytest.mark.parametrize("name", BY_RULES)
async def test_what_comes_with_llamaduo_keeps_its_word(name: str) -> None:
    found = await states(make(name, None))
    assert {"declares", "marks", "redelivery", "other shards", "withdrawn", "reasons", "pace", *POISON} <= set(found)
    assert not {check: detail for check, (state, detail) in found.items() if state == "failed"}


def fails_on(wrong: Callable[[str | None], bool]) -> Callable[[Sequence[ShardRow]], list[Score]]:
    def score(rows: Sequence[ShardRow]) -> list[Score]:
        if any(wrong(answer) for row in rows for answer in row.answers):
            raise ValueError("cannot")
        return honest(rows)

    return score


def drawn(rows: Sequence[ShardRow]) -> list[Score]:
    return [Score(one.row, one.metric, random.random(), one.sample) for one in honest(rows)]


def by_place(rows: Sequence[ShardRow]) -> list[Score]:
    return [Score(one.row, one.metric, place / 1000, one.sample) for place, one in enumerate(honest(rows))]


@pytest.mark.parametrize(
    ("score", "check", "says"),
    [
        (lambda rows: [Score(one.row, "score", 7, one.sample) for one in honest(rows)], "marks", "outside 0..1"),
        (lambda rows: [Score(one.row, "other", 1, one.sample) for one in honest(rows)], "marks", "has not declared"),
        (lambda rows: [Score("else", "score", 1)], "marks", "which it was not given"),
        (lambda rows: honest(rows)[:-1], "marks", "1 of 6 marks were left out"),
        (lambda rows: [*honest(rows), honest(rows)[0]], "marks", "marked twice"),
        (lambda rows: [*honest(rows), Score(rows[0].row, "score", 1, 9)], "marks", "sample 9"),
        (
            lambda rows: [Score(one.row, "score", None, one.sample) for one in honest(rows)],
            "marks",
            "without a reason",
        ),
        (drawn, "redelivery", "other marks"),
        (by_place, "other shards", "other marks"),
        (fails_on(lambda answer: answer is None), "no answer", "ValueError: cannot"),
        (fails_on(lambda answer: answer == ""), "empty answer", "ValueError: cannot"),
        (fails_on(lambda answer: len(answer or "") > 1_000_000), "huge answer", "ValueError: cannot"),
        (fails_on(lambda answer: "\x00" in (answer or "")), "odd unicode", "ValueError: cannot"),
    ],
)
async def test_each_broken_rule_is_named(
    score: Callable[[Sequence[ShardRow]], list[Score]], check: str, says: str
) -> None:
    found = await states(evaluator_of(score))
    state, detail = found[check]
    assert state == "failed" and says in detail
    assert next(name for name, (other, _) in found.items() if other == "failed") == check


@pytest.mark.parametrize(
    ("of", "says"),
    [
        (evaluator("No Name")(lambda rows: asyncio.sleep(0, honest(rows))), "lower-case"),
        (evaluator("n", version=" ")(lambda rows: asyncio.sleep(0, honest(rows))), "version"),
        (evaluator("n", metrics={"a.b": (0, 1)})(lambda rows: asyncio.sleep(0, honest(rows))), "gate"),
        (Evaluator("n", "1", {}, make("exact-match", None).score), "no metric"),
    ],
)
async def test_what_a_spec_could_not_name_is_refused_at_once(of: Evaluator, says: str) -> None:
    found = await states(of)
    assert set(found) == {"declares"} and found["declares"][0] == "failed" and says in found["declares"][1]


async def test_slowness_missing_answers_and_quotes_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "SLOW_S", 0.2)

    def slow(rows: Sequence[ShardRow]) -> list[Score]:
        if len(rows) > 1:
            time.sleep(0.25)
        return [Score(one.row, one.metric, 1.0, one.sample, f"not {rows[-1].reference}") for one in honest(rows)]

    found = await states(evaluator_of(slow))
    assert found["pace"][0] == found["no answer"][0] == found["reasons"][0] == "note"
    assert "an outage counts" in found["no answer"][1]
    assert not any(state == "failed" for state, _ in found.values())


async def test_what_is_left_behind_by_withdrawn_work_is_seen() -> None:
    left: list[int] = []

    async def leaves(rows: Sequence[ShardRow]) -> list[Score]:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            left.append(1)
            raise
        return [Score(one.row, one.metric, float(bool(left)), one.sample) for one in honest(rows)]

    assert (await states(evaluator("tried")(leaves)))["withdrawn"][0] == "failed"


def test_the_command_says_one_line_a_check_and_fails_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = f"{ROOT / 'examples' / 'same_length_evaluator.py'}:same_length"
    assert call(["evaluator", "check", good]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines].count("ok") >= 13 and len(lines) == 7 + len(POISON)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "response": "b"}\n')
    assert call(["evaluator", "check", good, "--rows", str(rows)]) == 0
    assert "2 marks" in capsys.readouterr().out
    assert call(["evaluator", "check", "--name", "cat", "--exec", "cat"]) == 1
    assert "failed  marks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "either an object"),
        ({"target": "a.py:b", "command": "cat"}, "either an object"),
        ({"target": "a.py:b", "name": "n"}, "go with --exec"),
        ({"command": "cat"}, "--name"),
        ({"command": "cat", "name": "No"}, "--name"),
        ({"command": "/nowhere/x", "name": "n"}, "no such program"),
        ({"command": "", "name": "n"}, "no such program"),
        ({"command": "cat 'x", "name": "n"}, "no closing quotation"),
        ({"command": "cat", "name": "n", "metrics": ["score:0:" + "9" * 400]}, "--metric"),
        ({"command": "cat", "name": "n", "metrics": ["score:1:0"]}, "--metric"),
        ({"command": "cat", "name": "n", "metrics": ["score"]}, "--metric"),
        ({"command": "cat", "name": "n", "metrics": ["score:0:1.2.3"]}, "--metric"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(arguments: dict[str, object], says: str) -> None:
    given = {
        "target": None,
        "command": None,
        "name": None,
        "metrics": None,
        "version": "1",
        "timeout": 1.0,
        **arguments,
    }
    with pytest.raises(UserInputError, match=says):
        chosen(**given)  # type: ignore[arg-type]


def test_a_program_is_declared_by_the_command_line() -> None:
    made, checker = chosen(None, "cat -u", "calm", ["a:0:5:lower", "b:-1:1"], "2", 1.0)
    assert (made.name, made.version, list(made.metrics)) == ("calm", "2", ["a", "b"])
    assert isinstance(checker, Checker)
    assert metric_of("a:0:5:lower")[1].higher_is_better is False
