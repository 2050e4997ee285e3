"""Which adapters an engine knows, which of them are loaded, and which may make room for another. No I/O."""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Iterator

from llamaduo.errors import RetryableError
from services.inference.engine import AdapterFiles


class AdapterSlots:
    """At most `capacity` adapters are loaded; the one unused for longest makes room, and can be loaded again."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._known: dict[str, AdapterFiles] = {}
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._in_use: Counter[str] = Counter()
        self.pinned: frozenset[str] = frozenset()
        """Adapters that never make room: an alias depends on them."""

    def known(self, name: str) -> AdapterFiles | None:
        return self._known.get(name)

    def is_loaded(self, name: str) -> bool:
        return name in self._loaded

    def loaded(self) -> list[AdapterFiles]:
        """Least recently used first."""
        return [self._known[name] for name in self._loaded]

    def to_evict(self) -> str | None:
        """Who must be unloaded before another is loaded. RetryableError where everyone is in use or pinned."""
        if len(self._loaded) < self._capacity:
            return None
        for name in self._loaded:
            if not self._in_use[name] and name not in self.pinned:
                return name
        raise RetryableError(
            f"all {self._capacity} adapter slots are in use: raise max_adapters or roll an adapter back", delay=15
        )

    def add(self, adapter: AdapterFiles) -> None:
        """It is loaded now."""
        self._known[adapter.name] = adapter
        self._loaded[adapter.name] = None
        self._loaded.move_to_end(adapter.name)

    def evict(self, name: str) -> None:
        """It is no longer loaded, but may be again."""
        self._loaded.pop(name, None)

    def forget(self, name: str) -> None:
        """It is not to be served any more."""
        self._loaded.pop(name, None)
        self._known.pop(name, None)

    def is_in_use(self, name: str) -> bool:
        return self._in_use[name] > 0

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Inside, it does not make room for another."""
        self._in_use[name] += 1
        try:
            if name in self._loaded:
                self._loaded.move_to_end(name)
            yield
        finally:
            self._in_use[name] -= 1
            if not self._in_use[name]:
                del self._in_use[name]
