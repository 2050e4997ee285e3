"""Work folders of training jobs: a job that was cut off goes on in its folder, unless its migration has ended."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from llamaduo.events import (
    AnyEvent,
    DatasetReady,
    MigrationCancelled,
    MigrationCompleted,
    MigrationStopped,
    TrainingRequested,
)


class WorkFolders:
    """Folders under `root`, one a job, named by its id."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._migration_of: dict[str, str] = {}
        self._ended: set[str] = set()
        self._in_use: set[str] = set()

    def take(self, event: AnyEvent) -> None:
        """One more event of the log: whose job it is, or that a migration has ended."""
        if isinstance(event, DatasetReady | TrainingRequested):
            self._migration_of[event.id] = event.migration
        elif isinstance(event, MigrationCompleted | MigrationStopped | MigrationCancelled):
            self._ended.add(event.migration)

    @contextlib.contextmanager
    def use(self, job: str) -> Iterator[Path]:
        """The job's folder; inside, it is not removed."""
        self._in_use.add(job)
        try:
            yield self._root / job
        finally:
            self._in_use.discard(job)

    async def remove_ended(self) -> None:
        """Remove the folders that no job will go on in."""
        for folder in list(self._root.iterdir()) if self._root.is_dir() else []:
            if self._migration_of.get(folder.name) in self._ended and folder.name not in self._in_use:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
