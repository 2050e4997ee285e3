"""The inference engine on vLLM: a server of our own, watched and started again, or an existing one by URL.

Five traps of vLLM are closed here and in the files beside: a prefix cache that does not see changed weights (a
name and a folder are bound to one content), base requests answered with an adapter's weights (a spare slot, and
base and adapter requests take turns), requests that end the engine (never sent), folders it reads again later
(kept by the engine), and bad adapters (checked first, then loaded through the server's own endpoint).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llamaduo.api_keys import KeyFile
from llamaduo.errors import AdapterRejected, LlamaDuoError, RetryableError
from llamaduo.tool_calls import ToolWording
from services.inference.adapter_check import BaseShapes, check_adapter
from services.inference.adapter_slots import AdapterSlots
from services.inference.adapter_store import AdapterStore
from services.inference.endpoint import LARGEST_BODY, Endpoint
from services.inference.engine import AdapterFiles, EngineNotReady, Generation, GenerationRequest
from services.inference.phase_gate import Phase, PhaseGate
from services.inference.remote_server import served_name_of
from services.inference.vllm_client import (
    Answer,
    ModelNotServed,
    PromptTooLong,
    ServerBroken,
    VllmClient,
    probes_differ,
    wait_until_idle,
)

log = logging.getLogger(__name__)

_LONGEST_BACKOFF_S = 60.0
_STEADY_S = 300.0
_ATTEMPTS = 3

Refetch = Callable[[AdapterFiles], Awaitable[None]]
"""Puts an adapter's files into its `folder` once more, from where they came."""


class Server(Protocol):
    """A vLLM server, ours or another's."""

    async def start(self) -> VllmClient:
        """A client of a server that is up. EngineNotReady where it is not in time."""
        ...

    async def ended(self, client: VllmClient) -> str:
        """Waits until this server must be started again; says why."""
        ...

    async def stop(self) -> None: ...


@dataclass(frozen=True)
class BaseModel:
    """The base model an engine serves, by its served name.

    `digest` and `shapes` are None where its files are not at hand. With `to_find`, `name` is a Hub id, folder or
    `.gguf`, and the server, which is not ours, must be found to serve that, under whatever name.
    """

    name: str
    digest: str | None
    shapes: BaseShapes | None
    to_find: bool = False


@dataclass(frozen=True)
class EngineLimits:
    """`take_turns` keeps base and adapter requests apart, which the CPU needs. `probe_tolerance` is how far two
    log-probabilities of the same weights may be apart (rounding). `ready_wait_s` is how long a request waits for
    an engine that is being started again. `host`, `port`, `keys` and `largest_body` are the endpoint's."""

    max_adapters: int = 4
    max_rank: int = 64
    concurrency: int = 32
    take_turns: bool = True
    probe_tolerance: float = 0.02
    ready_wait_s: float = 600.0
    host: str = "127.0.0.1"
    port: int = 0
    keys: KeyFile | None = None
    largest_body: int = LARGEST_BODY
    tls: ssl.SSLContext | None = None


class VllmEngine:
    """See `InferenceEngine`. `refetch` brings back an adapter's files that were lost."""

    def __init__(
        self,
        server: Server,
        base: BaseModel,
        store: AdapterStore,
        limits: EngineLimits | None = None,
        refetch: Refetch | None = None,
    ) -> None:
        limits = limits or EngineLimits()
        self._server, self._base, self._store, self._limits, self._refetch = server, base, store, limits, refetch
        self._base_name = base.name
        self._slots = AdapterSlots(limits.max_adapters)
        self._gate = PhaseGate(self._settle, enabled=limits.take_turns)
        self._room: dict[Phase, asyncio.Semaphore] = {
            "base": asyncio.Semaphore(limits.concurrency),
            "adapter": asyncio.Semaphore(limits.concurrency),
        }
        self._endpoint = Endpoint(
            self, limits.host, limits.port, keys=limits.keys, largest_body=limits.largest_body, tls=limits.tls
        )
        self._client: VllmClient | None = None
        self._ready = asyncio.Event()
        self._broken = asyncio.Event()
        self._changing = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._base_probe: list[Answer] = []
        self.restarts = 0

    @property
    def base_url(self) -> str:
        return self._endpoint.base_url

    def healthy(self) -> bool:
        return self._ready.is_set() and self._watcher is not None and not self._watcher.done()

    async def metrics(self) -> str:
        return await self.client_now().metrics()

    def pin(self, names: frozenset[str]) -> None:
        """These adapters never make room for another; replaces what was pinned before."""
        self._slots.pinned = names

    async def start(self) -> None:
        if self._watcher is not None:
            return
        try:
            await self._bring_up()
            await self._endpoint.start()
        except BaseException:
            await self._take_down()
            raise
        self._watcher = asyncio.create_task(self._watch(), name="vllm-watch")

    async def stop(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
        await self._endpoint.stop()
        await self._take_down()

    async def load(self, adapter: AdapterFiles) -> str:
        self._store.check_name(adapter)
        if self._slots.is_loaded(adapter.name):
            return adapter.name
        await asyncio.to_thread(
            check_adapter,
            adapter,
            max_rank=self._limits.max_rank,
            base_digest=self._base.digest,
            base=self._base.shapes,
        )
        await self._until_ready(self._limits.ready_wait_s)
        async with self._changing:
            if not self._slots.is_loaded(adapter.name):
                await self._keep(adapter)
                async with self._using() as client:
                    await self._serve(client, adapter, probe=True)
        return adapter.name

    async def unload(self, name: str) -> None:
        async with self._changing:
            # Forgotten only once the server has let go of it: until then it may read the files again.
            if self._slots.is_loaded(name) and self._ready.is_set():
                await self.client_now().unload_adapter(name)
            self._slots.forget(name)
            if not self._slots.is_in_use(name):
                self._store.drop(name)

    async def generate(self, prompts: Sequence[GenerationRequest]) -> list[Generation]:
        tasks: list[asyncio.Task[Generation]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks += [group.create_task(self._generation(prompt)) for prompt in prompts]
        except BaseExceptionGroup as errors:
            known = [error for error in errors.exceptions if isinstance(error, LlamaDuoError)]
            raise (known or errors.exceptions)[0] from errors
        return [task.result() for task in tasks]

    def serves(self, model: str) -> bool:
        """Whether this is the base model's name or an adapter's that was loaded here."""
        return model == self._base_name or self._slots.known(model) is not None

    def tool_wording(self, model: str) -> ToolWording:
        """How this model was shown tools."""
        adapter = self._slots.known(model)
        return "text" if adapter is None else adapter.tool_wording

    def client_now(self) -> VllmClient:
        """A client of the server as it is. EngineNotReady while it is down."""
        if self._client is None or not self._ready.is_set():
            raise EngineNotReady("vLLM is down or starting", delay=15)
        return self._client

    @contextlib.asynccontextmanager
    async def request_place(self, model: str, *, wait_s: float | None = None) -> AsyncIterator[VllmClient]:
        """A place for one request to `model`, a served name.

        Inside, the adapter is loaded, and no request of the other kind is under way. EngineNotReady after
        `wait_s` seconds (by default the engine's own limit) without an engine.
        """
        await self._until_ready(self._limits.ready_wait_s if wait_s is None else wait_s)
        adapter = self._slots.known(model)
        phase: Phase = "base" if adapter is None else "adapter"
        try:
            with self._slots.use(model):
                if adapter is not None:
                    await self._bring_back(adapter)
                async with self._room[phase], self._gate.hold(phase), self._using() as client:
                    yield client
        finally:
            # It may have been unloaded while it was in use.
            if adapter is not None and self._slots.known(model) is None and not self._slots.is_in_use(model):
                self._store.drop(model)

    @contextlib.asynccontextmanager
    async def _using(self) -> AsyncIterator[VllmClient]:
        """The client, for one request; if that finds the server broken, the server is started again."""
        client = self._client
        if client is None or not self._ready.is_set():
            raise ServerBroken("vLLM went down while a request was waiting its turn")
        try:
            yield client
        except ServerBroken:
            await self._give_up_on(client)
            raise

    async def _generation(self, request: GenerationRequest) -> Generation:
        name = request.model or self._base_name
        if request.model is not None and self._slots.known(request.model) is None:
            raise RetryableError(f"adapter {request.model} is not loaded here")
        # At temperature 0 the samples are one answer, whatever their seeds.
        seeds = request.seed if request.temperature > 0 else request.seed[:1]
        try:
            answers = [await self._answer(name, request, seed) for seed in seeds]
        except PromptTooLong:
            return Generation(request.row, [""] * request.k, ["prompt_too_long"] * request.k, 0, 0)
        repeated = answers * (request.k if len(answers) < request.k else 1)
        return Generation(
            row=request.row,
            answers=[answer.text for answer in repeated],
            finish_reasons=[answer.finish_reason for answer in repeated],
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            completion_tokens=sum(answer.completion_tokens for answer in answers),
        )

    async def _answer(self, name: str, request: GenerationRequest, seed: int) -> Answer:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self.request_place(name) as client:
                    return await client.chat(
                        name,
                        request.messages,
                        max_tokens=request.max_tokens,
                        temperature=request.temperature,
                        seed=seed,
                        options=request.options,
                    )
            except ModelNotServed:
                # A server that is not ours was started again.
                self._slots.evict(name)
            except ServerBroken:
                # The same seed gives the same answer, so the restarted engine may be asked again.
                if attempt == _ATTEMPTS:
                    raise
        raise EngineNotReady(f"vLLM serves {name} no longer")

    async def _until_ready(self, wait_s: float) -> None:
        if not self._ready.is_set():
            try:
                await asyncio.wait_for(self._ready.wait(), wait_s)
            except TimeoutError as error:
                raise EngineNotReady("vLLM is down or starting", delay=15) from error

    async def _keep(self, adapter: AdapterFiles) -> None:
        """The adapter's files are in our store, whole."""
        try:
            await asyncio.to_thread(self._store.keep, adapter)
        except RetryableError:
            if self._refetch is None:
                raise
            await self._refetch(adapter)
            await asyncio.to_thread(self._store.keep, adapter)

    async def _bring_back(self, adapter: AdapterFiles) -> None:
        if self._slots.is_loaded(adapter.name) and self._store.is_there(adapter.name):
            return
        async with self._changing:
            await self._keep(adapter)
            if not self._slots.is_loaded(adapter.name):
                async with self._using() as client:
                    await self._serve(client, adapter, probe=False)

    async def _serve(self, client: VllmClient, adapter: AdapterFiles, *, probe: bool) -> None:
        """Loads an adapter whose files are kept, in the place of another where all slots are taken."""
        if (evicted := self._slots.to_evict()) is not None:
            await client.unload_adapter(evicted)
            self._slots.evict(evicted)
        await self._install(client, adapter, probe=probe)
        self._slots.add(adapter)

    async def _install(self, client: VllmClient, adapter: AdapterFiles, *, probe: bool) -> None:
        """The server has the adapter; one that is probed stays only if it changes the answers."""
        try:
            await client.load_adapter(adapter.name, self._store.folder(adapter.name))
            if probe:
                await self._probe(client, adapter)
        except AdapterRejected:
            await client.unload_adapter(adapter.name)
            self._slots.forget(adapter.name)
            self._store.drop(adapter.name)
            raise

    async def _probe(self, client: VllmClient, adapter: AdapterFiles) -> None:
        async with self._gate.hold("adapter"):
            answers = await client.probe(adapter.name)
        try:
            changed = probes_differ(self._base_probe, answers, self._limits.probe_tolerance)
        except ValueError as error:
            raise AdapterRejected(f"adapter {adapter.name}: {error}") from error
        if not changed:
            raise AdapterRejected(
                f"adapter {adapter.name}: answers unchanged: it answers every probe just as the base model does"
            )

    async def _bring_up(self) -> None:
        """A started server with everything loaded that was loaded before."""
        client = await self._server.start()
        self._broken.clear()
        self._client = client
        async with self._changing:
            base = self._base
            self._base_name = await served_name_of(client, base.name) if base.to_find else base.name
            self._base_probe = await client.probe(self._base_name)
            for adapter in self._slots.loaded():
                try:
                    await self._keep(adapter)
                    await self._install(client, adapter, probe=True)
                except AdapterRejected:
                    log.exception("adapter %s was served and is not any more", adapter.name)
        self._ready.set()

    async def _take_down(self) -> None:
        self._ready.clear()
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        await self._server.stop()

    async def _give_up_on(self, client: VllmClient) -> None:
        """Has the server started again if it is not up any more, unless that has begun."""
        if not await client.is_up() and client is self._client:
            self._ready.clear()
            self._broken.set()

    async def _watch(self) -> None:
        """Starts the server again whenever it ends, ever more slowly while it does not stay up."""
        backoff, since = 1.0, time.monotonic()
        while True:
            if self._client is not None and self._ready.is_set():
                log.error("%s", await self._end_of(self._client))
                backoff = 1.0 if time.monotonic() - since > _STEADY_S else backoff
            await self._take_down()
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, _LONGEST_BACKOFF_S)
            try:
                await self._bring_up()
            except LlamaDuoError as error:
                log.error("vLLM could not be started again: %s", error)
                continue
            except Exception:
                # Whatever it was: an engine that is not watched would stay down for good.
                log.exception("vLLM could not be started again")
                continue
            self.restarts, since = self.restarts + 1, time.monotonic()
            log.warning("vLLM is up again with %d adapters", len(self._slots.loaded()))

    async def _end_of(self, client: VllmClient) -> str:
        """Waits until this server is of no more use; says why."""
        ended = asyncio.ensure_future(self._server.ended(client))
        broken = asyncio.ensure_future(self._broken.wait())
        try:
            await asyncio.wait((ended, broken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            broken.cancel()
        return ended.result() if ended.done() and not ended.cancelled() else "vLLM's engine broke down"

    async def _settle(self) -> None:
        if self._client is not None:
            await wait_until_idle(self._client)
