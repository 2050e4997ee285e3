"""Reads the header of a safetensors file, which lists its tensors, without any ML library.

The file is 8 bytes (header length, little endian), a JSON header, then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTES_OF = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's number type (safetensors' name for it) and shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """The tensors of a file by name, and the text its writer added."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """The header of a complete file. ValueError, naming the file, where it is cut off or malformed."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise ValueError(f"{path.name} is cut off or no safetensors file ({size} bytes)")
        try:
            entries = json.loads(file.read(length).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path.name}: the header is not JSON") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path.name}: the header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path.name}: __metadata__ is not a map of texts")
    spans: list[tuple[int, int]] = []
    tensors = {name: _tensor(path, name, entry, spans) for name, entry in entries.items()}
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise ValueError(f"{path.name}: the tensors overlap or leave gaps at byte {end}")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"{path.name}: {8 + length + end} bytes announced, {size} there: cut off or overlong")
    return Header(tensors, metadata)


def _tensor(path: Path, name: str, entry: Any, spans: list[tuple[int, int]]) -> TensorInfo:
    try:
        dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        sound = all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end))
        sound = sound and end - begin == math.prod(shape) * BYTES_OF[dtype]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: the entry of tensor {name} is malformed") from error
    if not sound:
        raise ValueError(f"{path.name}: the shape and the bytes of tensor {name} do not fit")
    spans.append((begin, end))
    return TensorInfo(dtype, shape)
