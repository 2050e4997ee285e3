"""Evaluators as subscribers: somebody else's beside ours, one of them in Perl, and replicas that share the work."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llamaduo.bus import topology
from llamaduo.events import EvalScored
from llamaduo.migrations.report import build_report
from services.judge.app import build as judge
from services.judge.settings import JudgeSettings
from tests.loop.test_loop import all_services, emulator, ended, spec_of, submit
from tests.support import ROOT, NatsServer, connected, environment, nats_server, serving, until

PERL = ROOT / "examples" / "calm_checker.pl"
EXAMPLE = ROOT / "examples" / "same_length_evaluator.py"


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with nats_server(tmp_path / "nats") as running:
        yield running


def test_the_example_is_short_enough_to_read_at_a_glance() -> None:
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 25


async def test_somebody_elses_evaluator_marks_a_migration_and_two_judges_share_the_work(
    server: NatsServer, tmp_path: Path
) -> None:
    async with connected(server, tmp_path) as bus, emulator() as url:
        await topology.add_evaluator(bus.js, "same-length", profile="faults")
        await topology.add_evaluator(bus.js, "calm", profile="faults")
        env = environment(LLAMADUO_NATS_URL=server.url, LLAMADUO_PROFILE="faults", LLAMADUO_REPLICA="third-party")
        with (tmp_path / "third-party.log").open("wb") as log:
            third_party = subprocess.Popen([sys.executable, str(EXAMPLE)], env=env, stdout=log, stderr=log)
            command = [sys.executable, "-m", "llamaduo.cli.main", "evaluator", "run", "--name", "calm"]
            in_perl = subprocess.Popen([*command, "--exec", str(PERL)], env=env, stdout=log, stderr=log)
        second = judge(
            JudgeSettings(
                nats_url=server.url, profile="faults", replica="exact-2", evaluator="exact-match",
                state_dir=tmp_path / "exact-2",
            )
        )  # fmt: skip
        try:
            async with serving(*all_services(server, tmp_path), second):
                choices = [{"name": "same-length", "role": "advisory"}, {"name": "calm", "role": "veto"}]
                spec = spec_of(url, evaluators=["exact-match", *choices], marking={"shard_rows": 10})
                migration = await submit(bus, spec)
                view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
        finally:
            for process in (third_party, in_perl):
                process.terminate()
            for process in (third_party, in_perl):
                assert process.wait(20) == 0, (tmp_path / "third-party.log").read_text()
    scored = [e for e in view.of_type(EvalScored) if not e.skipped]
    assert {e.evaluator for e in scored} == {"exact-match", "same-length", "calm"}
    assert {mark.reason for e in scored if e.evaluator == "calm" for mark in e.marks} == {"calm"}
    by_replica = Counter(e.source for e in scored if e.evaluator == "exact-match")
    assert len(by_replica) == 2 and min(by_replica.values()) >= 2, by_replica
    shards = Counter((e.candidate.key, e.split, e.shard, e.evaluator) for e in scored)
    assert set(shards.values()) == {1}
    report = build_report(view, view.ended.at if view.ended else scored[-1].at).model_dump(mode="json")
    assert "same-length" in report["base_model"]["marks"]
