"""An adapter that others made, or that was exported: from a folder or the Hugging Face Hub, as one to serve."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from llamaduo.artifacts import digest_of_file
from llamaduo.errors import UserInputError
from llamaduo.hub_datasets import EXTRA, ON_THE_HUB
from llamaduo.identity import adapter_digest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_CONFIG = 1_000_000
_ADDRESS = re.compile(r"hf://(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class TakenAdapter:
    """An adapter's two files in a folder of their own. `name` holds the start of their digest, so it is used for no
    other content; `base_model` is what its maker says it belongs to.
    """

    name: str
    folder: Path
    digest: str
    base_model: str


def take_adapter(source: str, into: Path) -> TakenAdapter:
    """The adapter in a folder, or at `hf://owner/name[@revision]`, copied below `into` under its name.

    UserInputError where there is none, or only pickled weights.
    """
    folder = _fetched(source) if source.startswith(ON_THE_HUB) else Path(source)
    for needed in (CONFIG, WEIGHTS):
        if not (folder / needed).is_file():
            pickled = needed == WEIGHTS and (folder / "adapter_model.bin").is_file()
            hint = (
                "only pickled weights are here, and those are not read" if pickled else "`llamaduo export` writes one"
            )
            raise UserInputError(f"no {needed}, so this is no adapter", file=source, hint=hint)
        if not source.startswith(ON_THE_HUB) and (folder / needed).resolve().parent != folder.resolve():
            raise UserInputError(f"{needed} is a link to elsewhere", file=source, hint="copy the file itself")
    if (folder / CONFIG).stat().st_size > LARGEST_CONFIG:
        raise UserInputError("is too large for an adapter's config", file=f"{source}/{CONFIG}")
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        base_model = str(config["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserInputError("does not name its base model", file=f"{source}/{CONFIG}") from error
    digest = adapter_digest({name: digest_of_file(folder / name)[0] for name in (CONFIG, WEIGHTS)})
    name = f"taken-{digest[:12]}"
    target = into / name
    target.mkdir(parents=True, exist_ok=True)
    for file in (CONFIG, WEIGHTS):
        shutil.copyfile(folder / file, target / file)
    return TakenAdapter(name, target, digest, base_model)


def belongs_to(adapter: TakenAdapter, base_model: str) -> bool:
    """Whether its maker names this base model, as a Hub id or by the folder's or file's name."""
    ours, theirs = (name.partition("@")[0] for name in (base_model, adapter.base_model))
    return ours == theirs or Path(ours).name.removesuffix(".gguf") == Path(theirs).name


def _fetched(address: str) -> Path:
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise UserInputError(f"{address!r} is no adapter", hint="hf://owner/name[@revision], or a folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserInputError("fetching from the Hub needs a package", file=address, hint=EXTRA) from error
    try:
        # Nothing else: no pickled weights and no Python of strangers ever reach the disk.
        return Path(snapshot_download(found["repo"], revision=found["revision"], allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # what can go wrong on the way differs with the client's HTTP library
        what = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserInputError(f"could not be fetched: {what}", file=address) from error
