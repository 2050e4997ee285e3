"""Compare-and-set keys: the one primitive behind leases, commit records, the ledger and the budget's door."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from nats.errors import Error as NatsError
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError, NoKeysError
from nats.js.kv import KeyValue as NatsBucket

from llamaduo.bus.room import Room
from llamaduo.errors import BusFull


@dataclass(frozen=True)
class Entry:
    """A stored value and the revision that a later compare-and-set must name."""

    value: bytes
    revision: int


class KeyConflict(Exception):
    """Somebody else wrote the key first."""


class KeyValue(Protocol):
    """A bucket of small values (under 1 MiB) with compare-and-set."""

    async def get(self, key: str) -> Entry | None:
        """The value now, or None."""
        ...

    async def create(self, key: str, value: bytes) -> int:
        """Write a key that does not exist; its revision. KeyConflict if it does, BusFull if there is no room."""
        ...

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Overwrite the value of `revision`; the new revision. KeyConflict if it has moved on, BusFull as above."""
        ...

    async def keys(self, prefix: str) -> list[str]:
        """All keys that start with `prefix` (which ends at a dot or is empty)."""
        ...


class NatsKeyValue:
    """A JetStream key-value bucket."""

    def __init__(self, bucket: NatsBucket, name: str, room: Room) -> None:
        self._bucket, self._name, self._room = bucket, name, room

    async def get(self, key: str) -> Entry | None:
        try:
            entry = await self._bucket.get(key)
        except KeyNotFoundError:
            return None
        if entry.value is None or entry.revision is None:
            return None
        return Entry(entry.value, entry.revision)

    async def create(self, key: str, value: bytes) -> int:
        async with self._told(key):
            return await self._bucket.create(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        async with self._told(key):
            return await self._bucket.update(key, value, last=revision)

    @contextlib.asynccontextmanager
    async def _told(self, key: str) -> AsyncIterator[None]:
        """Turns the client's errors of a write into ours, where they mean something to us."""
        try:
            yield
        except KeyWrongLastSequenceError as error:
            raise KeyConflict(key) from error
        except (NatsError, TimeoutError) as error:
            if (full := await self._room.why_not(self._name, error)) is not None:
                raise BusFull(full) from error
            raise
        self._room.took(self._name)

    async def keys(self, prefix: str) -> list[str]:
        try:
            found = await self._bucket.keys()
        except NoKeysError:
            return []
        return [key for key in found if key.startswith(prefix)]


class MemoryKeyValue:
    """The same in memory, for tests of logic."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._revision = 0

    async def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    async def create(self, key: str, value: bytes) -> int:
        if key in self._entries:
            raise KeyConflict(key)
        return self._write(key, value)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        entry = self._entries.get(key)
        if entry is None or entry.revision != revision:
            raise KeyConflict(key)
        return self._write(key, value)

    async def keys(self, prefix: str) -> list[str]:
        return [key for key in self._entries if key.startswith(prefix)]

    def _write(self, key: str, value: bytes) -> int:
        self._revision += 1
        self._entries[key] = Entry(value, self._revision)
        return self._revision
