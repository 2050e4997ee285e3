"""Which local model was approved for an alias and where it is served: folded from the log, and kept on disk."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from llamaduo.events import AdapterLoaded, AdapterPromoted, AdapterRolledBack, AnyEvent, Event
from llamaduo.migrations.aliases import Aliases

log = logging.getLogger(__name__)

READ: tuple[type[Event], ...] = (AdapterPromoted, AdapterRolledBack, AdapterLoaded)
"""The events that this is folded from."""
MOST_ADDRESSES = 8
"""A replica that comes back has a new name and mostly a new port; nobody says that the old one is gone."""


class LocalModel(BaseModel):
    """An approved adapter: the name under which it is served, and at which addresses, the newest first."""

    name: str
    addresses: list[str] = []


Known = dict[str, LocalModel]
"""By alias."""
_KNOWN: TypeAdapter[Known] = TypeAdapter(Known)


@dataclass
class LocalModels:
    """Folded from the events of the log in their order."""

    _aliases: Aliases = field(default_factory=Aliases)
    _addresses: dict[str, dict[str, str]] = field(default_factory=dict)

    def take(self, event: AnyEvent) -> None:
        """One more event of the log."""
        self._aliases.take(event)
        if isinstance(event, AdapterLoaded) and event.url:
            of_name = self._addresses.setdefault(event.name, {})
            # Taken out first, so that the newest is the last.
            of_name.pop(event.replica, None)
            of_name[event.replica] = event.url.rstrip("/")

    def known(self) -> Known:
        """What each alias means now."""
        found = {}
        for alias, serving in self._aliases.now.items():
            name = serving.promoted.name
            newest_first = list(dict.fromkeys(reversed(self._addresses.get(name, {}).values())))
            found[alias] = LocalModel(name=name, addresses=newest_first[:MOST_ADDRESSES])
        return found


def read_known(path: Path) -> Known:
    """What was known when this file was written; nothing where there is none, or none that can be read."""
    try:
        return _KNOWN.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        log.warning("what aliases meant cannot be read from %s: %s", path, type(error).__name__)
        return {}


def write_known(path: Path, known: Mapping[str, LocalModel]) -> None:
    """Keep it for a start without the bus: a whole file or the old one. OSError passes through."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({alias: model.model_dump() for alias, model in known.items()}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
