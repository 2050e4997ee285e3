"""The engine with a real vLLM: adapters, the five traps, crashes. One vLLM, in float32, for the whole module."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import pytest
import pytest_asyncio

from deploy.metrics import dashboard
from llamaduo.base_models import find_packaged_gguf, resolve
from llamaduo.datasets import Message, make_row
from llamaduo.errors import AdapterRejected
from llamaduo.event_parts import ArtifactRef, Candidate
from llamaduo.events import ServingRequested
from services.inference.adapter_check import WEIGHTS, read_base_shapes
from services.inference.adapter_store import AdapterStore
from services.inference.engine import AdapterFiles, GenerationRequest
from services.inference.measuring import burst_requests, measure
from services.inference.vllm_engine import BaseModel, EngineLimits, VllmEngine
from services.inference.vllm_process import VllmOptions, VllmProcess
from tests.adapter_files import described, write_adapter
from tests.support import ROOT, environment, until

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
MAX_ADAPTERS = 2
# Longer than a block of vLLM's prefix cache (128 tokens), so that a stale one would show.
LONG = "The customer writes: " + " ".join(f"item {n} of order {n * 7} was late." for n in range(20))


@dataclass
class Running:
    """The engine and what the tests know of it."""

    engine: VllmEngine
    store: AdapterStore
    folder: Path
    model: Path
    layers: dict[str, tuple[int, int]]
    log: Path

    def adapter(self, number: int, *, scale: float = 0.3, rank: int = 8) -> AdapterFiles:
        """A new adapter of random weights; the same number gives the same weights."""
        count = len(list(self.folder.iterdir()))
        folder = self.folder / f"adapter{number}-{count}"
        return write_adapter(folder, self.layers, rank=rank, scale=scale, seed=number, round_number=number)

    async def ask(self, model: str | None, prompt: str, tokens: int = 8) -> str:
        (answer,) = await self.engine.generate([request(model, prompt, tokens=tokens)])
        return answer.answers[0]


def request(
    model: str | None, prompt: str, *, k: int = 1, tokens: int = 8, temperature: float = 0.0
) -> GenerationRequest:
    messages = [{"role": "user", "content": prompt}]
    return GenerationRequest("row", messages, model, k, tokens, temperature, list(range(k)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model() -> Path:
    made_by_setup = ROOT / ".llamaduo" / "models" / "SmolLM2-135M-Instruct"
    if made_by_setup.is_dir():
        return made_by_setup
    packaged = find_packaged_gguf()
    assert packaged, "the small model is missing: make setup"
    return (await resolve(str(packaged), ROOT / ".llamaduo" / "models")).folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vllm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "adapters").mkdir()
    shapes = read_base_shapes(model)
    options = VllmOptions(
        python=PYTHON,
        model=model,
        model_name="base",
        log=folder / "vllm.log",
        dtype="float32",
        max_length=512,
        max_adapters=MAX_ADAPTERS,
        max_rank=8,
        max_sequences=16,
    )
    store = AdapterStore(folder / "store")
    limits = EngineLimits(max_adapters=MAX_ADAPTERS, max_rank=8, concurrency=16, probe_tolerance=1e-3)
    engine = VllmEngine(VllmProcess(options), BaseModel("base", "b" * 64, shapes), store, limits)
    await engine.start()
    # All kinds of layers, but of a few blocks only: quickly written.
    blocks = tuple(f"model.layers.{number}." for number in range(4))
    layers = {name: size for name, size in shapes.linear.items() if name.startswith(blocks)}
    yield Running(engine, store, folder / "adapters", model, layers, options.log)
    processes = psutil.Process().children(recursive=True)
    await engine.stop()
    assert [process for process in processes if is_vllm(process)] == []


def is_vllm(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "vllm" in " ".join(process.cmdline()).lower()
    except psutil.NoSuchProcess:
        return False


def vllm_below(pid: int) -> list[psutil.Process]:
    return [process for process in psutil.Process(pid).children(recursive=True) if is_vllm(process)]


def worker() -> psutil.Process:
    (found,) = (p for p in vllm_below(os.getpid()) if "VLLM::Worker" in " ".join(p.cmdline()))
    return found


# First, while no other vLLM runs.
async def test_nothing_of_vllm_outlives_a_killed_parent(model: Path, tmp_path: Path) -> None:
    service = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from services.inference.vllm_process import VllmOptions, VllmProcess\n"
        "python, model, log = map(Path, sys.argv[1:])\n"
        "asyncio.run(VllmProcess(VllmOptions(python, model, 'base', log, max_length=256)).start())\n"
    )
    arguments = [str(PYTHON), str(model), str(tmp_path / "vllm.log")]
    parent = subprocess.Popen([sys.executable, "-c", service, *arguments], env=environment())

    async def all_started() -> list[psutil.Process]:
        assert parent.poll() is None, (tmp_path / "vllm.log").read_text()[-2000:]
        found = vllm_below(parent.pid)
        return found if any("VLLM::Worker" in " ".join(p.cmdline()) for p in found) else []

    processes = await until(all_started, seconds=120, what="vLLM's worker is there")
    assert len(processes) >= 4
    parent.kill()
    parent.wait()

    async def all_gone() -> bool:
        return not any(is_vllm(process) for process in processes)

    await until(all_gone, seconds=20, what="nothing of vLLM is left")


async def test_the_base_answers_and_samples_follow_their_seeds(vllm: Running) -> None:
    assert "Paris" in await vllm.ask(None, "What is the capital of France?", 12)
    ask = request(None, "Tell me a story.", k=3, tokens=12, temperature=1.0)
    first, again = await vllm.engine.generate([ask, ask])
    assert first.answers == again.answers
    assert len(set(first.answers)) == 3
    assert first.finish_reasons == ["length"] * 3
    assert first.completion_tokens == 36


async def test_it_has_the_figures_that_the_dashboard_asks_for(vllm: Running) -> None:
    await vllm.ask(None, "Count to three.")
    figures = await vllm.engine.metrics()
    asked = {name for panel in dashboard.ROWS["vLLM"] for name in re.findall(r"vllm:\w+", panel.expr)}
    assert len(asked) == 7
    assert {name for name in asked if f"{name}{{" not in figures} == set()


async def test_a_prompt_longer_than_the_window_is_an_empty_answer(vllm: Running) -> None:
    (answer,) = await vllm.engine.generate([request(None, "word " * 700)])
    assert (answer.answers, answer.finish_reasons) == ([""], ["prompt_too_long"])


async def test_adapters_answer_as_peft_says_also_after_the_same_long_prompt(vllm: Running) -> None:
    """Trap 1, a stale prefix cache: each version has its own name and folder, so none is reused."""
    prompts = [LONG, "Say hello."]
    adapters = [vllm.adapter(number) for number in (1, 2)]
    names = [await vllm.engine.load(adapter) for adapter in adapters]
    found = [[await vllm.ask(name, prompt) for prompt in prompts] for name in names]
    assert found == await asyncio.to_thread(answers_by_peft, vllm.model, adapters, prompts)
    base = [await vllm.ask(None, prompt) for prompt in prompts]
    assert not {*found[0], *found[1]} & set(base)
    assert not set(found[0]) & set(found[1])


def answers_by_peft(model: Path, adapters: list[AdapterFiles], prompts: list[str]) -> list[list[str]]:
    """Greedy answers of 8 tokens of each adapter, by transformers and PEFT in a process of their own."""
    code = (
        "import json, sys, torch\n"
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, adapters, prompts = json.loads(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(model)\n"
        "net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)\n"
        "net = PeftModel.from_pretrained(net, adapters[0], adapter_name='0').eval()\n"
        "for number, adapter in enumerate(adapters):\n"
        "    net.load_adapter(adapter, str(number)) if number else None\n"
        "    net.set_adapter(str(number))\n"
        "    texts = []\n"
        "    for prompt in prompts:\n"
        "        chat = [{'role': 'user', 'content': prompt}]\n"
        "        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors='pt',\n"
        "                                            return_dict=True)\n"
        "        out = net.generate(**ids, max_new_tokens=8, do_sample=False)\n"
        "        new = out[0, ids['input_ids'].shape[1]:]\n"
        "        texts.append(tokenizer.decode(new, skip_special_tokens=True))\n"
        "    print('ANSWERS', json.dumps(texts))\n"
    )
    asked = json.dumps([str(model), [str(adapter.folder) for adapter in adapters], prompts])
    result = subprocess.run(
        [sys.executable, "-c", code, asked],
        env=environment(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = result.stdout.splitlines()
    return [json.loads(line.removeprefix("ANSWERS ")) for line in lines if line.startswith("ANSWERS ")]


async def test_base_answers_stay_the_bases_own_with_every_slot_filled(vllm: Running) -> None:
    """Trap 2: more adapters were loaded than there are slots, and base and adapter requests arrive at once."""
    prompts = [f"Write about the number {n}." for n in range(4)]
    alone = [await vllm.ask(None, prompt) for prompt in prompts]
    names = [await vllm.engine.load(vllm.adapter(number, scale=0.8)) for number in (3, 4, 5)]
    adapted = [await vllm.ask(names[-1], prompt) for prompt in prompts]
    both = [request(model, prompt) for prompt in prompts for model in (None, names[-1])]
    together = [answer.answers[0] for answer in await vllm.engine.generate(both)]
    assert together[0::2] == alone
    assert together[1::2] == adapted
    assert not set(alone) & set(adapted)


async def test_a_burst_times_the_adapter_and_no_prefix_that_was_asked_before(vllm: Running) -> None:
    name = await vllm.engine.load(vllm.adapter(9))
    rows = [
        make_row([Message(role="user", content=f"{n}: {LONG}"), Message(role="assistant", content="x")])
        for n in range(3)
    ]
    asked = ServingRequested(
        migration="m-1",
        round=0,
        candidate=Candidate(kind="adapter", round=0),
        rows=ArtifactRef(uri="obj:x", sha256="0" * 64, size=1),
        requests=6,
        concurrency=2,
        max_tokens=4,
    )
    requests = burst_requests(rows, asked, name)
    plain = await vllm.ask(name, requests[0].messages[0]["content"], tokens=4)
    assert [g.answers[0] for g in await vllm.engine.generate(requests[:1])] == [plain]
    burst = await measure(vllm.engine, requests, asked.concurrency)
    assert len(burst.seconds) == 6 and 0 < min(burst.seconds) <= burst.wall_s and burst.output_tokens >= 6


async def test_prompt_logprobs_never_reach_vllm(vllm: Running) -> None:
    """Trap 3: with an adapter and more than one request in a batch they end the engine."""
    name = await vllm.engine.load(vllm.adapter(1))
    body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    url = f"{vllm.engine.base_url}/chat/completions"

    async def ask(session: aiohttp.ClientSession, extra: dict[str, object]) -> int:
        async with session.post(url, json={**body, **extra}) as answer:
            await answer.read()
            return answer.status

    async with aiohttp.ClientSession() as session:
        asked = [ask(session, {"prompt_logprobs": 1} if n % 2 else {}) for n in range(6)]
        assert await asyncio.gather(*asked) == [200, 400] * 3
    assert vllm.engine.healthy()


async def test_a_deleted_folder_is_put_back_before_vllm_reads_it_again(vllm: Running) -> None:
    """Trap 4: an adapter that vLLM dropped from memory is read from its folder once more."""
    first = vllm.adapter(6)
    name = await vllm.engine.load(first)
    before = await vllm.ask(name, "Say hello.")
    for number in (7, 8, 9):
        await vllm.ask(await vllm.engine.load(vllm.adapter(number)), "Say hello.", 1)
    for path in vllm.store.folder(name).iterdir():
        path.unlink()
    assert await vllm.ask(name, "Say hello.") == before
    assert vllm.engine.restarts == 0


async def test_bad_adapters_are_rejected_and_the_engine_lives_on(vllm: Running) -> None:
    """Trap 5, and what vLLM would accept: an adapter that changes nothing."""
    cut = vllm.adapter(10)
    weights = cut.folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AdapterRejected, match="cut off"):
        await vllm.engine.load(described(cut.folder, 8))
    with pytest.raises(AdapterRejected, match="rank 16"):
        await vllm.engine.load(vllm.adapter(10, rank=16))
    with pytest.raises(AdapterRejected, match="answers unchanged"):
        await vllm.engine.load(vllm.adapter(10, scale=0.0))
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{vllm.engine.base_url}/models") as answer,
    ):
        listed = [entry["id"] for entry in (await answer.json())["data"]]
    assert "base" in listed
    assert not any("r10" in name for name in listed)
    assert vllm.engine.restarts == 0


async def test_others_are_served_in_a_stream(vllm: Running) -> None:
    body = {
        "model": await vllm.engine.load(vllm.adapter(1)),
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
    }
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{vllm.engine.base_url}/chat/completions", json=body) as answer,
    ):
        lines = [line.decode().strip() async for line in answer.content]
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    text = "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces)
    assert text == await vllm.ask(body["model"], "Say hello.")  # type: ignore[arg-type]
    assert len(pieces) > 2


async def test_a_killed_worker_is_replaced_and_its_adapters_are_loaded_again(vllm: Running) -> None:
    name = await vllm.engine.load(vllm.adapter(1))
    other = await vllm.engine.load(vllm.adapter(2))
    before = await vllm.ask(name, "Say hello.")
    old = vllm_below(os.getpid())
    killed = worker()
    under_way = asyncio.create_task(vllm.ask(None, "Count to one hundred.", 200))
    await asyncio.sleep(0)
    os.kill(killed.pid, signal.SIGKILL)
    assert await vllm.ask(name, "Say hello.") == before
    assert (await under_way).strip()
    assert vllm.engine.restarts == 1
    assert not any(is_vllm(process) for process in old)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{vllm.engine.base_url}/models") as answer,
    ):
        assert {name, other} <= {entry["id"] for entry in (await answer.json())["data"]}
