"""Where a backup lies: a folder or an object store, files named by their digest, and a manifest that is put last.

A backup without a manifest is none, and the manifest names every file with its digest: what was interrupted or has
been damaged is found out before anything is restored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

import obstore
import obstore.exceptions
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llamaduo.artifacts import ObjectStoreArtifacts
from llamaduo.errors import ArtifactCorrupt, UserInputError
from llamaduo.event_parts import ArtifactRef, Sha256
from llamaduo.identity import content_digest

MANIFEST = "manifest.json"
LINES = "application/x-ndjson"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(_Part):
    """A file of the backup."""

    sha256: Sha256
    size: int = Field(ge=0, description="bytes")
    lines: int = Field(ge=0)


class Position(_Part):
    """How far a durable had settled everything: the log's sequence number, 0 at its beginning."""

    durable: str
    settled: int = Field(ge=0)


class Manifest(_Part):
    """What a backup consists of."""

    format: Literal[1] = 1
    made_at: datetime
    version: str = Field(description="of LlamaDuo")
    artifacts_url: str | None = Field(description="where the artifacts were; None: in JetStream")
    max_bytes: int = Field(description="the log's limit; -1: none")
    streams: dict[str, StoredFile] = Field(description="by stream: the messages, a line each")
    durables: list[Position]
    artifacts: StoredFile = Field(description="a line for each artifact that is in the backup")
    artifact_bytes: int
    missing: list[str] = Field(description="artifacts that are referred to and could not be read")


class Place:
    """A folder, or an object store by URL (`file:///…`, `s3://bucket/prefix`, …)."""

    def __init__(self, where: str, *, make: bool = False) -> None:
        """UserInputError where it can be none, or is a folder that does not exist and is not to be made."""
        self.where = where if "://" in where else str(Path(where).absolute())
        url = where if "://" in where else Path(where).absolute().as_uri()
        if not make and "://" not in where and not Path(where).is_dir():
            raise UserInputError("no such folder", file=where)
        try:
            self._files = ObjectStoreArtifacts(url)
        except UserInputError as error:
            raise UserInputError(error.message, hint="a folder, or e.g. s3://bucket/prefix") from error

    async def put(self, path: Path, lines: int) -> StoredFile:
        """Copy a file in; nothing is copied where it is there already."""
        ref = await self._files.put_file(path, LINES)
        return StoredFile(sha256=ref.sha256, size=ref.size, lines=lines)

    async def fetch(self, file: StoredFile | ArtifactRef, path: Path) -> None:
        """Copy a file out. UserInputError where it is missing or damaged."""
        ref = self._files.named(file.sha256, file.size, LINES)
        try:
            await self._files.fetch(ref, path)
        except ArtifactCorrupt as error:
            raise UserInputError(
                f"the backup is damaged: {error}", file=self.where, hint="nothing can be restored from it"
            ) from error

    async def holds(self, sha256: str, size: int) -> bool:
        """Whether a file of that name and size is there."""
        return await self._files.holds(sha256, size)

    async def put_manifest(self, manifest: Manifest) -> None:
        """The last step of a backup; it takes the place of an earlier one at once."""
        body = manifest.model_dump(mode="json")
        text = json.dumps({"digest": content_digest(body), "backup": body}, indent=1)
        with _reached(self.where):
            await obstore.put_async(self._files.store, MANIFEST, text.encode())

    async def manifest(self) -> Manifest:
        """What is here. UserInputError where there is no whole backup, or one of another format."""
        with _reached(self.where):
            try:
                raw = bytes(await (await obstore.get_async(self._files.store, MANIFEST)).bytes_async())
            except FileNotFoundError as error:
                raise UserInputError(
                    f"no {MANIFEST}: there is no backup here, or one that was never finished", file=self.where
                ) from error
        try:
            parsed = json.loads(raw)
            body, digest = parsed["backup"], parsed["digest"]
            if body.get("format") != 1:
                raise UserInputError(
                    f"{MANIFEST} is of format {body.get('format')}, and only 1 is known", file=self.where
                )
            if content_digest(body) != digest:
                raise UserInputError(f"{MANIFEST} is damaged: its digest is another", file=self.where)
            return Manifest.model_validate(body)
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise UserInputError(f"{MANIFEST} is damaged: it cannot be read", file=self.where) from error


@contextmanager
def _reached(where: str) -> Iterator[None]:
    try:
        yield
    except (obstore.exceptions.BaseError, OSError) as error:
        raise UserInputError(f"cannot be used: {str(error).partition(chr(10))[0]}", file=where) from error
