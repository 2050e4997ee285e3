"""One step of a migration as a process of its own, with no bus: what each is asked, what it gives back, how it runs.

A step reads what it is asked as JSON from standard input, says how far it is on standard error, and writes what it
gives back as JSON to standard output. It calls the service LLM through the same client as the services do; ledger,
budget and rate limit lie in a folder. So a step that was killed and is run again buys again at most the calls that
were in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, Field

from llamaduo.bus.folder_kv import FolderKeyValue
from llamaduo.cli.connect import run
from llamaduo.datasets import Row, ShardRow, dataset_digest
from llamaduo.errors import BudgetExhausted, LlamaDuoError, RetryableError, UserInputError
from llamaduo.event_parts import CallCounts, FailingRow, Marks
from llamaduo.events import EvalScored
from llamaduo.identity import identity
from llamaduo.input_files import of_os_error
from llamaduo.migrations.spec import MigrationSpec, ServiceLLM
from llamaduo.service_llm import Call, ProviderSender, Reply, Send, ServiceLLMClient
from llamaduo.service_llm.batches import Tell
from llamaduo.service_llm.sending_batches import BatchLook

LEAVING_S = 20.0
"""How long an earlier run of the same step may take to write down what it still had in flight."""
PROGRESS_S = 2.0


class Paid(BaseModel):
    """What every step that calls a service LLM is asked. `task` names it in the ledger and the budget's account;
    `folder` holds these.
    """

    task: str
    folder: Path
    spec: MigrationSpec


class SynthesisAsked(Paid):
    """New rows like the train rows of `coverage`; aimed where there are `failures`.

    `earlier` are generated rows that are there already; `number` of new ones are wanted, by default as many as the
    spec says.
    """

    coverage: list[Row]
    earlier: list[Row] = Field(default_factory=list)
    failures: list[FailingRow] = Field(default_factory=list)
    number: int | None = None


class SynthesisDone(BaseModel):
    """The new rows, what the filters removed, how many rows were wanted and how many failing ones were aimed at."""

    rows: list[Row]
    wanted: int
    aimed_at: int
    removed: dict[str, int]
    errors: list[str]
    calls: CallCounts


class AnswersAsked(Paid):
    """Answers to the test split of `coverage`, by the service LLM or by a server of one's own: `engine`."""

    coverage: list[Row]
    engine: ServiceLLM | None = None


class AnswersDone(BaseModel):
    """The answers, in the test split's frozen order."""

    answers: list[ShardRow]
    calls: CallCounts


class MarksAsked(Paid):
    """Marks for `answers`, and for those they are compared with, by each of these evaluators."""

    answers: list[ShardRow]
    bar: list[ShardRow] = Field(default_factory=list)
    evaluators: list[str]


class MarksDone(BaseModel):
    """One result an evaluator; `bar` is of those that the answers are compared with."""

    scored: list[EvalScored]
    bar: list[EvalScored] = Field(default_factory=list)


class VerdictAsked(BaseModel):
    """Whether these marks pass the spec's gate."""

    spec: MigrationSpec
    marks: MarksDone


class VerdictDone(BaseModel):
    """Means with intervals; the verdict, None where the gate asks for marks that are not there, as `note` then says;
    the failing rows, worst first.
    """

    marks: Marks
    verdict: Literal["passed", "failed", "undecided"] | None
    note: str = ""
    failures: list[FailingRow] = Field(default_factory=list)


A = TypeVar("A", bound=BaseModel)


def task_id(spec: MigrationSpec, coverage: list[Row]) -> str:
    """What the ledger knows this task as: its name, seed and rows.

    Budgets, gate and whatever else may be changed between two runs is no part of it: a second run with a larger
    budget finds what the first one bought.
    """
    return "s-" + identity("single", spec.name, spec.seed, dataset_digest(coverage))[:16]


def serve_step(model: type[A], work: Callable[[A], Awaitable[BaseModel]]) -> int:
    """Run one step from standard input to standard output; its exit code. An error is one line on standard error."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")

    async def done() -> BaseModel:
        return await work(model.model_validate_json(sys.stdin.buffer.read()))

    try:
        sys.stdout.write(run(done()).model_dump_json())
    except KeyboardInterrupt:
        return 130
    except UserInputError as error:
        return _said(str(error), 2)
    except BudgetExhausted as error:
        return _said(f"{error}; what was bought is kept: raise `budgets` in the spec and run this again", 1)
    except RetryableError as error:
        return _said(f"{error}; what was bought is kept: run this again to go on", 1)
    except LlamaDuoError as error:
        return _said(str(error), 1)
    except OSError as error:
        if (named := of_os_error(error)) is None:
            raise
        return _said(str(named), 2)
    return 0


def _said(message: str, code: int) -> int:
    sys.stderr.write(f"llamaduo: {message}\n")
    return code


@contextlib.asynccontextmanager
async def buying(asked: Paid, step: str, most: int | None = None) -> AsyncIterator[tuple[ServiceLLMClient, str]]:
    """A client over the folder, and the job that its calls are for; says how many calls were answered, of at most
    `most`. On the way out, calls in flight are awaited and written down.

    The ledger takes an open call of the same job for a dead process's, so one process at a time has the job:
    UserInputError where another one goes on for longer than it takes to leave.
    """
    async with _alone(asked.folder / f"{step}-{asked.task}.lock", step):
        send = _Counting(ProviderSender(), step, most)
        client = ServiceLLMClient(
            ledger=FolderKeyValue(asked.folder / "ledger"),
            budget=FolderKeyValue(asked.folder / "budget"),
            permits=FolderKeyValue(asked.folder / "permits"),
            replica=f"single-{step}-{asked.task}",
            send=send,
            tell=_batch_teller(step),
        )
        try:
            yield client, identity("single", step, asked.task)
        except asyncio.CancelledError:
            sys.stderr.write(f"{step}: leaving, as soon as calls in flight are answered\n")
            raise
        finally:
            await client.close()
            send.tell()


@contextlib.asynccontextmanager
async def _alone(path: Path, step: str) -> AsyncIterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LEAVING_S
    with path.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserInputError(f"another `llamaduo {step}` of this task is running") from error
            await asyncio.sleep(0.1)
        yield


def _batch_teller(step: str) -> Tell:
    told = ""

    async def tell(call: Call, look: BatchLook, batch: str) -> None:
        nonlocal told
        line = f"{step}: {batch}: {look.status}, {look.done + look.failed} of {look.total} calls"
        if line != told:
            wait = f"; it may take up to {call.llm.batch_wait_s / 3600:g} h" if not told else ""
            sys.stderr.write(f"{line}{wait}\n")
            sys.stderr.flush()
            told = line

    return tell


class _Counting:
    """A `Send` that says now and then how many calls were answered."""

    def __init__(self, inner: Send, step: str, most: int | None) -> None:
        self._inner, self._step = inner, step
        self._of = "" if most is None else f" of at most {most}"
        self._answered = self._failed = self._told = 0
        self._told_at = time.monotonic()

    async def __call__(self, call: Call, idempotency_key: str) -> Reply:
        try:
            reply = await self._inner(call, idempotency_key)
        except Exception:
            self._failed += 1
            raise
        self._answered += 1
        if time.monotonic() - self._told_at >= PROGRESS_S:
            self.tell()
        return reply

    async def close(self) -> None:
        await self._inner.close()

    def tell(self) -> None:
        """Say it now, if there is something new."""
        self._told_at = time.monotonic()
        if (done := self._answered + self._failed) > self._told:
            failed = f", {self._failed} tries without an answer" if self._failed else ""
            sys.stderr.write(f"{self._step}: {self._answered} calls answered{self._of}{failed}\n")
            sys.stderr.flush()
            self._told = done
