"""Adapters and base models for tests, written by hand so that no ML library is needed."""

from __future__ import annotations

import json
import math
import random
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.inference.adapter_check import CONFIG, WEIGHTS, digest_of
from services.inference.engine import AdapterFiles, served_name

Tensors = Mapping[str, tuple[tuple[int, ...], bytes]]


def write_safetensors(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> None:
    """Float32 tensors, as name -> (shape, little-endian bytes)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    body = b"".join(data for _, data in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def floats(shape: tuple[int, ...], scale: float, seed: int) -> bytes:
    """Random numbers; zeros where `scale` is 0."""
    source = random.Random(seed)
    count = math.prod(shape)
    numbers = [source.uniform(-scale, scale) for _ in range(count)] if scale else [0.0] * count
    return array("f", numbers).tobytes()


def lora_tensors(
    layers: Mapping[str, tuple[int, int]], rank: int, scale: float, seed: int
) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """LoRA halves for linear layers given as name -> (out, in); `scale` is the size of B's numbers."""
    tensors: dict[str, tuple[tuple[int, ...], bytes]] = {}
    for number, (name, (size_out, size_in)) in enumerate(layers.items()):
        for half, shape, size in (("A", (rank, size_in), 0.05), ("B", (size_out, rank), scale)):
            key = f"base_model.model.{name}.lora_{half}.weight"
            tensors[key] = (shape, floats(shape, size, hash((seed, number, half == "A"))))
    return tensors


def write_adapter(
    folder: Path,
    layers: Mapping[str, tuple[int, int]],
    *,
    rank: int = 8,
    scale: float = 0.05,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    migration: str = "test",
    round_number: int = 0,
) -> AdapterFiles:
    """A folder with a LoRA adapter and what an engine is told of it."""
    folder.mkdir(parents=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "bias": "none",
        "modules_to_save": None,
        "use_dora": False,
        "base_model_name_or_path": "base",
    }
    (folder / CONFIG).write_text(json.dumps({**settings, **(config or {})}))
    write_safetensors(folder / WEIGHTS, lora_tensors(layers, rank, scale, seed))
    return described(folder, rank, migration, round_number)


def described(folder: Path, rank: int | None, migration: str = "test", round_number: int = 0) -> AdapterFiles:
    """What an engine is told of the files as they are now."""
    digest = digest_of(folder)
    return AdapterFiles(served_name(migration, round_number, digest), folder, digest, rank)
