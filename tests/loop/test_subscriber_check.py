"""The conformance kit on a bus: it passes what keeps to the protocol and finds what does not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llamaduo.cli.subscriber_check import check_subscriber
from llamaduo.conformance import Check
from tests.support import ROOT

CARELESS = '''
import asyncio, json, os, sys
import nats

SILENT = {silent}

async def main():
    client = await nats.connect(os.environ["LLAMADUO_NATS_URL"])
    js = client.jetstream()
    work = await js.pull_subscribe_bind(consumer="evaluator-careless", stream="EVENTS")
    store = await js.object_store("artifacts")
    while True:
        try:
            [message] = await work.fetch(1, timeout=5)
        except TimeoutError:
            continue
        asked = json.loads(message.data)
        if SILENT:
            continue
        # It answers whatever it gets, whoever is meant.
        body = (await store.get(asked["responses"]["sha256"])).data if asked["responses"] else b""
        rows = [json.loads(line) for line in body.splitlines()]
        marks = [
            {{"row": row["row"], "sample": n, "metric": "m", "value": None if answer is None else 0.5, "reason": "-"}}
            for row in rows for n, answer in enumerate(row["answers"])
        ]
        place = {{name: asked[name] for name in ("migration", "submission", "candidate", "split", "shard", "of")}}
        scored = {{**place, "type": "eval.scored", "evaluator": "careless", "repeat": asked.get("repeat", 0),
                  "version": "1", "skipped": asked["responses"] is None, "marks": marks,
                  "metrics": {{"m": {{"low": 0, "high": 1}}}}}}
        await js.publish("eval.scored", json.dumps(scored).encode(), headers={{"Nats-Msg-Id": str(os.urandom(8))}})
        if asked["type"] != "marks.requested":
            await message.ack()

asyncio.run(main())
'''  # fmt: skip


async def tried(name: str, argv: list[str], patience: float) -> dict[str, Check]:
    return {check.name: check async for check in check_subscriber(name, argv, patience)}


async def careless(folder: Path, silent: bool, patience: float) -> dict[str, Check]:
    program = folder / "careless.py"
    program.write_text(CARELESS.format(silent=silent), "utf-8")
    return await tried("careless", [sys.executable, str(program)], patience)


async def test_an_evaluator_in_python_keeps_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'shared'}:{ROOT}")
    checks = await tried("same-length", [sys.executable, str(ROOT / "examples" / "same_length_evaluator.py")], 30)
    assert {name for name, check in checks.items() if check.state == "failed"} == set(), checks
    assert {"id", "others", "skipped", "again", "twice", "killed", "given up", "acks"} <= set(checks)


async def test_one_that_breaks_the_rules_is_told_which(tmp_path: Path) -> None:
    checks = await careless(tmp_path, False, 6)
    failed = {name for name, check in checks.items() if check.state == "failed"}
    assert {"id", "others", "acks"} <= failed and "marks" not in failed, checks
    assert checks["given up"].state == "note", checks


async def test_one_that_says_nothing_fails_at_once(tmp_path: Path) -> None:
    checks = await careless(tmp_path, True, 2)
    assert list(checks) == ["answers"] and "no eval.scored by careless" in checks["answers"].detail
