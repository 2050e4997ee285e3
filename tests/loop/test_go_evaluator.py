"""An evaluator in another language, as a plain client of the bus: in a real loop, and by the conformance kit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from deploy.nats import users as conf
from llamaduo.bus import topology
from llamaduo.events import EvalScored, MigrationCompleted
from tests.loop.test_loop import all_services, emulator, ended, spec_of, submit
from tests.support import ROOT, NatsServer, connected, environment, serving, until

SOURCE = ROOT / "examples" / "go-evaluator"
DEBIAN = Path("/usr/share/gocode")
"""Where Debian's packages of Go libraries are."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built. Skips, which in CI is a failure, where it cannot be."""
    go = shutil.which("go")
    if go is None or not (DEBIAN / "src/github.com/nats-io/nats.go").is_dir():
        pytest.skip("no Go with a NATS client: apt-get install golang-go golang-github-nats-io-go-nats-dev")
    target = tmp_path_factory.mktemp("go") / "shared-words"
    offline = {"GO111MODULE": "off", "GOPATH": str(DEBIAN), "CGO_ENABLED": "0", "GOFLAGS": ""}
    if "HOME" not in os.environ:
        offline["GOCACHE"] = str(target.parent / "cache")
    files = sorted(path.name for path in SOURCE.glob("*.go"))
    built = subprocess.run(
        [go, "build", "-o", str(target), *files],
        cwd=SOURCE, env=os.environ | offline, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return target


@pytest.fixture
def server(tmp_path: Path) -> Any:
    """With a user for the evaluator, who has no more rights than one of somebody else's; others may do all."""
    text = conf.render({"shared-words": False})
    block = text[text.index("    # evaluator of others: shared-words") :]
    (tmp_path / "users.conf").write_text(
        "authorization {\n  users = [\n    {user: all, password: all}\n" + block + "no_auth_user: all\n"
    )
    more = f'include "{os.path.relpath(tmp_path / "users.conf", tmp_path / "nats")}"\n'
    running = NatsServer(tmp_path / "nats", more=more, NATS_PASSWORD_EVALUATOR_SHARED_WORDS="p-own")
    running.start()
    try:
        yield running
    finally:
        running.stop()


async def test_it_decides_a_migration(program: Path, server: NatsServer, tmp_path: Path) -> None:
    log = tmp_path / "go.log"
    async with connected(server, tmp_path) as bus, emulator() as url:
        await topology.add_evaluator(bus.js, "shared-words", profile="faults")
        with log.open("wb") as output:
            own = {"LLAMADUO_NATS_USER": "evaluator-shared-words", "LLAMADUO_NATS_PASSWORD": "p-own"}
            running = subprocess.Popen(
                [program], env=environment(LLAMADUO_NATS_URL=server.url, LLAMADUO_REPLICA="go", **own), stderr=output
            )
        try:
            async with serving(*all_services(server, tmp_path)):
                spec = spec_of(
                    url, evaluators=["exact-match", "shared-words"], marking={"shard_rows": 20},
                    gate={"absolute": {"exact-match.exact": 0.1, "shared-words.jaccard": 0.1}},
                    splits={"train": 30, "validation": 24, "test": 60, "holdout": 20},
                )  # fmt: skip
                migration = await submit(bus, spec)
                view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
        finally:
            running.terminate()
            status = running.wait(20)
    assert status == 0, log.read_text("utf-8")
    assert "Violation" not in (tmp_path / "nats" / "nats.log").read_text("utf-8")
    assert isinstance(view.ended, MigrationCompleted), (view.ended, log.read_text("utf-8"))
    assert view.passed is not None and "jaccard" in view.passed.marks["shared-words"]
    mine = [event for event in view.of_type(EvalScored) if event.evaluator == "shared-words"]
    assert {event.source for event in mine} == {"evaluator-shared-words/go"}
    assert {event.candidate.key for event in mine} >= {"base", "service", "round-0"}
    assert set(Counter((e.candidate.key, e.split, e.shard) for e in mine).values()) == {1}
    exact = {
        (e.candidate.key, mark.row): mark.value
        for e in view.of_type(EvalScored) if e.evaluator == "exact-match" and e.split == "test" for mark in e.marks
    }  # fmt: skip
    both = [(mark.value, exact[e.candidate.key, mark.row]) for e in mine if e.split == "test" for mark in e.marks
            if (e.candidate.key, mark.row) in exact]  # fmt: skip
    assert len(both) > 100 and all(words == 1.0 for words, same in both if same == 1.0)
    assert any(words is not None and words < 1 for words, same in both if same == 0.0)


def test_it_keeps_to_the_protocol(program: Path) -> None:
    command = [sys.executable, "-m", "llamaduo.cli.main", "evaluator", "check", "--name", "shared-words"]
    tried = subprocess.run(
        [*command, "--subscriber", str(program)], env=environment(), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert tried.returncode == 0, tried.stdout + tried.stderr
    states = {line.split()[0] for line in tried.stdout.splitlines()}
    assert states == {"ok"} and {"killed", "twice", "given", "acks"} <= {
        line.split()[1] for line in tried.stdout.splitlines()
    }
