"""On a machine with one accelerator migrations go by turns: no training while answers are generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llamaduo.accelerator import Accelerator
from llamaduo.event_parts import WorkSpan
from llamaduo.events import AdapterTrained, MigrationCompleted, PromoteRequested, ResponsesGenerated
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
from tests.loop.test_loop import emulator, ended, spec_of, submit
from tests.support import connected, nats_server, serving, until


async def test_training_and_generation_take_turns_and_an_alias_keeps_the_accelerator(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:

        def of(name: str) -> dict[str, Any]:
            common = {"nats_url": server.url, "profile": "faults", "log_level": "WARNING"}
            return {**common, "replica": name, "state_dir": tmp_path / name}

        turns = tmp_path / "accelerator"
        services = [
            verdict(VerdictSettings(**of("verdict"))),
            synthesizer(SynthesizerSettings(**of("synthesizer"))),
            trainer(TrainerSettings(**of("trainer"), training_engine="fake", fake_seconds=1, accelerator_dir=turns)),
            inference(
                InferenceSettings(
                    **of("inference"), inference_engine="fake", fake_delay_s=0.01, accelerator_dir=turns
                )
            ),
            *(judge(JudgeSettings(**of(name), evaluator=name)) for name in ("exact-match", "llm-judge")),
        ]
        async with connected(server, tmp_path) as bus, emulator() as url, serving(*services):
            specs = [spec_of(url, name=name, promotion="manual") for name in ("one", "other")]
            migrations = [await submit(bus, spec) for spec in specs]
            trainings: list[WorkSpan] = []
            answers: list[WorkSpan] = []
            for migration in migrations:
                view = await until(lambda of=migration: ended(bus, of), seconds=120, what="the end")  # type: ignore[misc]
                assert isinstance(view.ended, MigrationCompleted), view.ended
                trainings += [span for event in view.of_type(AdapterTrained) for span in event.work]
                generated = [e for e in view.of_type(ResponsesGenerated) if e.candidate.kind in ("base", "adapter")]
                answers += [span for event in generated for span in event.work]
            assert len(trainings) >= 4 and len(answers) >= 8
            assert [(t, a) for t in trainings for a in answers if t.began < a.ended and a.began < t.ended] == []

            assert view.passed is not None
            await bus.publish(
                PromoteRequested(
                    migration=migrations[1], round=view.passed.round, command="c-12345678", by="test", why="test"
                )
            )
            other = Accelerator(turns, "trainer", "another")

            async def served() -> bool:
                return not other.try_take() and "it serves alias other" in other.holder()

            await until(served, seconds=20, what="the alias that keeps the accelerator")
