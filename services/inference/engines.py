"""The one engine of this process: started for the base model that is asked for, changed when nobody uses it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from llamaduo import tls
from llamaduo.accelerator import WAITING, Accelerator
from llamaduo.api_keys import KeyFile
from llamaduo.artifacts import ArtifactStore
from llamaduo.base_models import resolve
from llamaduo.errors import AdapterRejected
from llamaduo.event_parts import Adapter
from llamaduo.vllm_environment import Device, NoVllm, vllm_device
from services.inference import metrics
from services.inference.adapter_check import read_base_shapes
from services.inference.adapter_store import AdapterStore
from services.inference.engine import AdapterFiles, EngineNotReady, InferenceEngine
from services.inference.fake_engine import FakeEngine
from services.inference.remote_server import RemoteServer
from services.inference.settings import InferenceSettings, engine_key
from services.inference.vllm_engine import BaseModel, EngineLimits, Refetch, VllmEngine
from services.inference.vllm_process import VllmOptions, VllmProcess

log = logging.getLogger(__name__)

MakeEngine = Callable[[str, int], Awaitable[InferenceEngine]]
"""(base model, largest adapter rank) -> an engine that is not started yet"""


async def make_engine(settings: InferenceSettings, refetch: Refetch, base_model: str, rank: int) -> InferenceEngine:
    """An engine for this base model, not started yet. UserInputError where the model cannot be had."""
    if settings.inference_engine == "fake":
        return FakeEngine(delay_s=settings.fake_delay_s)
    state = settings.state_dir.resolve()
    by_url = settings.inference_engine == "url"
    # Where a server of somebody else's runs is not known: the CPU's needs are the safe ones.
    device: Device = "cpu" if by_url else await asyncio.to_thread(_device, settings.vllm_python.absolute())
    limits = EngineLimits(
        max_adapters=settings.max_adapters,
        max_rank=rank,
        concurrency=settings.concurrency,
        take_turns=device == "cpu",
        host=settings.api_host,
        port=settings.api_port,
        keys=KeyFile(settings.api_keys_file) if settings.api_keys_file else None,
        largest_body=settings.api_max_body_bytes,
        tls=tls.for_http(settings),
    )
    store = AdapterStore(state / "served")
    if by_url:
        server = RemoteServer(settings.engine_url or "", api_key=engine_key(settings))
        served = BaseModel(settings.engine_model or base_model, None, None, to_find=not settings.engine_model)
        return VllmEngine(server, served, store, limits, refetch)
    base = await resolve(base_model, state / "models")
    options = VllmOptions(
        python=settings.vllm_python.absolute(),
        model=base.folder,
        model_name=base.name,
        log=state / "logs" / "vllm.log",
        device=device,
        dtype=settings.dtype,
        max_length=settings.max_length,
        max_adapters=settings.max_adapters,
        max_rank=rank,
        max_sequences=settings.concurrency,
    )
    shapes = await asyncio.to_thread(read_base_shapes, base.folder)
    return VllmEngine(VllmProcess(options), BaseModel(base.name, base.digest, shapes), store, limits, refetch)


def _device(python: Path) -> Device:
    """What this vLLM was built for. A driver's tool on the path says nothing of that."""
    try:
        return vllm_device(python)
    except NoVllm as error:
        raise EngineNotReady(f"{error}: make setup", delay=60) from error


class EngineRoom:
    """Holds the engine; `use(base)` waits until it serves that base model.

    A changed engine is a new one, at a new address and with no adapter loaded.
    """

    def __init__(self, make: MakeEngine, accelerator: Accelerator | None = None) -> None:
        self._make, self._accelerator = make, accelerator
        self._waits_for: str | None = None
        self._changing = asyncio.Lock()
        self._unused = asyncio.Condition()
        self._users = 0
        self._used_at = time.monotonic()
        self._rank = 0
        self.base: str | None = None
        """The base model that is held now."""
        self.engine: InferenceEngine | None = None

    @property
    def idle_s(self) -> float:
        """For how long nobody has used the engine; 0 while somebody does."""
        return 0.0 if self._users or self._changing.locked() else time.monotonic() - self._used_at

    def problem(self) -> str | None:
        """Why the engine cannot answer now, if it was started."""
        if self._waits_for is not None:
            return f"{WAITING}, held by {self._waits_for}"
        if self.engine is not None and not self.engine.healthy():
            return "the engine is not up"
        return None

    def may_start(self) -> bool:
        """Whether an engine can be started without waiting for an accelerator."""
        shared = self._accelerator
        self._waits_for = None if shared is None or shared.try_take() else shared.holder()
        return self._waits_for is None

    async def give_way(self, needed_for: str) -> None:
        """Stop the engine where somebody waits for its accelerator and it is `needed_for` nothing, nor in use."""
        shared = self._accelerator
        if shared is None or not shared.is_held:
            return
        shared.say(needed_for)
        if needed_for or self._users or self._changing.locked() or not shared.is_wanted():
            return
        async with self._changing:
            if not self._users:
                log.info("stopping the engine: another waits for the accelerator")
                await self.close()

    @asynccontextmanager
    async def use(self, base_model: str, rank: int) -> AsyncIterator[InferenceEngine]:
        """The engine on this base model, for adapters up to this rank; a change waits until nobody uses this one."""
        async with self._changing:
            engine = await self._held(base_model, rank)
            self._users += 1
        try:
            yield engine
        finally:
            await self._leave()

    @asynccontextmanager
    async def alone(self, base_model: str, rank: int) -> AsyncIterator[InferenceEngine]:
        """The same, once nobody else uses the engine, and to nobody else until this is over: who comes waits."""
        async with self._changing:
            engine = await self._held(base_model, rank)
            async with self._unused:
                await self._unused.wait_for(lambda: self._users == 0)
            self._users += 1
            try:
                yield engine
            finally:
                await self._leave()

    async def _held(self, base_model: str, rank: int) -> InferenceEngine:
        """The engine on this base model, changed if need be; `_changing` is held."""
        if self.base != base_model or self.engine is None or rank > self._rank:
            async with self._unused:
                await self._unused.wait_for(lambda: self._users == 0)
            await self._change(base_model, rank)
        assert self.engine is not None
        return self.engine

    @asynccontextmanager
    async def as_it_is(self) -> AsyncIterator[InferenceEngine | None]:
        """The engine, whatever it holds, if there is one; inside, it is not changed."""
        async with self._changing:
            engine = self.engine
            self._users += 1
        try:
            yield engine
        finally:
            await self._leave(counts_as_use=False)

    async def _leave(self, *, counts_as_use: bool = True) -> None:
        async with self._unused:
            self._users -= 1
            if counts_as_use:
                self._used_at = time.monotonic()
            self._unused.notify_all()

    async def _change(self, base_model: str, rank: int) -> None:
        await self._stop()
        if self._accelerator is not None:
            try:
                await self._accelerator.take(self._wait)
            finally:
                self._waits_for = None
        log.info("starting the engine on %s for adapters up to rank %d", base_model, rank)
        engine = await self._make(base_model, rank)
        await engine.start()
        self.engine, self.base, self._rank = engine, base_model, rank
        metrics.ENGINE_CHANGES.inc()

    async def _wait(self, holder: str) -> None:
        self._waits_for = holder

    async def close(self) -> None:
        """Stop the engine, and let others have its accelerator."""
        await self._stop()
        if self._accelerator is not None:
            self._accelerator.give()

    async def _stop(self) -> None:
        engine, self.engine, self.base = self.engine, None, None
        if engine is not None:
            await engine.stop()


async def fetch_adapter(store: ArtifactStore, adapter: Adapter, name: str, folder: Path) -> AdapterFiles:
    """The adapter's files on this machine's disk, each checked against its digest."""
    target = folder / adapter.digest
    if not target.is_dir():
        # Shards are answered side by side: each fetches for itself, the first whole folder stays.
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-", ignore_cleanup_errors=True) as name_of_temp:
            whole = Path(name_of_temp) / "adapter"
            for file, ref in adapter.files.items():
                if "/" in file or file.startswith("."):
                    raise AdapterRejected(f"an adapter's file has a plain name, not {file!r}")
                await store.fetch(ref, whole / file)
            with contextlib.suppress(OSError):
                whole.rename(target)
    return AdapterFiles(
        name=name,
        folder=target,
        digest=adapter.digest,
        rank=adapter.rank,
        base_digest=adapter.base_digest,
        tool_wording=adapter.tool_wording,
    )
