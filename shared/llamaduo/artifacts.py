"""Content-addressed storage: bytes are named by their SHA-256 and checked against it whenever they are read.

Streamed both ways in chunks, so memory does not grow with size. `JetStreamArtifacts` is the default;
`ObjectStoreArtifacts` is a folder or any store `obstore` knows (s3://, gs://, az://) by URL.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BufferedWriter
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote
from uuid import uuid4

import obstore
import obstore.exceptions
import obstore.store
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import ObjectInfo, ObjectMetaOptions
from nats.js.errors import APIError, NotFoundError

from llamaduo.bus.reading import StreamReader
from llamaduo.errors import ArtifactCorrupt, RetryableError, UserInputError
from llamaduo.event_parts import ArtifactRef
from llamaduo.input_files import os_words

CHUNK = 512 * 1024
TRANSFER_TIMEOUT_S = 1800.0
CHUNK_TIMEOUT_S = 10.0
TRIES = 4
ARTIFACTS_VARIABLE = "LLAMADUO_ARTIFACTS_URL"


class ArtifactStore(Protocol):
    """Where artifacts live."""

    async def put_file(self, path: Path, media_type: str) -> ArtifactRef:
        """Store a file's bytes (idempotent)."""
        ...

    async def fetch(self, ref: ArtifactRef, path: Path) -> None:
        """Write the referenced bytes to `path`, atomically. ArtifactCorrupt if they are not what `ref` says."""
        ...


async def put_bytes(store: ArtifactStore, body: bytes, media_type: str) -> ArtifactRef:
    """Store a value that fits in memory."""
    with tempfile.TemporaryDirectory(prefix="llamaduo-") as folder:
        path = Path(folder) / "body"
        path.write_bytes(body)
        return await store.put_file(path, media_type)


async def read_bytes(store: ArtifactStore, ref: ArtifactRef, limit: int = 256 * 1024 * 1024) -> bytes:
    """Read a value that fits in memory. ArtifactCorrupt beyond `limit` bytes."""
    if ref.size > limit:
        raise ArtifactCorrupt(f"{ref.uri}: {ref.size} bytes is more than the {limit} read here")
    with tempfile.TemporaryDirectory(prefix="llamaduo-") as folder:
        path = Path(folder) / "body"
        await store.fetch(ref, path)
        return path.read_bytes()


def digest_of_file(path: Path) -> tuple[str, int]:
    """SHA-256 hex and size in bytes of a file, read in chunks."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


@contextmanager
def _checked_write(ref: ArtifactRef, path: Path) -> Iterator[BufferedWriter]:
    """A temp file beside `path` that becomes it only if its digest and size are those of `ref`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".fetch-")
    temp = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        sha256, size = digest_of_file(temp)
        if (sha256, size) != (ref.sha256, ref.size):
            raise ArtifactCorrupt(
                f"{ref.uri}: expected sha256 {ref.sha256} and {ref.size} bytes, found {sha256} and {size}"
            )
        temp.replace(path)
    finally:
        temp.unlink(missing_ok=True)


class Stored(Protocol):
    """Does a write to the bus until it is taken, and raises what `Room.stored` does."""

    def __call__(self, where: str, what: str, write: Callable[[], Awaitable[None]], /) -> Awaitable[None]: ...


class JetStreamArtifacts:
    """Artifacts in a JetStream object store bucket, named by digest."""

    def __init__(self, client: Client, bucket: str, reader: StreamReader, stored: Stored) -> None:
        """`stored` does a write until the bus has it."""
        self._bucket, self._stream = bucket, f"OBJ_{bucket}"
        self._js = client.jetstream(timeout=CHUNK_TIMEOUT_S)
        self._reader, self._stored = reader, stored

    async def put_file(self, path: Path, media_type: str) -> ArtifactRef:
        sha256, size = await asyncio.to_thread(digest_of_file, path)
        ref = ArtifactRef(uri=f"obj:{sha256}", sha256=sha256, size=size, media_type=media_type)

        async def put() -> None:
            if not await self._has(sha256, size):
                async with asyncio.timeout(TRANSFER_TIMEOUT_S):
                    await self._put(sha256, path)

        await self._stored(self._bucket, ref.uri, put)
        return ref

    async def _put(self, name: str, path: Path) -> None:
        """Chunks, then the object's description.

        Not `ObjectStore.put`: it purges and rolls up, which would need rights to delete what others have stored.
        """
        info = ObjectInfo(name=name, bucket=self._bucket, nuid=uuid4().hex, size=0, chunks=0)
        with path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                await self._js.publish(f"$O.{self._bucket}.C.{info.nuid}", chunk)
                info.size, info.chunks = (info.size or 0) + len(chunk), (info.chunks or 0) + 1
        info.digest = "SHA-256=" + base64.urlsafe_b64encode(bytes.fromhex(name)).decode()
        info.options = ObjectMetaOptions(max_chunk_size=CHUNK)
        info.mtime = datetime.now(UTC).isoformat()
        await self._js.publish(self._described(name), json.dumps(info.as_dict()).encode())

    def _described(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    async def _info(self, name: str) -> ObjectInfo:
        """The object's description. NotFoundError where there is none."""
        message = await self._js.get_msg(self._stream, subject=self._described(name), direct=True)
        info: ObjectInfo = ObjectInfo.from_response(json.loads(message.data or b""))
        return info

    async def _has(self, name: str, size: int) -> bool:
        try:
            return bool((await self._info(name)).size == size)
        except NotFoundError:
            return False

    async def fetch(self, ref: ArtifactRef, path: Path) -> None:
        if not ref.uri.startswith("obj:"):
            raise ArtifactCorrupt(f"{ref.uri} is not in the JetStream store")
        for attempt in range(TRIES):
            try:
                with _checked_write(ref, path) as file:
                    await self._read_chunks(ref.uri.removeprefix("obj:"), file)
                return
            except NotFoundError as error:
                raise ArtifactCorrupt(f"{ref.uri}: no such artifact") from error
            except (TimeoutError, NatsError, APIError) as error:
                if attempt == TRIES - 1:
                    raise RetryableError(f"reading {ref.uri} failed: {type(error).__name__}") from error
                await asyncio.sleep(0.3 * 2**attempt)

    async def _read_chunks(self, name: str, file: BufferedWriter) -> None:
        """Read the object's chunks a few at a time.

        Not `ObjectStore.get`: its ordered push consumer waits for ever once a chunk is missed (nats.py #510).
        """
        info = await self._info(name)
        written, following = 0, 1
        while written < (info.size or 0):
            chunks, _ = await self._reader.batch(following, f"$O.{self._bucket}.C.{info.nuid}", most=8)
            if not chunks:
                raise ArtifactCorrupt(f"obj:{name}: only {written} of its {info.size} bytes are in the store")
            for chunk in chunks:
                file.write(chunk.body)
                written += len(chunk.body)
            following = chunks[-1].seq + 1


class ObjectStoreArtifacts:
    """Artifacts in a folder (`file:///…`) or an object store (`s3://bucket/prefix`, …)."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        try:
            if url.startswith("file://"):
                Path(unquote(url.removeprefix("file://"))).mkdir(parents=True, exist_ok=True)
            self.store = obstore.store.from_url(self._url)
        except OSError as error:
            raise UserInputError(f"{self._url}: {os_words(error)}", field=ARTIFACTS_VARIABLE) from error
        except (obstore.exceptions.BaseError, ValueError) as error:
            why = str(error).partition("\n")[0]  # the rest is the library's own inside
            raise UserInputError(why, field=ARTIFACTS_VARIABLE, hint="e.g. file:///folder or s3://bucket") from error

    def named(self, sha256: str, size: int, media_type: str) -> ArtifactRef:
        """The reference that bytes of this digest have here, whether they are there or not."""
        return ArtifactRef(uri=f"{self._url}/{_name(sha256)}", sha256=sha256, size=size, media_type=media_type)

    async def holds(self, sha256: str, size: int) -> bool:
        """Whether an artifact of that name and size is there. RetryableError where the store cannot be reached."""
        try:
            return bool((await obstore.head_async(self.store, _name(sha256)))["size"] == size)
        except FileNotFoundError:
            return False
        except obstore.exceptions.BaseError as error:
            raise _unreachable(self._url, error) from error

    async def put_file(self, path: Path, media_type: str) -> ArtifactRef:
        sha256, size = await asyncio.to_thread(digest_of_file, path)
        if not await self.holds(sha256, size):
            try:
                await obstore.put_async(
                    self.store, _name(sha256), path, chunk_size=8 * 1024 * 1024, max_concurrency=2
                )
            except obstore.exceptions.BaseError as error:
                raise _unreachable(self._url, error) from error
        return self.named(sha256, size, media_type)

    async def fetch(self, ref: ArtifactRef, path: Path) -> None:
        if not ref.uri.startswith(self._url + "/"):
            raise ArtifactCorrupt(f"{ref.uri} is not in {self._url}")
        try:
            result = await obstore.get_async(self.store, ref.uri.removeprefix(self._url + "/"))
            with _checked_write(ref, path) as file:
                async for chunk in _chunks(result):
                    file.write(chunk)
        except FileNotFoundError as error:
            raise ArtifactCorrupt(f"{ref.uri}: no such artifact") from error


def _name(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"


def _unreachable(url: str, error: Exception) -> RetryableError:
    return RetryableError(f"the artifact store {url} does not take it: {str(error).partition(chr(10))[0]}")


async def _chunks(result: obstore.GetResult) -> AsyncIterator[bytes]:
    async for chunk in result.stream(min_chunk_size=CHUNK):
        yield bytes(chunk)
