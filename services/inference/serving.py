"""Which adapters the engine serves: they are fetched and loaded, what an alias means always, and announced."""

from __future__ import annotations

import asyncio
import logging
import shutil

from llamaduo.artifacts import ArtifactStore
from llamaduo.bus.connection import Bus
from llamaduo.errors import LlamaDuoError
from llamaduo.events import Adapter, AdapterLoaded
from services.inference.aliases import Aliases, Serving
from services.inference.engine import AdapterFiles, InferenceEngine
from services.inference.engines import EngineRoom, MakeEngine, fetch_adapter
from services.inference.settings import InferenceSettings

log = logging.getLogger(__name__)


class ServedAdapters:
    """The adapters of one replica. `make_engine` gives the engine of its `room`."""

    def __init__(self, settings: InferenceSettings, make_engine: MakeEngine) -> None:
        self._settings = settings
        self.room = EngineRoom(make_engine)
        self.aliases = Aliases()
        self._adapters: dict[str, Adapter] = {}
        self._store: ArtifactStore | None = None
        # In which engine an adapter was loaded: a changed engine is another one, and has lost it.
        self._loaded_in: dict[str, InferenceEngine] = {}
        self._refused: dict[str, str] = {}

    async def load(self, engine: InferenceEngine, store: ArtifactStore, adapter: Adapter, name: str) -> None:
        """Have the engine serve an adapter, and never drop what an alias means."""
        self._adapters[adapter.digest], self._store = adapter, store
        engine.pin(self.aliases.served)
        folder = self._settings.state_dir.resolve() / "adapters"
        await engine.load(await fetch_adapter(store, adapter, name, folder))
        self._loaded_in[name] = engine

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
        if (down := self.room.problem()) is not None:
            return down
        missing = [serving for serving in self.aliases.now.values() if not self._is_served(serving)]
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
