"""The engine's own copies of adapters: one folder for each served name, written once, kept until unloaded.

vLLM reads a folder again whenever it dropped that adapter from memory, and ends if the folder has gone. Its prefix
cache knows an adapter by name and path only, so neither is ever used for other content.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from llamaduo.errors import AdapterRejected, RetryableError
from services.inference.adapter_check import CONFIG, WEIGHTS, digest_of
from services.inference.engine import DIGEST_IN_NAME, AdapterFiles

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class AdapterStore:
    """Folders under `root`, for one engine alone."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._digests: dict[str, str] = {}

    def folder(self, name: str) -> Path:
        """Where the files of this served name are, whether or not they are there."""
        return self._root / name

    def check_name(self, adapter: AdapterFiles) -> None:
        """AdapterRejected where the name is no served name of this content, or was used for other content."""
        if not _NAME.fullmatch(adapter.name) or not adapter.name.endswith(f"-{adapter.digest[:DIGEST_IN_NAME]}"):
            raise AdapterRejected(
                f"adapter {adapter.name}: a served name ends with -{adapter.digest[:DIGEST_IN_NAME]}, "
                "the start of its digest"
            )
        known = self._digests.get(adapter.name, adapter.digest)
        if known != adapter.digest:
            raise AdapterRejected(f"adapter {adapter.name}: this name was used for other content ({known[:12]}…)")

    def keep(self, adapter: AdapterFiles) -> Path:
        """The store's own folder with the adapter's files, copied now unless they are there and whole.

        RetryableError where they are not there and `adapter.folder` has gone or holds something else.
        """
        self.check_name(adapter)
        self._digests[adapter.name] = adapter.digest
        target = self.folder(adapter.name)
        if self.is_whole(adapter):
            return target
        if not adapter.folder.is_dir() or digest_of(adapter.folder) != adapter.digest:
            raise RetryableError(f"adapter {adapter.name}: its files are no longer in {adapter.folder}")
        unfinished = self._root / f".{adapter.name}.{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(adapter.folder, unfinished)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.replace(target)
        return target

    def is_whole(self, adapter: AdapterFiles) -> bool:
        """Whether the store has this adapter's files, unchanged."""
        folder = self.folder(adapter.name)
        return self.is_there(adapter.name) and digest_of(folder) == adapter.digest

    def is_there(self, name: str) -> bool:
        """Whether the two files that vLLM reads are there: cheap, asked before each use."""
        folder = self.folder(name)
        return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()

    def drop(self, name: str) -> None:
        """Forgets the files; the name stays bound to its content."""
        if _NAME.fullmatch(name):
            shutil.rmtree(self.folder(name), ignore_errors=True)
