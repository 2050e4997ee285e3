"""One tiny loop with nothing faked but the provider: real NATS, real TRL training, real vLLM, twice round.

Four steps teach nothing, so the verdict fails both rounds, and what is shown is the path: `eval.failed` sets off a
second round with its own data, training and adapter; an operator's promotion is served by vLLM's OpenAI endpoint.
In the middle of the first round trainer and inference are killed with signal 9: nothing is lost or done twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest

from llamaduo.artifacts import read_bytes
from llamaduo.base_models import find_packaged_gguf
from llamaduo.bus.connection import Bus
from llamaduo.cli.doctor import find_demo_model
from llamaduo.cli.system import Plan, System, find_vllm_python, running
from llamaduo.datasets import load_shard
from llamaduo.events import (
    AdapterLoaded,
    AdapterPromoted,
    AdapterTrained,
    AnyEvent,
    EvalFailed,
    EvalPassed,
    EvalScored,
    MigrationStopped,
    PromoteRequested,
    ResponsesGenerated,
)
from llamaduo.migrations.fold import MigrationView
from llamaduo.settings import BusSettings
from tests.loop.test_loop import log_of, spec_of, submit
from tests.support import ROOT, until

pytestmark = [pytest.mark.vllm, pytest.mark.training, pytest.mark.timeout(900)]

SMALL = {
    "splits": {"train": 24, "validation": 4, "test": 16, "holdout": 0},
    "recipe": {"steps": 4, "batch_size": 4, "validate_every": 4, "max_length": 160, "rank": 8, "alpha": 16},
    "generation": {"max_tokens": 12},
    "marking": {"shard_rows": 8, "baseline_rows": 8},
    "synthesis": {"rows_per_round": 20, "pairs_per_call": 5},
    "evaluators": ["exact-match"],
    "budgets": {"rounds": 2},
}


def small_model() -> Path:
    """The demo's model as a folder, else as the packaged file (which is converted on the way)."""
    found = find_demo_model(ROOT / ".llamaduo", ROOT) or find_packaged_gguf()
    assert found is not None, "make setup"
    return found


async def test_two_real_rounds_and_a_promotion(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLAMADUO_")}
    environment |= {"OPENAI_API_KEY": "sk-x", "LLAMADUO_MAX_LENGTH": "256", "LLAMADUO_MAX_RANK": "8"}
    assert find_vllm_python(environment, ROOT) is not None, "make setup"
    async with running(Plan(tmp_path / "state", nats_port=0, emulator=(), environment=environment)) as system:
        bus = await Bus.connect(BusSettings(nats_url=system.nats_url), "test")
        try:
            spec = spec_of(f"{system.emulator_url}", base_model=str(small_model()), **SMALL)
            migration = await submit(bus, spec)
            await _kill_in_the_middle(bus, system)

            async def view_when(model: type) -> MigrationView | None:
                child = system.failing()
                assert child is None, child.program.log.read_text()[-3000:] if child else ""
                view = MigrationView(migration)
                for event in await log_of(bus, migration):
                    view.add(event)
                return view if view.of_type(model) else None

            view = await until(lambda: view_when(MigrationStopped), seconds=700, what="the end")
            assert isinstance(view.ended, MigrationStopped) and view.ended.rule == "rounds", view.ended
            assert [d.round for d in sorted(view.of_type(EvalFailed), key=lambda e: e.round)] == [0, 1]
            first, second = view.adapter(0), view.adapter(1)
            assert isinstance(first, AdapterTrained) and isinstance(second, AdapterTrained)
            assert first.adapter.digest != second.adapter.digest and first.steps == second.steps == 4
            assert second.rows_given == 44 and second.label_tokens > 0
            assert set(second.adapter.files) == {"adapter_config.json", "adapter_model.safetensors"}
            await _answers_are_real(bus, view)
            assert doubles(await log_of(bus, migration)) == []
            assert {name: child.restarts for name, child in system.supervisor.children.items() if child.restarts} == {
                "trainer": 1,
                "inference": 1,
            }

            await bus.publish(PromoteRequested(migration=migration, round=1, command="c-real-loop", by="test"))
            view = await until(lambda: view_when(AdapterPromoted), seconds=120, what="the promotion")
            loaded = next(e for e in view.of_type(AdapterLoaded) if e.digest == second.adapter.digest)
            await _serves(loaded)
        finally:
            await bus.close()


async def _kill_in_the_middle(bus: Bus, system: System) -> None:
    """Kill trainer and inference with signal 9 as soon as the first step of training is reported."""
    async with asyncio.timeout(240):
        async for progress in bus.watch_progress():
            if progress.stage == "training":
                break
    for name in ("trainer", "inference"):
        pid = system.supervisor.children[name].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)


async def _answers_are_real(bus: Bus, view: MigrationView) -> None:
    store = await bus.artifacts()
    by_candidate: dict[str, set[str]] = {}
    for event in view.of_type(ResponsesGenerated):
        if event.candidate.kind in ("base", "adapter") and event.responses is not None:
            rows = load_shard(await read_bytes(store, event.responses))
            assert all(row.answers[0] is not None for row in rows) and event.output_tokens > 0
            by_candidate.setdefault(event.candidate.key, set()).update(str(row.answers[0]) for row in rows)
    assert set(by_candidate) == {"base", "round-0", "round-1"}
    assert by_candidate["base"] != by_candidate["round-1"]


async def _serves(loaded: AdapterLoaded) -> None:
    asked = {
        "model": loaded.name,
        "messages": [{"role": "user", "content": "Where is my yoga mat?"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{loaded.url.removesuffix('/')}/chat/completions", json=asked) as answer,
    ):
        body = await answer.json()
        assert answer.status == 200, body
        assert body["model"] == loaded.name and body["choices"][0]["message"]["content"]


def doubles(events: Sequence[AnyEvent]) -> list[str]:
    """Anything that happened twice."""
    problems = [f"event {id_} is {n} times in the log" for id_, n in Counter(e.id for e in events).items() if n > 1]
    marked = Counter(
        (e.candidate.key, e.split, e.shard, e.evaluator, e.repeat, m.row, m.sample, m.metric)
        for e in events
        if isinstance(e, EvalScored)
        for m in e.marks
    )
    answered = Counter((e.candidate.key, e.split, e.shard) for e in events if isinstance(e, ResponsesGenerated))
    problems += [f"{n} times: {key}" for counted in (marked, answered) for key, n in counted.items() if n > 1]
    decided = Counter(e.round for e in events if isinstance(e, EvalFailed | EvalPassed))
    return problems + [f"round {number} decided {n} times" for number, n in decided.items() if n > 1]
