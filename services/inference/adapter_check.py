"""Checks an adapter's files before vLLM sees them.

vLLM answers most bad adapters with a server error, accepts adapters of another base model with the same shapes,
and reads pickled weights; so nothing is handed to it that did not pass here. No ML library is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamaduo.errors import AdapterRejected
from llamaduo.identity import adapter_digest
from services.inference.engine import AdapterFiles
from services.inference.safetensors_header import TensorInfo, read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Endings of files that Python unpickles, and of code.
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".py", ".so")
# The ranks vLLM can be started for.
SERVABLE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_PREFIX = "base_model.model."
_DTYPES = ("F32", "F16", "BF16")
# Parts of PEFT's config that change what the weights mean and that vLLM does not support.
_UNSUPPORTED = ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")
_HARMLESS_INITS = ("gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class BaseShapes:
    """What an adapter must fit: the (out, in) sizes of the base model's linear layers by module name."""

    linear: Mapping[str, tuple[int, int]]


def read_base_shapes(folder: Path) -> BaseShapes:
    """The linear layers in a model folder's safetensors. ValueError where a file is cut off or malformed."""
    linear: dict[str, tuple[int, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in read_header(path).tensors.items():
            module, _, kind = name.rpartition(".")
            if kind == "weight" and len(tensor.shape) == 2 and not _is_embedding(module):
                linear[module] = (tensor.shape[0], tensor.shape[1])
    return BaseShapes(linear)


def digest_of(folder: Path) -> str:
    """The digest of the adapter in a folder: over the names and contents of all its files."""
    files = {}
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                files[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return adapter_digest(files)


def check_adapter(adapter: AdapterFiles, *, max_rank: int, base_digest: str | None, base: BaseShapes | None) -> int:
    """The adapter's rank, if it can be served on this base model.

    `base_digest` and `base` are None where the base model is not at hand; what they decide is then not checked.
    Raises AdapterRejected with the reason.
    """
    name = adapter.name
    if not adapter.folder.is_dir():
        raise AdapterRejected(f"adapter {name}: there is no folder {adapter.folder}")
    for file in sorted(adapter.folder.iterdir()):
        if file.suffix in PICKLED:
            raise AdapterRejected(f"adapter {name}: {file.name} is pickled, and reading it would run what it holds")
        if file.is_symlink() or not file.is_file():
            raise AdapterRejected(f"adapter {name}: {file.name} is no plain file")
    found = digest_of(adapter.folder)
    if found != adapter.digest:
        raise AdapterRejected(f"adapter {name}: its files have the digest {found[:12]}…, not {adapter.digest[:12]}…")
    if None not in (adapter.base_digest, base_digest) and adapter.base_digest != base_digest:
        raise AdapterRejected(
            f"adapter {name}: trained on the base model {(adapter.base_digest or '')[:12]}…, "
            f"served here is {(base_digest or '')[:12]}…"
        )
    config = _read_config(adapter)
    rank = _check_config(name, config, max_rank)
    if adapter.rank is not None and adapter.rank != rank:
        raise AdapterRejected(f"adapter {name}: announced with rank {adapter.rank}, {CONFIG} says {rank}")
    try:
        tensors = read_header(adapter.folder / WEIGHTS).tensors
    except (OSError, ValueError) as error:
        raise AdapterRejected(f"adapter {name}: {error}") from error
    _check_tensors(name, tensors, rank, base)
    return rank


def _read_config(adapter: AdapterFiles) -> dict[str, Any]:
    try:
        config = json.loads((adapter.folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterRejected(f"adapter {adapter.name}: {CONFIG} is missing or not JSON") from error
    if not isinstance(config, dict):
        raise AdapterRejected(f"adapter {adapter.name}: {CONFIG} is not an object")
    return config


def _check_config(name: str, config: Mapping[str, Any], max_rank: int) -> int:
    def reject(reason: str) -> AdapterRejected:
        return AdapterRejected(f"adapter {name}: {CONFIG}: {reason}")

    if config.get("peft_type") != "LORA":
        raise reject(f"peft_type is {config.get('peft_type')!r}, only LORA can be served")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise reject(f"r is {rank!r}, not a rank")
    if rank > max_rank:
        raise reject(f"rank {rank} is more than the {max_rank} this engine was started for")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or alpha <= 0:
        raise reject(f"lora_alpha is {alpha!r}, not a positive number")
    for key in _UNSUPPORTED:
        if config.get(key):
            raise reject(f"{key} cannot be served by vLLM")
    if config.get("modules_to_save"):
        raise reject(f"modules_to_save={config['modules_to_save']!r}: whole modules cannot be served with LoRA")
    if config.get("bias", "none") != "none":
        raise reject(f"bias={config['bias']!r} cannot be served by vLLM")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise reject("layers with ranks or alphas of their own are not supported")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _HARMLESS_INITS:
        raise reject(f"init_lora_weights={init!r} changes the base model's weights")
    return rank


def _check_tensors(name: str, tensors: Mapping[str, TensorInfo], rank: int, base: BaseShapes | None) -> None:
    def reject(reason: str) -> AdapterRejected:
        return AdapterRejected(f"adapter {name}: {WEIGHTS}: {reason}")

    if not tensors:
        raise reject("it holds no tensors")
    halves: dict[str, set[str]] = {}
    for key, tensor in tensors.items():
        module, half = _split(key)
        if half is None:
            raise reject(f"unknown tensor {key}")
        if _is_embedding(module):
            raise reject(f"{module} is trained: only linear layers inside the model can be served")
        if tensor.dtype not in _DTYPES:
            raise reject(f"tensor {key} has the type {tensor.dtype}, expected one of {', '.join(_DTYPES)}")
        halves.setdefault(module, set()).add(half)
        inner = tensor.shape[0 if half == "lora_A" else -1] if len(tensor.shape) == 2 else None
        if inner != rank:
            raise reject(f"tensor {key} has the shape {list(tensor.shape)}, which is not of rank {rank}")
        if base is None:
            continue
        if module not in base.linear:
            raise reject(f"the base model has no linear layer {module}")
        size_out, size_in = base.linear[module]
        wanted = (rank, size_in) if half == "lora_A" else (size_out, rank)
        if tensor.shape != wanted:
            raise reject(f"tensor {key} has the shape {list(tensor.shape)}, this base model needs {list(wanted)}")
    for module, found in halves.items():
        if len(found) != 2:
            raise reject(f"layer {module} has {min(found)} without its other half")


def _split(key: str) -> tuple[str, str | None]:
    """The module and the half (lora_A or lora_B) that a tensor's name means; None where it means neither."""
    for half in ("lora_A", "lora_B"):
        if key.startswith(_PREFIX) and key.endswith(f".{half}.weight"):
            return key.removeprefix(_PREFIX).removesuffix(f".{half}.weight"), half
    return key, None


def _is_embedding(module: str) -> bool:
    return module.rpartition(".")[2] in ("embed_tokens", "lm_head", "wte", "wpe")
