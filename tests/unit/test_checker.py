"""A checker in another language: one line in, one line out, whatever else it does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest

from llamaduo.checker import LONGEST_ROW, Checker, Declared, checker_evaluator
from llamaduo.errors import RetryableError
from llamaduo.evaluators import Evaluator, Score
from llamaduo.event_parts import MetricRange
from tests.support import ROOT, until
from tests.unit.judge_tasks import row, task

PERL = ("perl", str(ROOT / "examples" / "calm_checker.pl"))
ODD = """
import json, os, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    answer, out = asked["answer"], {"id": asked["id"], "value": 0.5, "reason": str(os.getpid())}
    if answer == "die": os._exit(3)
    if answer == "hang": time.sleep(600)
    if answer == "chatty": print("hello")
    if answer == "long": print("x" * 100_000)
    if answer == "high": out["value"] = 7
    if answer == "text": out["value"] = "good"
    if answer == "nan": out["value"] = float("nan")
    if answer == "huge": out["value"] = 10**400
    if answer == "withheld": out = {"id": asked["id"], "value": None}
    if answer == "other": out["id"] += 1
    if answer == "env": out["reason"] = " ".join(sorted(os.environ))
    if answer == "half": sys.stdout.write('{"id"'); sys.stdout.flush(); os._exit(0)
    if answer == "options": out["reason"] = json.dumps(asked["options"])
    if answer == "two": out = {"id": asked["id"], "values": {"score": 1, "second": 4}}
    print(json.dumps(out), flush=True)
"""
UNIT = {"score": MetricRange(low=0, high=1)}


@asynccontextmanager
async def running(
    *command: str, timeout_s: float = 20, metrics: dict[str, MetricRange] | None = None
) -> AsyncIterator[tuple[Evaluator, Checker]]:
    checker = Checker(command or (sys.executable, "-c", ODD), timeout_s)
    try:
        yield checker_evaluator(Declared("odd", "1", metrics or UNIT), checker), checker
    finally:
        await checker.close()


async def marked(evaluator: Evaluator, *answers: str | None, **options: Any) -> list[Score]:
    scores = await evaluator.score([row("a", "ref", *answers)], task(options=options))
    assert isinstance(scores, list)
    return scores


async def test_a_checker_in_perl_marks_each_answer_and_abstains_where_there_is_none() -> None:
    async with running(*PERL) as (evaluator, checker):
        scores = await marked(evaluator, "Thank you.", "Now!!", None, 'odd \u2028 "quotes"\n}', "")
        assert [(one.value, one.reason) for one in scores] == [
            (1.0, "calm"),
            (0.0, "2 exclamation marks"),
            (None, "there is no answer to mark"),
            (1.0, "calm"),
            (1.0, "calm"),
        ]
        assert scores == await marked(evaluator, "Thank you.", "Now!!", None, 'odd \u2028 "quotes"\n}', "")
        assert checker.starts == 1


@pytest.mark.parametrize(
    ("answer", "reason", "starts"),
    [
        ("die", "the checker died", 3),
        ("half", "the checker died", 3),
        ("chatty", "the checker wrote a line that is no JSON", 2),
        ("long", "the checker wrote a line longer than 64000 bytes", 2),
        ("other", "the checker answered another line than it was asked", 2),
        ("high", "the checker's score is no number from 0 to 1", 1),
        ("text", "the checker's score is no number from 0 to 1", 1),
        ("nan", "the checker's score is no number from 0 to 1", 1),
        ("huge", "the checker's score is no number from 0 to 1", 1),
        ("withheld", "the checker gave no score", 1),
        ("x" * LONGEST_ROW, f"the row is longer than {LONGEST_ROW} bytes", 1),
    ],
    ids=lambda value: str(value)[:10],
)
async def test_what_goes_wrong_costs_one_mark_and_the_others_stay(answer: str, reason: str, starts: int) -> None:
    async with running() as (evaluator, checker):
        scores = await marked(evaluator, "fine", answer, "fine")
        assert [one.value for one in scores] == [0.5, None, 0.5]
        assert scores[1].reason == reason
        assert checker.starts == starts


async def test_a_slow_answer_abstains_and_its_process_is_gone() -> None:
    async with running(timeout_s=1.5) as (evaluator, checker):
        [first] = await marked(evaluator, "fine")
        scores = await marked(evaluator, "hang", "fine")
        assert [one.value for one in scores] == [None, 0.5]
        assert scores[0].reason == "the checker took longer than 1.5 s"
        assert checker.starts == 2
        await gone(int(first.reason))


async def test_a_process_that_was_killed_from_outside_costs_no_mark() -> None:
    async with running() as (evaluator, checker):
        [first] = await marked(evaluator, "fine")
        os.kill(int(first.reason), signal.SIGKILL)
        await gone(int(first.reason))
        [second] = await marked(evaluator, "fine")
        assert (second.value, checker.starts) == (0.5, 2)


async def test_work_that_is_withdrawn_leaves_no_late_score_behind() -> None:
    async with running() as (evaluator, _):
        await marked(evaluator, "fine")
        work = asyncio.create_task(marked(evaluator, "hang"))
        await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        [score] = await marked(evaluator, "fine")
        assert score.value == 0.5


@pytest.mark.parametrize("command", [("/nowhere/checker",), (sys.executable, "-c", "raise SystemExit(1)"), ("yes",)])
async def test_a_checker_that_never_gives_a_score_is_broken_and_no_row_is_blamed(command: tuple[str, ...]) -> None:
    async with running(*command) as (evaluator, _):
        with pytest.raises(RetryableError, match="checker odd gives no scores: the checker"):
            await marked(evaluator, "fine", "fine")


async def test_it_is_given_options_and_nothing_of_the_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMADUO_NATS_PASSWORD", "secret")
    async with running() as (evaluator, _):
        names, options = await marked(evaluator, "env", "options", limit=3)
    assert "PATH" in names.reason.split() and "LLAMADUO" not in names.reason
    assert options.reason == '{"limit": 3}'


async def test_several_metrics_come_by_name() -> None:
    metrics = {"score": UNIT["score"], "second": MetricRange(low=0, high=5), "third": UNIT["score"]}
    async with running(metrics=metrics) as (evaluator, _):
        scores = await marked(evaluator, "two", "fine")
    assert [(one.metric, one.value) for one in scores] == [
        *(("score", 1.0), ("second", 4.0), ("third", None)),
        *(("score", 0.5), ("second", None), ("third", None)),
    ]


async def test_closing_ends_a_checker_that_does_not_listen() -> None:
    deaf = 'import time\nprint(input() and \'{"id": 1, "value": 1}\', flush=True)\ntime.sleep(600)'
    async with running(sys.executable, "-c", deaf) as (evaluator, _):
        await marked(evaluator, "fine")
        children = psutil.Process().children(recursive=True)
        pid = next(child.pid for child in children if "time.sleep(600)" in " ".join(child.cmdline()))
    await gone(pid)


async def gone(pid: int) -> None:
    async def check() -> bool | None:
        return True if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE else None

    await until(check, seconds=20, what=f"the end of {pid}")
