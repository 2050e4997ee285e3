"""An evaluator in any language: a child process that reads one answer a line and writes one score a line.

docs/evaluators.md has the protocol. The child is started without a shell, when it is first needed, and started again
when it died, said what it should not, or took too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llamaduo.datasets import ShardRow
from llamaduo.errors import RetryableError
from llamaduo.evaluators import Evaluator, Score, Task
from llamaduo.event_parts import MetricRange

LONGEST_ROW = 2_000_000
"""Bytes of a line to the checker; a longer answer is not asked about and abstains."""
LONGEST_SCORE = 64_000
"""Bytes of a line from the checker."""
LEAVE_S = 2.0
"""Seconds that a checker has to leave after its input was closed."""


class CheckerFailed(Exception):
    """A checker gave no score that can be read; the message says why and is a reason."""


class CheckerDied(CheckerFailed):
    """It ended before it answered."""


class Checker:
    """A checker's process: asked one line at a time, started again after every failure."""

    def __init__(self, command: Sequence[str], timeout_s: float = 10.0) -> None:
        self._command = tuple(command)
        self._timeout_s = timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._numbers = itertools.count(1)
        self._turn = asyncio.Lock()
        self._leaving: set[asyncio.Task[Any]] = set()
        self.starts = 0
        self.answered = False
        """Whether it has ever given a score."""

    async def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The score for one answer. CheckerFailed says why there is none; the next call starts it anew."""
        async with self._turn:
            number = next(self._numbers)
            # Escaped, because some languages take a raw U+2028 for the end of a line.
            line = json.dumps({"id": number, **question}, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"
            if len(line) > LONGEST_ROW:
                raise CheckerFailed(f"the row is longer than {LONGEST_ROW} bytes")
            try:
                async with asyncio.timeout(self._timeout_s):
                    said = await self._say(line)
                score = _read(said, number)
            except TimeoutError:
                self.kill()
                raise CheckerFailed(f"the checker took longer than {self._timeout_s:g} s") from None
            except BaseException:  # cancelled too: its late line would be taken for the next answer's
                self.kill()
                raise
            self.answered = True
            return score

    async def _say(self, line: bytes) -> bytes:
        if self._process is not None and self._process.returncode is not None:
            self._leave()
        process = self._process = self._process or await self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(line)
            await process.stdin.drain()
            said = await process.stdout.readline()
        except ConnectionError:
            said = b""
        except ValueError:
            raise CheckerFailed(f"the checker wrote a line longer than {LONGEST_SCORE} bytes") from None
        if not said.endswith(b"\n"):
            raise CheckerDied("the checker died")
        return said

    async def _start(self) -> asyncio.subprocess.Process:
        self.starts += 1
        # Ours are for the bus: who marks has no business there.
        env = {name: value for name, value in os.environ.items() if not name.startswith("LLAMADUO_")}
        try:
            return await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LONGEST_SCORE,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            raise CheckerDied(f"the checker does not start: {error.strerror}") from error

    def kill(self) -> None:
        """End the process and all it has started, now."""
        process = self._leave()
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Close its input, give it a moment to leave, and end it if it stays."""
        process = self._leave()
        if process is not None and process.stdin is not None:
            process.stdin.close()
        await self._left()
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await self._left()

    def _leave(self) -> asyncio.subprocess.Process | None:
        """Ask the process no more; what it still writes is read and dropped, or its end would not be seen."""
        process, self._process = self._process, None
        if process is not None:
            leaving = asyncio.ensure_future(process.communicate())
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
        return process

    async def _left(self) -> None:
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=LEAVE_S)


@dataclass(frozen=True)
class Declared:
    """What the operator says of a checker: it cannot be asked."""

    name: str
    version: str
    metrics: Mapping[str, MetricRange]


def checker_evaluator(declared: Declared, checker: Checker) -> Evaluator:
    """The checker as an evaluator.

    An answer on which it fails abstains; where it died, only after a second try with a new process. RetryableError
    where it fails on every answer of a shard and has never given a score: then it is broken, and not the rows.
    """

    async def score(rows: Sequence[ShardRow], task: Task) -> list[Score]:
        scores: list[Score] = []
        failures: list[str] = []
        marked = 0
        for row in rows:
            for sample, answer in enumerate(row.answers):
                if answer is None:
                    scores += _abstained(declared, row.row, sample, "there is no answer to mark")
                    continue
                try:
                    said = await _asked(checker, question_of(row, sample, answer, task))
                except CheckerFailed as failure:
                    failures.append(str(failure))
                    scores += _abstained(declared, row.row, sample, str(failure))
                else:
                    marked += 1
                    scores += _scores(declared, row.row, sample, said)
        if failures and not marked and not checker.answered:
            raise RetryableError(f"checker {declared.name} gives no scores: {failures[0]}")
        return scores

    return Evaluator(
        name=declared.name,
        version=declared.version,
        metrics=dict(declared.metrics),
        score=score,
        cost_per_row="unknown",
    )


async def _asked(checker: Checker, question: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return await checker.ask(question)
    except CheckerDied:  # perhaps killed from outside: not this row's fault
        return await checker.ask(question)


def question_of(row: ShardRow, sample: int, answer: str, task: Task) -> dict[str, Any]:
    """What a line to the checker holds beside its `id`."""
    return {
        "answer": answer,
        "reference": row.reference,
        "messages": [message.model_dump(mode="json") for message in row.messages],
        "row": row.row,
        "sample": sample,
        "meta": row.meta,
        "response_format": row.response_format,
        "tools": row.tools,
        "options": dict(task.options),
    }


def _read(said: bytes, number: int) -> dict[str, Any]:
    try:
        score = json.loads(said)
    except (ValueError, RecursionError):
        raise CheckerFailed("the checker wrote a line that is no JSON") from None
    if not isinstance(score, dict) or not ("value" in score or isinstance(score.get("values"), dict)):
        raise CheckerFailed("the checker wrote no object with `value` or `values`")
    if score.get("id") != number:
        raise CheckerFailed("the checker answered another line than it was asked")
    return score


def _scores(declared: Declared, row: str, sample: int, said: Mapping[str, Any]) -> list[Score]:
    """One score a metric. A value that is no number within its range abstains, and the reason says so."""
    reason = said.get("reason")
    values = said.get("values")
    if not isinstance(values, dict):
        values = {next(iter(declared.metrics)): said["value"]}
    scores = []
    for metric, limits in declared.metrics.items():
        value, why = values.get(metric), reason if isinstance(reason, str) else ""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and limits.low <= value <= limits.high):
            value, why = None, f"the checker's {metric} is no number from {limits.low:g} to {limits.high:g}"
        elif value is None:
            why = why or f"the checker gave no {metric}"
        scores.append(Score(row, metric, None if value is None else float(value), sample, why))
    return scores


def _abstained(declared: Declared, row: str, sample: int, reason: str) -> list[Score]:
    return [Score(row, metric, None, sample, reason) for metric in declared.metrics]
