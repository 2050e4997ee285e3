"""`llamaduo up` and the commands around it, as a person uses them: real processes, training and generation faked."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import yaml

from benchmarks.limits import emulator
from llamaduo.migrations.report import report_schema
from tests.support import ROOT

EXAMPLE = ROOT / "examples" / "support-triage"
EVALUATOR = """
from llamaduo.evaluators import Score, evaluator

@evaluator("brevity", metrics={"short": (0, 1)})
async def brevity(rows):
    return [Score(r.row, "short", float(len(r.answers[0] or "") < 200)) for r in rows]
"""
pytestmark = pytest.mark.timeout(240)


@dataclass
class Cli:
    """The command line on one state folder."""

    state: Path
    environment: dict[str, str]

    def call(self, *arguments: str, code: int = 0, timeout: float = 120) -> str:
        """Run a command to its end and give what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "llamaduo.cli.main", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.call(*arguments, "--json"))

    def note(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "up.json").read_text())
        return found

    def pid_of(self, name: str) -> int | None:
        return next((c["pid"] for c in self.note()["children"] if c["name"] == name), None)

    def pids(self) -> list[int]:
        return [c["pid"] for c in self.note()["children"] if c["pid"]]


def until(ready: Callable[[], object], timeout: float = 60) -> None:
    """Poll until `ready()` is true."""
    deadline = time.monotonic() + timeout
    while not ready():
        assert time.monotonic() < deadline, "it did not come to pass in time"
        time.sleep(0.1)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """A command line with fake engines; what it left running is killed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMADUO_")}
    environment = kept | {
        "LLAMADUO_STATE_DIR": str(tmp_path / "state"),
        "LLAMADUO_INFERENCE_ENGINE": "fake",
        "LLAMADUO_TRAINING_ENGINE": "fake",
        "LLAMADUO_PROFILE": "faults",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "shared"), str(ROOT)]),
    }
    cli = Cli(tmp_path / "state", environment)
    yield cli
    if (cli.state / "up.json").exists():
        for pid in [cli.note()["pid"], *cli.pids()]:
            if lives(pid):
                os.kill(pid, signal.SIGKILL)


def ready(cli: Cli, services: int = 8) -> bool:
    states = {service["name"]: service["state"] for service in cli.json("status")["services"]}
    return len(states) == services and all(state in ("ready", "runs") for state in states.values())


def write_spec(cli: Cli, folder: Path, **changes: Any) -> Path:
    """The demo's spec for this system, small."""
    spec = yaml.safe_load((EXAMPLE / "migration.yaml").read_text())
    spec |= {
        "coverage": str(EXAMPLE / "tickets.jsonl"),
        "base_model": "owner/fake",
        "service_llm": {**spec["service_llm"], "base_url": cli.note()["emulator_url"]},
        "recipe": {"steps": 5},
        "gate": {"absolute": {"exact-match.exact": 0.7}},
        "splits": {"train": 30, "validation": 24, "test": 100, "holdout": 20},
        **changes,
    }
    path = folder / "migration.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def test_a_whole_migration_by_command_line(cli: Cli, tmp_path: Path) -> None:
    cli.call("up", "--emulator", "--nats-port", "0", "--evaluator", "label-accuracy", "--detach")
    until(lambda: ready(cli, 9))
    assert "another `llamaduo up`" in failing(cli, "up")
    cli.call("evaluator", "add", "brevity")
    (tmp_path / "mine.py").write_text(EVALUATOR)
    mine = subprocess.Popen(
        [sys.executable, "-m", "llamaduo.cli.main", "evaluator", "run", f"{tmp_path / 'mine.py'}:brevity"],
        env=cli.environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        label = {"name": "label-accuracy", "role": "advisory", "options": {"field": "intent"}}
        evaluators = ["exact-match", {"name": "brevity", "role": "advisory"}, label]
        spec = write_spec(cli, tmp_path, evaluators=evaluators)
        until(lambda: "brevity" in attended(cli))
        lines = cli.call("migrate", str(spec), "--watch", timeout=200).splitlines()
    finally:
        mine.terminate()
        assert mine.wait(20) == 0
    migration = lines[0]
    assert any("round 0: failed" in line for line in lines)
    assert any("completed" in line for line in lines)

    again = cli.json("migrate", str(spec))
    assert (again["migration"], again["new"]) == (migration, False)

    report = cli.json("report")
    jsonschema.validate(report, report_schema())
    assert (report["status"], report["migration"]) == ("completed", migration)
    assert [part["verdict"] for part in report["rounds"]][-1] == "passed"
    assert report["rounds"][-1]["marks"]["exact-match"]["exact"]["mean"] >= 0.7
    assert "brevity" in report["rounds"][0]["marks"]
    assert report["rounds"][-1]["marks"]["label-accuracy"]["accuracy"]["mean"] >= 0.7
    assert {part["name"]: part["role"] for part in report["evaluators"]}["brevity"] == "advisory"

    page = tmp_path / "report.html"
    cli.call("report", "support-triage", "--html", str(page))
    assert "Answers side by side" in page.read_text()
    assert len(cli.call("events", migration, "--json").splitlines()) > 20
    assert cli.call("dlq", "list").strip() == "no dead letters"
    assert migration in cli.call("status")

    pids, began = cli.pids(), time.monotonic()
    cli.call("down")
    assert time.monotonic() - began < 20
    until(lambda: not any(lives(pid) for pid in pids), timeout=5)
    assert not (cli.state / "up.json").exists()

    cli.call("up", "--nats-port", "0", "--detach")
    assert cli.json("report")["status"] == "completed"
    cli.call("down")


def own_rows(path: Path) -> None:
    """A team's own free text: notes from a garden club's members, and how the club has answered them."""
    chance = random.Random(11)
    members = ["Ada", "Bruno", "Chidi", "Dana", "Emre", "Freya", "Goran", "Hana", "Ilse", "Jonas", "Kiri", "Lev"]
    plants = ["tomatoes", "roses", "a fig tree", "bamboo", "leeks", "clematis", "a quince", "dahlias", "hops", "sage"]
    troubles = {
        "has yellow leaves since the rain": "Let the soil dry out first and give some iron",
        "will not flower though it is tall": "Less nitrogen and more sun will bring it to flower",
        "was eaten by slugs over night": "Put a copper ring around it and look after dark with a torch",
        "came from my aunt and needs a place": "Try the south wall, a hand deep, and water it in well",
        "froze back to the ground in March": "Cut the dead wood in May and wait, the root is likely alive",
        "grows into the neighbour's fence": "Dig a root barrier along the fence and cut back in autumn",
    }
    places = ["on the balcony", "behind the shed", "next to the pond", "in a clay pot", "at the allotment gate"]
    every = [(m, p, t, w) for m in members for p in plants for t in troubles for w in places]
    rows = [
        {
            "prompt": f"{member} writes: what I planted {place} ({plant}) {trouble}. What now?",
            "response": f"Dear {member}, thanks for your note. {troubles[trouble]}; with {plant} that mostly helps.",
        }
        for member, plant, trouble, place in chance.sample(every, 120)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_five_lines_and_a_teams_own_free_text_are_enough(cli: Cli, tmp_path: Path) -> None:
    """The spec that docs/spec.md begins with, with this system's model and service LLM in it."""
    cli.call("up", "--emulator", "--nats-port", "0", "--detach")
    until(lambda: ready(cli))
    own_rows(tmp_path / "notes.jsonl")
    llm = f'{{model: "openai:scripted-teacher", base_url: "{cli.note()["emulator_url"]}", requests_per_minute: 6000}}'
    lines = [
        "name: garden-notes",
        "coverage: notes.jsonl",
        "base_model: owner/fake",
        f"service_llm: {llm}",
        "gate: {parity: {margin: 3}}",
    ]
    shown = (ROOT / "docs" / "spec.md").read_text().split("```yaml\n")[1].split("```")[0].splitlines()
    assert [line.partition(":")[0] for line in lines] == [line.partition(":")[0] for line in shown]
    (tmp_path / "migration.yaml").write_text("\n".join(lines) + "\n")
    said = cli.call("migrate", str(tmp_path / "migration.yaml"), "--watch", timeout=200)
    assert "completed" in said

    report = cli.json("report")
    jsonschema.validate(report, report_schema())
    assert (report["status"], report["name"]) == ("completed", "garden-notes")
    last = report["rounds"][-1]
    assert last["verdict"] == "passed" and last["marks"]["llm-judge"]["similarity"]["n"] > 0
    first = report["rounds"][0]["rows_by_split"]
    assert sum(first.values()) == 120 and min(first.values()) >= 2
    assert report["service_llm"]["marks"]["llm-judge"]["similarity"]["n"] == first["test"]
    assert report["holdout"]["llm-judge"] and report["served"]["alias"] == "garden-notes"
    assert report["calls"]["made"] > first["test"]
    cli.call("report", "--out", str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Dear " in page and "What now?" in page
    cli.call("down")


def failing(cli: Cli, *arguments: str) -> str:
    """What a command says on stderr that ends with code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "llamaduo.cli.main", *arguments],
        env=cli.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


def attended(cli: Cli) -> str:
    """Evaluators that somebody runs, by name."""
    lines = cli.call("evaluator", "list").splitlines()
    return " ".join(line.split()[0] for line in lines if "running" in line)


def test_a_service_that_dies_is_started_again_and_a_killed_up_leaves_nothing(cli: Cli) -> None:
    cli.call("up", "--nats-port", "0", "--detach")
    first = cli.pid_of("verdict")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: cli.pid_of("verdict") not in (None, first))
    pids, parent = cli.pids(), cli.note()["pid"]
    os.kill(parent, signal.SIGKILL)
    until(lambda: not any(lives(pid) for pid in pids), timeout=20)
    assert "nothing runs" in cli.call("down")


def test_a_required_evaluator_that_nobody_knows_is_refused_beforehand(cli: Cli, tmp_path: Path) -> None:
    cli.call("up", "--emulator", "--nats-port", "0", "--detach")
    gate = {"absolute": {"humour.funny": 0.5}}
    spec = write_spec(cli, tmp_path, evaluators=["humour"], gate=gate)
    assert "llamaduo evaluator add humour" in failing(cli, "migrate", str(spec))
    assert "nobody would mark for 'humour'" in cli.call("plan", str(spec))
    assert cli.json("status")["migrations"] == []
    cli.call("down")


def test_up_runs_the_gateway_where_there_is_a_file_for_it(cli: Cli, tmp_path: Path) -> None:
    port_file, file = tmp_path / "gateway.port", tmp_path / "gateway.yaml"
    with emulator(tmp_path / "emulator", api_key="of-the-emulator") as url:
        service = {"base_url": url, "model": "scripted-teacher", "api_key_env": "TEACHERS_KEY"}
        file.write_text(yaml.safe_dump({"service": service, "aliases": {"support-triage": {"mode": "capture"}}}))
        cli.environment |= {
            "LLAMADUO_GATEWAY_FILE": str(file),
            "LLAMADUO_GATEWAY_PORT": "0",
            "LLAMADUO_GATEWAY_PORT_FILE": str(port_file),
            "TEACHERS_KEY": "of-the-emulator",
        }
        cli.call("up", "--nats-port", "0", "--detach")
        until(lambda: ready(cli))
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port_file.read_text()}/v1", api_key="any", max_retries=0)
        answer = client.chat.completions.create(
            model="support-triage", messages=[{"role": "user", "content": "Where is my mat? Order A4821."}]
        )
        assert "A4821" in (answer.choices[0].message.content or "")
        # What was captured is shipped at the latest when the gateway leaves, and no migration is made of it.
        assert cli.json("status")["migrations"] == []
        cli.call("down")
        assert not list((cli.state / "gateway" / "spool").glob("*/*"))
