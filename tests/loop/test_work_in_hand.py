"""However much is asked for, each role has in hand what its setting says and no more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llamaduo.bus import settling
from llamaduo.events import CancelRequested, ResponsesRequested
from services.inference.app import build as inference
from services.inference.settings import InferenceSettings
from services.judge.app import build as judge
from services.judge.settings import JudgeSettings
from services.synthesizer.app import build as synthesizer
from services.synthesizer.settings import SynthesizerSettings
from services.trainer.app import build as trainer
from services.trainer.settings import TrainerSettings
from services.verdict.app import build as verdict
from services.verdict.settings import VerdictSettings
from tests.loop.test_loop import emulator, log_of, spec_of, submit
from tests.support import connected, nats_server, serving, until


class Most:
    """In place of the gauge of work in hand: the most there ever was, by durable."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def labels(self, durable: str) -> Hand:
        return Hand(self, durable)


class Hand:
    def __init__(self, gauge: Most, durable: str) -> None:
        self._gauge, self._durable = gauge, durable

    def inc(self) -> None:
        self._gauge.now[self._durable] += 1
        self._gauge.most[self._durable] = max(self._gauge.most[self._durable], self._gauge.now[self._durable])

    def dec(self) -> None:
        self._gauge.now[self._durable] -= 1


async def test_a_flood_of_requests_is_taken_up_as_far_as_the_settings_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of two rows, asked for by the hundred."""
    gauge = Most()
    monkeypatch.setattr(settling, "WORK_IN_HAND", gauge)
    with nats_server(tmp_path / "nats") as server:
        common: dict[str, Any] = {"nats_url": server.url, "profile": "faults", "log_level": "WARNING"}

        def of(name: str) -> dict[str, Any]:
            return {**common, "replica": name, "state_dir": tmp_path / name}

        services = [
            verdict(VerdictSettings(**of("verdict"))),
            synthesizer(SynthesizerSettings(**of("synthesizer"), shards_at_once=3)),
            trainer(TrainerSettings(**of("trainer"), training_engine="fake", fake_seconds=0)),
            inference(
                InferenceSettings(**of("inference"), inference_engine="fake", fake_delay_s=0.1, shards_at_once=4)
            ),
            judge(JudgeSettings(**of("exact"), evaluator="exact-match")),
            judge(JudgeSettings(**of("llm"), evaluator="llm-judge", shards_at_once=2)),
        ]
        async with emulator(latency_ms=100) as url, connected(server, tmp_path) as bus, serving(*services):
            migration = await submit(bus, spec_of(url, marking={"shard_rows": 2, "wave_shards": 64}))

            async def flooded() -> bool:
                asked = [event for event in await log_of(bus, migration) if isinstance(event, ResponsesRequested)]
                busy = ("inference", "synthesizer-references", "evaluator-llm-judge")
                return len(asked) > 100 and all(gauge.most[durable] > 1 for durable in busy)

            await until(flooded, seconds=90, what="a hundred shards asked for")

            async def reached() -> bool:
                return (gauge.most["inference"], gauge.most["synthesizer-references"]) == (4, 3)

            await until(reached, seconds=60, what="as many in hand as may be")
            await bus.publish(CancelRequested(migration=migration, command="cancel-01"))
        assert gauge.most == {
            "verdict": 1,
            "synthesizer": 1,
            "synthesizer-references": 3,
            "trainer": 1,
            "inference": 4,
            "evaluator-exact-match": 1,
            "evaluator-llm-judge": 2,
        }
