"""Which adapters the engine serves: what an alias means always, others until their migration has ended."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

from llamaduo.accelerator import Accelerator
from llamaduo.artifacts import ArtifactStore
from llamaduo.bus.connection import Bus
from llamaduo.errors import LlamaDuoError
from llamaduo.event_parts import Adapter
from llamaduo.events import (
    AdapterLoaded,
    AdapterTrained,
    AnyEvent,
    MigrationCancelled,
    MigrationCompleted,
    MigrationStopped,
)
from llamaduo.migrations.aliases import Aliases, Serving
from services.inference import metrics
from services.inference.adapter_store import AdapterStore
from services.inference.engine import AdapterFiles, InferenceEngine, served_name
from services.inference.engines import EngineRoom, MakeEngine, fetch_adapter
from services.inference.settings import InferenceSettings

log = logging.getLogger(__name__)


class ServedAdapters:
    """The adapters of one replica. `make_engine` gives the engine of its `room`."""

    def __init__(self, settings: InferenceSettings, make_engine: MakeEngine) -> None:
        self._settings = settings
        shared = settings.accelerator_dir
        accelerator = None if shared is None else Accelerator(shared, "inference", settings.replica)
        self.room = EngineRoom(make_engine, accelerator)
        self.aliases = Aliases()
        self._adapters: dict[str, Adapter] = {}
        self._store: ArtifactStore | None = None
        # In which engine an adapter was loaded: a changed engine is another one, and has lost it.
        self._loaded_in: dict[str, InferenceEngine] = {}
        self._refused: dict[str, str] = {}
        self._trained: dict[str, dict[str, Adapter]] = {}
        self._ended: set[str] = set()
        self._to_remove: dict[str, Adapter] = {}
        # An adapter's files are not removed while somebody checks and loads them.
        self._files = asyncio.Lock()

    def take(self, event: AnyEvent) -> None:
        """One more event of the log: what aliases mean, whose adapters there are, and which are of no more use."""
        self.aliases.take(event)
        if isinstance(event, AdapterTrained):
            name = served_name(event.migration, event.round, event.adapter.digest)
            if event.migration in self._ended:
                self._to_remove[name] = event.adapter
            else:
                self._trained.setdefault(event.migration, {})[name] = event.adapter
        elif isinstance(event, MigrationCompleted | MigrationStopped | MigrationCancelled):
            self._ended.add(event.migration)
            self._to_remove |= self._trained.pop(event.migration, {})

    async def load(self, engine: InferenceEngine, store: ArtifactStore, adapter: Adapter, name: str) -> None:
        """Have the engine serve an adapter, and never drop what an alias means."""
        self._adapters[adapter.digest], self._store = adapter, store
        # Somebody wants it after the end of its migration, to promote it.
        self._to_remove.pop(name, None)
        engine.pin(self.aliases.served)
        async with self._files:
            with metrics.loading():
                await engine.load(await fetch_adapter(store, adapter, name, self._fetched))
        self._loaded_in[name] = engine

    @property
    def _fetched(self) -> Path:
        return self._settings.state_dir.resolve() / "adapters"

    async def remove_ended(self) -> None:
        """Unload what migrations that have ended left and no alias means, and remove its files; it can be fetched
        again. RetryableError where the engine does not unload it now."""
        async with self.room.as_it_is() as engine, self._files:
            for name, adapter in list(self._to_remove.items()):
                if name not in self.aliases.served:
                    await self._remove(engine, name, adapter)
                self._to_remove.pop(name, None)

    async def _remove(self, engine: InferenceEngine | None, name: str, adapter: Adapter) -> None:
        if engine is not None and self._loaded_in.get(name) is engine:
            await engine.unload(name)
        elif self._settings.inference_engine != "url":
            # An engine of ours that had it has gone; one by URL may have it still, and would miss the files.
            store = AdapterStore(self._settings.state_dir.resolve() / "served")
            await asyncio.to_thread(store.drop, name)
        self._loaded_in.pop(name, None)
        kept = [serving.promoted.adapter for serving in self.aliases.now.values()]
        kept += [other for adapters in self._trained.values() for other in adapters.values()]
        if adapter.digest not in {other.digest for other in kept}:
            self._adapters.pop(adapter.digest, None)
            await asyncio.to_thread(shutil.rmtree, self._fetched / adapter.digest, ignore_errors=True)

    def announcement(
        self, migration: str, name: str, adapter: Adapter, number: int, engine: InferenceEngine
    ) -> AdapterLoaded:
        """What says that this process, at its address, serves the adapter of a round."""
        replica = self._settings.replica
        return AdapterLoaded(
            migration=migration,
            round=number,
            name=name,
            digest=adapter.digest,
            replica=replica,
            url=engine.base_url,
            source=f"inference/{replica}",
        )

    def rank_for(self, base_model: str, rank: int) -> int:
        """The rank to start an engine for: an adapter of `rank` must fit, and all that aliases mean."""
        aliases = self.aliases.of_base(base_model)
        return self._settings.max_rank or max(rank, *(serving.promoted.adapter.rank for serving in aliases), 1)

    async def load_aliases(self, bus: Bus) -> bool:
        """Load and announce what aliases mean on the base model that is held; whether all of it is served now."""
        async with self.room.as_it_is() as engine:
            if engine is None:
                return not self.aliases.now
            engine.pin(self.aliases.served)
            for serving in self.aliases.of_base(self.room.base):
                if not self._is_served(serving):
                    await self._load_alias(bus, engine, serving)
        return all(self._is_served(serving) for serving in self.aliases.of_base(self.room.base))

    async def _load_alias(self, bus: Bus, engine: InferenceEngine, serving: Serving) -> None:
        promoted = serving.promoted
        try:
            await self.load(engine, await bus.artifacts(), promoted.adapter, promoted.name)
            await bus.publish(
                self.announcement(promoted.migration, promoted.name, promoted.adapter, promoted.round, engine)
            )
        except LlamaDuoError as error:
            # One that is not to be had must not keep the others from being served.
            self._loaded_in.pop(promoted.name, None)
            self._refused[promoted.name] = str(error)
            log.warning("%s is not served yet as %s: %s", promoted.name, promoted.alias, error)
        else:
            self._refused.pop(promoted.name, None)
            log.info("serving %s again as %s at %s", promoted.name, promoted.alias, engine.base_url)

    def _is_served(self, serving: Serving) -> bool:
        return self.room.engine is not None and self._loaded_in.get(serving.promoted.name) is self.room.engine

    def problem(self) -> str | None:
        """What keeps this replica from serving all that it should."""
        down = self.room.problem()
        missing = [serving for serving in self.aliases.now.values() if not self._is_served(serving)]
        up = self.room.engine is not None and down is None
        metrics.note_state(up=up, aliases=len(self.aliases.now), unserved=len(missing))
        if down is not None:
            return down
        return "; ".join(self._why_not(serving) for serving in missing) or None

    def _why_not(self, serving: Serving) -> str:
        promoted = serving.promoted
        if self.room.base is not None and self.room.base != serving.base_model:
            return (
                f"alias {promoted.alias} is not served while the engine holds {self.room.base}: "
                f"it needs {serving.base_model}"
            )
        refused = self._refused.get(promoted.name)
        return f"alias {promoted.alias} is not loaded yet" + (f": {refused}" if refused else "")

    async def refetch(self, files: AdapterFiles) -> None:
        """Bring back an adapter's files that were lost from this machine's disk."""
        adapter = self._adapters.get(files.digest)
        if adapter is not None and self._store is not None:
            await asyncio.to_thread(shutil.rmtree, files.folder, ignore_errors=True)
            await fetch_adapter(self._store, adapter, files.name, files.folder.parent)
