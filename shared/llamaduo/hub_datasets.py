"""Fetches the files of a dataset of the Hugging Face Hub: `hf://owner/name[@revision][:config][/split]`.

Files are taken as they lie there and read as any other file; nothing of the dataset is run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from llamaduo.errors import UserInputError

ON_THE_HUB = "hf://"
SUFFIXES = (".parquet", ".jsonl", ".csv", ".json")
EXTRA = "pip install 'llamaduo[data]'"
_ADDRESS = re.compile(
    r"hf://(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^:/]+))?(:(?P<config>[\w.-]+))?(/(?P<split>[\w.-]+))?"
)


@dataclass(frozen=True)
class HubDataset:
    """What an address names. `config` None: whatever there is; `split` is `train` where none is named."""

    repo: str
    revision: str | None
    config: str | None
    split: str


def parse_address(address: str) -> HubDataset:
    """UserInputError where it is no address of a dataset."""
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise UserInputError(f"{address!r} is no dataset", hint="hf://owner/name[@revision][:config][/split]")
    return HubDataset(found["repo"], found["revision"], found["config"], found["split"] or "train")


def files_of(files: Sequence[str], wanted: HubDataset) -> list[str]:
    """The data files of a split, of one kind, in order; [] where none is named so.

    A file is of a split, or of a config, that its name begins with, or that a folder above it is called.
    """
    data = [name for name in files if name.endswith(SUFFIXES) and not PurePosixPath(name).name.startswith(".")]
    if wanted.config is not None:
        data = [name for name in data if _is_named(name, wanted.config)]
    mine = [name for name in data if _is_named(name, wanted.split)]
    kinds = [suffix for suffix in SUFFIXES if any(name.endswith(suffix) for name in mine)]
    return sorted(name for name in mine if name.endswith(kinds[0])) if kinds else []


def _is_named(file: str, word: str) -> bool:
    path = PurePosixPath(file)
    return word in path.parts[:-1] or re.match(re.escape(word) + r"(?![A-Za-z0-9])", path.name) is not None


def fetched(address: str) -> list[Path]:
    """The files of an address, on this machine. UserInputError where they cannot be had."""
    wanted = parse_address(address)
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError as error:
        raise UserInputError("fetching from the Hub needs a package", file=address, hint=EXTRA) from error
    try:
        files = HfApi().list_repo_files(wanted.repo, repo_type="dataset", revision=wanted.revision)
        chosen = files_of(files, wanted)
        if not chosen:
            there = ", ".join(name for name in files if name.endswith(SUFFIXES)) or "none that can be read"
            raise UserInputError(f"no file of the split {wanted.split!r}; its files: {there[:300]}", file=address)
        return [
            Path(hf_hub_download(wanted.repo, name, repo_type="dataset", revision=wanted.revision)) for name in chosen
        ]
    except UserInputError:
        raise
    except Exception as error:  # what can go wrong on the way differs with the client's HTTP library
        what = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserInputError(f"could not be fetched: {what}", file=address) from error
