"""The engine's side of serving with vLLM, against a stand-in for the server."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from llamaduo.errors import AdapterRejected, RetryableError
from services.inference.adapter_store import AdapterStore
from services.inference.engine import AdapterFiles, EngineNotReady, GenerationRequest
from services.inference.remote_server import RemoteServer
from services.inference.vllm_client import Answer, probes_differ
from services.inference.vllm_engine import BaseModel, EngineLimits, VllmEngine
from tests.adapter_files import write_adapter
from tests.support import until
from tests.unit.vllm_stand_in import VllmStandIn

LAYERS = {"model.q": (2, 2)}


def request(model: str | None, text: str = "hi", k: int = 1, temperature: float = 0.0) -> GenerationRequest:
    return GenerationRequest(
        "row", [{"role": "user", "content": text}], model, k, 8, temperature, list(range(1, k + 1))
    )


def adapter(tmp_path: Path, number: int) -> AdapterFiles:
    return write_adapter(tmp_path / f"adapter{number}", LAYERS, rank=1, seed=number, round_number=number)


@pytest.fixture
def server() -> VllmStandIn:
    return VllmStandIn()


@pytest_asyncio.fixture
async def engine(tmp_path: Path, server: VllmStandIn) -> AsyncIterator[VllmEngine]:
    limits = EngineLimits(max_adapters=2, max_rank=8, ready_wait_s=10)
    engine = VllmEngine(server, BaseModel("base", None, None), AdapterStore(tmp_path / "store"), limits)
    await engine.start()
    yield engine
    await engine.stop()


async def said(engine: VllmEngine, model: str | None, text: str = "hi") -> str:
    return (await engine.generate([request(model, text)]))[0].answers[0]


async def test_base_and_adapter_answer_under_their_names(
    engine: VllmEngine, tmp_path: Path, server: VllmStandIn
) -> None:
    one = adapter(tmp_path, 1)
    assert await engine.load(one) == one.name
    assert await said(engine, None) == "base says 1 to hi"
    assert await said(engine, one.name) == f"{one.name} says 1 to hi"
    assert Path(server.adapters[one.name]).parent == tmp_path / "store"


async def test_each_sample_has_its_seed_and_temperature_0_is_asked_once(
    engine: VllmEngine, server: VllmStandIn
) -> None:
    (warm,) = await engine.generate([request(None, k=3, temperature=1.0)])
    assert warm.answers == [f"base says {seed} to hi" for seed in (1, 2, 3)]
    assert (warm.prompt_tokens, warm.completion_tokens) == (9, 6)
    before = len(server.asked)
    (cold,) = await engine.generate([request(None, k=3)])
    assert cold.answers == ["base says 1 to hi"] * 3
    assert (len(server.asked) - before, cold.completion_tokens) == (1, 2)


async def test_what_a_row_asks_beside_its_messages_reaches_the_server(
    engine: VllmEngine, server: VllmStandIn
) -> None:
    form = {"type": "json_object"}
    await engine.generate([dataclasses.replace(request(None), options={"response_format": form}), request(None)])
    asked = [one.get("response_format") for one in server.asked[-2:]]
    assert sorted(asked, key=str) == [None, form]


async def test_a_prompt_that_does_not_fit_is_an_empty_answer(engine: VllmEngine) -> None:
    short, long = await engine.generate([request(None), request(None, "x" * 2000, k=2)])
    assert short.answers == ["base says 1 to hi"]
    assert (long.answers, long.finish_reasons) == (["", ""], ["prompt_too_long"] * 2)


async def test_base_and_adapter_requests_take_turns(engine: VllmEngine, tmp_path: Path, server: VllmStandIn) -> None:
    one = await engine.load(adapter(tmp_path, 1))
    await engine.generate([request(one if i % 2 else None, str(i)) for i in range(40)])
    assert not server.mixed


async def test_an_adapter_that_changes_nothing_is_rejected_and_gone(
    engine: VllmEngine, tmp_path: Path, server: VllmStandIn
) -> None:
    one = adapter(tmp_path, 1)
    server.unchanged.add(one.name)
    with pytest.raises(AdapterRejected, match="answers unchanged"):
        await engine.load(one)
    assert server.adapters == {}
    with pytest.raises(RetryableError, match="not loaded"):
        await engine.generate([request(one.name)])


async def test_a_bad_adapter_never_reaches_the_server(
    engine: VllmEngine, tmp_path: Path, server: VllmStandIn
) -> None:
    too_high = write_adapter(tmp_path / "high", LAYERS, rank=16)
    with pytest.raises(AdapterRejected, match="rank 16"):
        await engine.load(too_high)
    assert server.loads == []


async def test_more_adapters_than_slots_make_room_and_come_back(
    engine: VllmEngine, tmp_path: Path, server: VllmStandIn
) -> None:
    names = [await engine.load(adapter(tmp_path, number)) for number in range(3)]
    assert list(server.adapters) == names[1:]
    assert await said(engine, names[0]) == f"{names[0]} says 1 to hi"
    assert sorted(server.adapters) == sorted([names[0], names[2]])


async def test_files_stay_until_the_server_has_unloaded_the_adapter(
    engine: VllmEngine, tmp_path: Path, server: VllmStandIn
) -> None:
    one = await engine.load(adapter(tmp_path, 1))
    kept = tmp_path / "store" / one
    server.unloads = False
    with pytest.raises(RetryableError, match="did not unload"):
        await engine.unload(one)
    assert kept.is_dir()
    server.unloads = True
    await engine.unload(one)
    assert (server.adapters, kept.exists()) == ({}, False)


async def test_lost_files_are_put_back_before_the_adapter_is_used(engine: VllmEngine, tmp_path: Path) -> None:
    one = adapter(tmp_path, 1)
    await engine.load(one)
    shutil.rmtree(tmp_path / "store" / one.name)
    await said(engine, one.name)
    assert (tmp_path / "store" / one.name / "adapter_model.safetensors").is_file()


async def test_files_lost_on_both_sides_are_fetched_again(tmp_path: Path, server: VllmStandIn) -> None:
    one = adapter(tmp_path, 1)
    spare = tmp_path / "spare"
    shutil.copytree(one.folder, spare)

    async def refetch(lost: AdapterFiles) -> None:
        shutil.copytree(spare, lost.folder)

    store = AdapterStore(tmp_path / "store")
    engine = VllmEngine(server, BaseModel("base", None, None), store, EngineLimits(), refetch)
    await engine.start()
    await engine.load(one)
    shutil.rmtree(one.folder)
    shutil.rmtree(store.folder(one.name))
    await said(engine, one.name)
    assert store.is_whole(one)
    await engine.stop()


async def test_a_server_that_ended_is_started_again_with_its_adapters(
    engine: VllmEngine, tmp_path: Path, server: VllmStandIn
) -> None:
    names = [await engine.load(adapter(tmp_path, number)) for number in range(2)]
    await server.end()
    assert await said(engine, names[0]) == f"{names[0]} says 1 to hi"
    assert sorted(server.adapters) == sorted(names)
    assert (server.starts, engine.restarts) == (2, 1)


async def test_requests_survive_an_engine_that_breaks_under_them(
    engine: VllmEngine, tmp_path: Path, server: VllmStandIn
) -> None:
    one = await engine.load(adapter(tmp_path, 1))
    server.breaks_at = len(server.asked) + 5
    answers = await engine.generate([request(one, str(i)) for i in range(10)])
    assert [answer.answers for answer in answers] == [[f"{one} says 1 to {i}"] for i in range(10)]
    assert engine.restarts == 1


async def test_requests_survive_that_waited_their_turn_when_the_server_ended(
    engine: VllmEngine, tmp_path: Path, server: VllmStandIn
) -> None:
    one = await engine.load(adapter(tmp_path, 1))
    server.hold = asyncio.Event()
    under_way = asyncio.create_task(said(engine, None))

    async def arrived() -> bool:
        return bool(server.under_way)

    await until(arrived)
    waiting = asyncio.create_task(said(engine, one))
    await asyncio.sleep(0)
    await server.end()
    server.hold = None
    assert await under_way == "base says 1 to hi"
    assert await waiting == f"{one} says 1 to hi"


async def test_the_watcher_outlives_failing_starts(
    engine: VllmEngine, server: VllmStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.inference.vllm_engine._LONGEST_BACKOFF_S", 0.01)
    server.failing_starts = 2
    await server.end()
    assert await said(engine, None) == "base says 1 to hi"
    assert server.starts == 4


async def test_an_adapter_that_another_server_forgot_is_loaded_again(
    engine: VllmEngine, tmp_path: Path, server: VllmStandIn
) -> None:
    one = await engine.load(adapter(tmp_path, 1))
    server.adapters.clear()
    assert await said(engine, one) == f"{one} says 1 to hi"


async def test_without_a_server_requests_are_to_be_tried_again(tmp_path: Path, server: VllmStandIn) -> None:
    limits = EngineLimits(ready_wait_s=0.01)
    engine = VllmEngine(server, BaseModel("base", None, None), AdapterStore(tmp_path / "store"), limits)
    with pytest.raises(EngineNotReady):
        await engine.generate([request(None)])


async def test_a_server_that_takes_requests_and_never_answers_is_left_after_a_few_timeouts(
    tmp_path: Path, server: VllmStandIn
) -> None:
    """It says that it is well, so it is not started again: the job is tried later, and given up in the end."""
    server.timeout_s, server.hold = 0.2, asyncio.Event()
    limits = EngineLimits(ready_wait_s=5)
    engine = VllmEngine(server, BaseModel("base", None, None), AdapterStore(tmp_path / "store"), limits)
    await engine.start()
    try:
        async with asyncio.timeout(10):
            with pytest.raises(RetryableError):
                await engine.generate([request(None)])
        assert len([one for one in server.asked if not one.get("logprobs")]) <= 3 and server.starts == 1
        server.hold.set()
        assert await said(engine, None) == "base says 1 to hi"
    finally:
        await engine.stop()


async def test_a_stopped_engine_serves_the_same_adapters_after_the_next_start(
    engine: VllmEngine, tmp_path: Path, server: VllmStandIn
) -> None:
    one = await engine.load(adapter(tmp_path, 1))
    await engine.stop()
    assert not engine.healthy()
    await engine.start()
    assert list(server.adapters) == [one]


async def test_unloading_forgets_name_and_files_once_nobody_uses_them(
    engine: VllmEngine, tmp_path: Path, server: VllmStandIn
) -> None:
    one = adapter(tmp_path, 1)
    await engine.load(one)
    server.hold = asyncio.Event()
    asked = asyncio.create_task(said(engine, one.name))

    async def arrived() -> bool:
        return bool(server.under_way)

    await until(arrived)
    await engine.unload(one.name)
    kept = tmp_path / "store" / one.name
    assert kept.is_dir()
    server.hold.set()
    assert await asked == f"{one.name} says 1 to hi"
    assert not kept.exists()
    assert server.adapters == {}


async def test_the_endpoint_serves_what_is_served_and_refuses_what_ends_vllm(
    engine: VllmEngine, tmp_path: Path, server: VllmStandIn
) -> None:
    one = await engine.load(adapter(tmp_path, 1))
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": one, "messages": messages, "seed": 5}
    async with aiohttp.ClientSession() as session:
        chat = f"{engine.base_url}/chat/completions"
        async with session.post(chat, json=body) as answer:
            assert (await answer.json())["choices"][0]["message"]["content"] == f"{one} says 5 to hi"
        async with session.get(f"{engine.base_url}/models") as answer:
            assert [entry["id"] for entry in (await answer.json())["data"]] == ["base", one]
        reached = len(server.asked)
        for bad, status in (
            ({**body, "prompt_logprobs": 1}, 400),
            ({**body, "prompt_logprobs": 0}, 400),
            ({**body, "echo": True, "logprobs": 1}, 400),
            ({**body, "model": "nobody"}, 404),
            ({**body, "model": ["x"]}, 400),
            ([], 400),
        ):
            async with session.post(chat, json=bad) as answer:
                assert answer.status == status, bad
        async with session.post(f"{engine.base_url}/load_lora_adapter", json={}) as answer:
            assert answer.status == 404
        assert len(server.asked) == reached
        await engine.unload(one)
        async with session.post(chat, json=body) as answer:
            assert answer.status == 404


async def test_the_endpoint_says_when_to_try_again(engine: VllmEngine, server: VllmStandIn) -> None:
    server.failing_starts = 1
    await server.end()
    async with aiohttp.ClientSession() as session:

        async def down() -> bool:
            async with session.get(engine.base_url.removesuffix("/v1") + "/health") as answer:
                return answer.status == 503

        await until(down)
        async with session.post(
            f"{engine.base_url}/chat/completions", json={"model": "base", "messages": []}
        ) as answer:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0


async def test_an_existing_server_is_used_by_url(tmp_path: Path, server: VllmStandIn) -> None:
    await (await server.start()).close()
    remote = RemoteServer(f"{server.url}/v1", start_timeout_s=5)
    engine = VllmEngine(remote, BaseModel("base", None, None), AdapterStore(tmp_path / "store"))
    await engine.start()
    one = await engine.load(adapter(tmp_path, 1))
    assert await said(engine, one) == f"{one} says 1 to hi"
    assert await said(engine, None) == "base says 1 to hi"
    await engine.stop()
    assert server.starts == 1
    await server.stop()


async def test_no_server_at_a_url_is_said(tmp_path: Path, server: VllmStandIn) -> None:
    await (await server.start()).close()
    await server.stop()
    remote = RemoteServer(server.url, start_timeout_s=0)
    engine = VllmEngine(remote, BaseModel("base", None, None), AdapterStore(tmp_path / "store"))
    with pytest.raises(EngineNotReady, match="no vLLM answers at"):
        await engine.start()


def test_probes_differ_by_text_or_by_more_than_rounding() -> None:
    base = Answer("a", "stop", 1, 1, (("a", -1.0),))
    close = dataclasses.replace(base, tokens=(("a", -1.0005),))
    far = dataclasses.replace(base, tokens=(("a", -1.1),))
    other = dataclasses.replace(base, tokens=(("b", -1.0),))
    assert not probes_differ([base, base], [base, close], 0.001)
    assert probes_differ([base, base], [base, far], 0.001)
    assert probes_differ([base, base], [base, other], 0.001)
    with pytest.raises(ValueError, match="not numbers"):
        probes_differ([base], [dataclasses.replace(base, tokens=(("a", float("nan")),))], 0.001)
