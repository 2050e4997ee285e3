"""Changing one key by compare-and-set, through conflicts and through a broker that is restarting."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nats.errors import Error as NatsError

from llamaduo.bus.kv import Entry, KeyConflict, KeyValue
from llamaduo.errors import BusFull, NotYet
from llamaduo.service_llm.clock import Clock

T = TypeVar("T")

PATIENCE_S = 60.0
"""How long a broker may be away: an answer that was paid for is worth waiting to write down."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _LONGEST_PAUSE_WHEN_FULL_S = 0.02, 2.0, 30.0
_AWAY = (NatsError, OSError, TimeoutError)


async def change(
    kv: KeyValue,
    key: str,
    step: Callable[[bytes | None], tuple[bytes | None, T]],
    clock: Clock,
    patience_s: float = PATIENCE_S,
    in_doubt: Callable[[], None] | None = None,
    seen: dict[str, Entry | None] | None = None,
) -> T:
    """Replace the value of `key` by what `step` makes of it; a new value of None leaves it as it is.

    `step` runs again after a conflict, and after a write whose acknowledgement was lost, so it must see by itself
    that its change is already there, or be told: `in_doubt` is called before it runs again after such a write. What
    it raises ends the change. NotYet after `patience_s` seconds of a broker that is away; one that is full is waited
    for.

    `seen` saves a read: what is in it for `key` is tried first, and what is written is put there.
    """
    deadline, pause = clock.now() + patience_s, _FIRST_PAUSE_S
    while True:
        writing = False
        try:
            entry = seen.pop(key) if seen is not None and key in seen else await kv.get(key)
            value, result = step(entry.value if entry else None)
            if value is None:
                return result
            writing = True
            if entry is None:
                revision = await kv.create(key, value)
            else:
                revision = await kv.update(key, value, entry.revision)
            if seen is not None:
                seen[key] = Entry(value, revision)
            return result
        except BusFull:  # for as long as it takes
            if in_doubt is not None and writing:
                in_doubt()
            await clock.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_WHEN_FULL_S)
        except (KeyConflict, *_AWAY) as error:
            if in_doubt is not None and writing and not isinstance(error, KeyConflict):
                in_doubt()
            if clock.now() >= deadline:
                raise NotYet(f"the key-value store did not take a change of {key} in time: {error!r}") from error
            await clock.sleep(pause)
            pause = _FIRST_PAUSE_S if isinstance(error, KeyConflict) else min(2 * pause, _LONGEST_PAUSE_S)


async def read(kv: KeyValue, key: str, clock: Clock, patience_s: float = PATIENCE_S) -> Entry | None:
    """What is stored under `key`. NotYet if the store stays away for `patience_s` seconds."""
    deadline, pause = clock.now() + patience_s, _FIRST_PAUSE_S
    while True:
        try:
            return await kv.get(key)
        except _AWAY as error:
            if clock.now() >= deadline:
                raise NotYet(f"the key-value store did not answer in time: {error!r}") from error
            await clock.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
