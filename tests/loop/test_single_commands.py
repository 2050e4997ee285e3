"""One step at a time with no bus: the commands as people run them, against the emulator over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from llamaduo.cli.main import call
from llamaduo.cli.state import STATE_VARIABLE
from llamaduo.coverage_files import read_coverage
from llamaduo.datasets import ShardRow, dump_rows, load_rows, load_shard
from llamaduo.migrations.spec_file import read_spec
from services.synthesizer.splitting import split_coverage
from tests.support import ROOT, environment

TICKETS = ROOT / "examples" / "support-triage" / "tickets.jsonl"
TEST_ROWS = 28
AT_ONCE = 2


@dataclass(frozen=True)
class Emulator:
    """The stand-in for a service LLM, in a process of its own."""

    url: str

    def ledger(self) -> Any:
        with urllib.request.urlopen(f"{self.url.removesuffix('/v1')}/emulator/ledger", timeout=20) as answer:
            return json.load(answer)

    @property
    def completed(self) -> int:
        return int(self.ledger()["totals"]["completed"])

    def most_often(self) -> int:
        """How often the call that was paid most often was paid."""
        return max(int(count["completed"]) for count in self.ledger()["keys"].values())

    def reset(self) -> None:
        request = urllib.request.Request(f"{self.url.removesuffix('/v1')}/emulator/reset", method="POST")
        urllib.request.urlopen(request, timeout=20).close()


@pytest.fixture(scope="module")
def server() -> Iterator[Emulator]:
    command = [sys.executable, "-m", "services.emulator", "--latency-ms", "120"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    try:
        yield Emulator(f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}/v1")
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.fixture
def emulator(server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """Asked nothing yet; commands of this process, and their children, keep their state in the test's folder."""
    server.reset()
    for name in [name for name in os.environ if name.startswith("LLAMADUO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return server


def spec(emulator: Emulator, *, at_once: int = 16, **changes: Any) -> str:
    """A spec file in the working folder. What is stopped in the middle goes slowly, few calls at once."""
    llm = {"model": "openai:scripted-teacher", "base_url": emulator.url, "concurrency": at_once}
    written = {
        "name": "triage",
        "coverage": str(TICKETS),
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "service_llm": {**llm, "requests_per_minute": 60_000},
        "gate": {"absolute": {"exact-match.exact": 0.7}},
        "evaluators": ["exact-match", {"name": "llm-judge", "role": "advisory"}],
        "splits": {"train": 60, "validation": 24, "test": TEST_ROWS, "holdout": 20},
        "generation": {"max_tokens": 64},
        **changes,
    }
    Path("migration.yaml").write_text(yaml.safe_dump(written), "utf-8")
    return "migration.yaml"


def right_answers(path: str) -> list[ShardRow]:
    """Answers to the spec's test split that all equal the reference."""
    found = read_spec(Path(path)).spec
    test = split_coverage(read_coverage(TICKETS), found.splits, found.seed, found.synthesis.near_copy).rows["test"]
    return [ShardRow(row=r.id, messages=r.prompt, reference=r.answer, answers=[r.answer]) for r in test]


def started(*arguments: str) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "llamaduo.cli.main", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(check: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not check():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_round_by_hand(emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    path = spec(emulator)
    answers = right_answers(path)
    # A candidate that gets three of four wrong fails, and the failing rows are those.
    wrong = {row.row for number, row in enumerate(answers) if number % 4}
    shard = [row.model_copy(update={"answers": ["no"]}) if row.row in wrong else row for row in answers]
    Path("answers.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in shard), "utf-8")
    judging = ["judge", path, "answers.jsonl", "--out", "marks.jsonl", "--evaluator", "exact-match"]
    capsys.readouterr()
    assert call([*judging, "--failures", "failures.jsonl", "--must-pass"]) == 1
    said = capsys.readouterr().out
    assert "exact-match.exact          0.25 (" in said and f"{TEST_ROWS} prompts" in said and "gate: failed" in said
    failures = [json.loads(line) for line in Path("failures.jsonl").read_text("utf-8").splitlines()]
    assert {failure["row"] for failure in failures} == wrong
    marks = [json.loads(line) for line in Path("marks.jsonl").read_text("utf-8").splitlines()]
    assert {mark["row"]: mark["value"] for mark in marks} == {row.row: float(row.row not in wrong) for row in answers}
    assert emulator.ledger()["totals"]["arrived"] == 0, "exact evaluators are free"

    aimed = ["synthesize", path, "--out", "new.jsonl", "--rows", "15", "--failures", "failures.jsonl"]
    assert call(aimed) == 0
    assert f"15 new rows of 15 wanted, aimed at {len(wrong)} failing rows" in capsys.readouterr().out
    new, paid = load_rows(Path("new.jsonl").read_bytes()), emulator.completed
    assert paid and len({row.id for row in new}) == 15
    assert all(row.source == "generated" and row.lineage and row.lineage.round == 1 for row in new)
    assert call(["merge", "all.jsonl", str(TICKETS), "new.jsonl"]) == 0

    # The same command gives the same bytes and pays nobody; further rows are others.
    before = Path("new.jsonl").read_bytes()
    assert call(aimed) == 0
    assert Path("new.jsonl").read_bytes() == before and emulator.completed == paid
    assert call(["synthesize", path, "--out", "more.jsonl", "--rows", "10", "--earlier", "new.jsonl"]) == 0
    more = load_rows(Path("more.jsonl").read_bytes())
    assert len(more) == 10 and not {row.id for row in more} & {row.id for row in new}
    assert all(row.lineage and row.lineage.round == 2 for row in more)


def test_stopped_by_its_budget_then_killed_and_run_again_it_buys_again_at_most_what_was_in_flight(
    emulator: Emulator, capfd: pytest.CaptureFixture[str]
) -> None:
    generate = ["generate", spec(emulator, budgets={"calls": 6}), "--out", "service.jsonl"]
    assert call(generate) == 1
    [error] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("llamaduo:")]
    assert "calls limit 6" in error and "raise `budgets`" in error
    assert emulator.completed == 6 and not Path("service.jsonl").exists()

    spec(emulator, at_once=AT_ONCE, budgets={"calls": 100})
    process = started(*generate)
    wait_until(lambda: emulator.completed >= 12, process)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and "run this again" in said and "Traceback" not in said
    assert 12 <= emulator.completed < TEST_ROWS and not Path("service.jsonl").exists()

    spec(emulator)
    assert call(generate) == 0
    assert load_shard(Path("service.jsonl").read_bytes()) == right_answers("migration.yaml")
    again = emulator.completed - TEST_ROWS
    assert 0 <= again <= AT_ONCE and emulator.most_often() <= 2
    said = capfd.readouterr().out
    # One that was open at the kill may not have reached the provider: it is counted, and was not paid twice.
    assert f"earlier runs of it included: {TEST_ROWS}" in said
    assert not again or "perhaps paid twice" in said


def test_ctrl_c_loses_nothing_and_run_again_it_goes_on(
    emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spec(emulator, at_once=AT_ONCE)
    Path("service.jsonl").write_bytes(dump_rows(right_answers(path)))
    judge = ["judge", path, "service.jsonl", "--out", "marks.jsonl"]
    process = started(*judge)
    wait_until(lambda: emulator.completed >= 8, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and "leaving" in error and "Traceback" not in error
    assert not Path("marks.jsonl").exists()
    assert 8 <= emulator.completed < TEST_ROWS

    spec(emulator)
    capsys.readouterr()
    assert call(judge) == 0
    assert emulator.completed == TEST_ROWS and emulator.most_often() == 1
    said = capsys.readouterr().out
    assert "gate: passed" in said and "llm-judge.similarity       100 (" in said
    assert "perhaps paid twice" not in said


def test_a_server_of_ones_own_is_found_asked_anew_and_sent_no_other_key(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spec(emulator, service_llm={"model": "openai:gpt-4o"})
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    generate = ["generate", path, "--out", "answers.jsonl", "--url", emulator.url.removesuffix("/v1")]
    assert call(generate) == 0
    assert load_shard(Path("answers.jsonl").read_bytes()) == right_answers(path)
    # Tomorrow another model may have its name: no answer of it is kept.
    assert not list(Path("state").rglob("*.entry"))
    assert call(["generate", path, "--out", "other.jsonl"]) == 2
    assert "OPENAI_API_KEY is not set" in capsys.readouterr().err
