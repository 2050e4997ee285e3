"""An adapter's files are checked before vLLM sees them: each way to be wrong is named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamaduo.errors import AdapterRejected
from services.inference.adapter_check import CONFIG, WEIGHTS, BaseShapes, check_adapter, read_base_shapes
from services.inference.engine import AdapterFiles
from services.inference.safetensors_header import read_header
from tests.adapter_files import described, floats, lora_tensors, write_adapter, write_safetensors

LAYERS = {"model.layers.0.self_attn.q_proj": (6, 4), "model.layers.0.mlp.down_proj": (4, 10)}
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def base(tmp_path: Path) -> BaseShapes:
    folder = tmp_path / "base"
    folder.mkdir()
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in LAYERS.items()}
    shapes |= {"model.embed_tokens.weight": (20, 4), "lm_head.weight": (20, 4), "model.norm.weight": (4,)}
    write_safetensors(
        folder / "model.safetensors", {key: (shape, floats(shape, 1, 0)) for key, shape in shapes.items()}
    )
    return read_base_shapes(folder)


def check(adapter: AdapterFiles, base: BaseShapes | None, **changed: Any) -> int:
    return check_adapter(adapter, **{"max_rank": 8, "base_digest": "b" * 64, "base": base, **changed})


def test_the_linear_layers_of_a_base_model_are_read_without_its_embeddings(base: BaseShapes) -> None:
    assert base.linear == LAYERS


def test_a_sound_adapter_gives_its_rank(tmp_path: Path, base: BaseShapes) -> None:
    assert check(write_adapter(tmp_path / "a", LAYERS, rank=4), base) == 4


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"r": 16}, "rank 16 is more than the 8"),
        ({"r": 0}, "not a rank"),
        ({"r": True}, "not a rank"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"bias": "all"}, "bias='all'"),
        ({"rank_pattern": {"q_proj": 2}}, "ranks or alphas of their own"),
        ({"init_lora_weights": "pissa"}, "changes the base model's weights"),
        ({"r": 2}, "not of rank 2"),
    ],
)
def test_a_config_that_cannot_be_served_is_rejected_with_its_reason(
    tmp_path: Path, base: BaseShapes, config: dict[str, Any], reason: str
) -> None:
    adapter = write_adapter(tmp_path / "a", LAYERS, rank=4, config=config)
    with pytest.raises(AdapterRejected, match=reason):
        check(adapter if "r" not in config else dataclasses.replace(adapter, rank=None), base)


def cut_off(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])


def overlong(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def no_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


def config_no_json(folder: Path) -> None:
    (folder / CONFIG).write_text("{")


def one_half_only(folder: Path) -> None:
    tensors = lora_tensors(LAYERS, 4, 0.1, 0)
    del tensors[KEY]
    write_safetensors(folder / WEIGHTS, tensors)


def other_layer(folder: Path) -> None:
    write_safetensors(folder / WEIGHTS, lora_tensors({"model.layers.9.mlp.up_proj": (4, 4)}, 4, 0.1, 0))


def other_sizes(folder: Path) -> None:
    write_safetensors(folder / WEIGHTS, lora_tensors({"model.layers.0.mlp.down_proj": (4, 12)}, 4, 0.1, 0))


def embeddings(folder: Path) -> None:
    write_safetensors(folder / WEIGHTS, lora_tensors({"model.embed_tokens": (20, 4)}, 4, 0.1, 0))


def unknown_tensor(folder: Path) -> None:
    tensors = lora_tensors(LAYERS, 4, 0.1, 0) | {"base_model.model.score.weight": ((2,), floats((2,), 1, 0))}
    write_safetensors(folder / WEIGHTS, tensors)


def whole_numbers(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1))


def nothing_in_it(folder: Path) -> None:
    write_safetensors(folder / WEIGHTS, {})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut_off, "cut off"),
        (overlong, "overlong"),
        (no_weights, "adapter_model.safetensors"),
        (pickled, "is pickled"),
        (no_config, "missing or not JSON"),
        (config_no_json, "missing or not JSON"),
        (one_half_only, "without its other half"),
        (other_layer, "no linear layer model.layers.9.mlp.up_proj"),
        (other_sizes, r"this base model needs \[4, 10\]"),
        (embeddings, "embed_tokens"),
        (unknown_tensor, "unknown tensor"),
        (whole_numbers, "type I32"),
        (nothing_in_it, "no tensors"),
    ],
)
def test_spoilt_files_are_rejected_with_the_reason(
    tmp_path: Path, base: BaseShapes, spoil: Callable[[Path], None], reason: str
) -> None:
    adapter = write_adapter(tmp_path / "a", LAYERS, rank=4)
    spoil(adapter.folder)
    with pytest.raises(AdapterRejected, match=reason):
        check(described(adapter.folder, 4), base)


def test_files_that_changed_after_training_are_rejected(tmp_path: Path, base: BaseShapes) -> None:
    adapter = write_adapter(tmp_path / "a", LAYERS, rank=4)
    (adapter.folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 64}))
    with pytest.raises(AdapterRejected, match="digest"):
        check(adapter, base)


def test_an_adapter_of_another_base_model_is_rejected_though_its_shapes_fit(tmp_path: Path, base: BaseShapes) -> None:
    adapter = dataclasses.replace(write_adapter(tmp_path / "a", LAYERS, rank=4), base_digest="c" * 64)
    with pytest.raises(AdapterRejected, match="trained on the base model cccc"):
        check(adapter, base)
    assert check(dataclasses.replace(adapter, base_digest="b" * 64), base) == 4


def test_a_rank_other_than_announced_is_rejected(tmp_path: Path, base: BaseShapes) -> None:
    adapter = dataclasses.replace(write_adapter(tmp_path / "a", LAYERS, rank=4), rank=8)
    with pytest.raises(AdapterRejected, match="announced with rank 8"):
        check(adapter, base)


def test_a_missing_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected, match="no folder"):
        check(AdapterFiles("n", tmp_path / "gone", "0" * 64), None)


@pytest.mark.parametrize("body", [b"", b"\x02\0\0\0", b"\x08\0\0\0\0\0\0\0notajson", b"\xff" * 16])
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(body)
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        read_header(path)


def test_gaps_between_tensors_are_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    entry = {"dtype": "U8", "shape": [2], "data_offsets": [4, 6]}
    text = json.dumps({"a": entry}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"123456")
    with pytest.raises(ValueError, match="gaps"):
        read_header(path)


def test_an_unknown_number_type_is_malformed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    text = json.dumps({"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"1")
    with pytest.raises(ValueError, match="malformed"):
        read_header(path)
