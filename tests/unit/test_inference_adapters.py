"""The engine's own copies of adapters, and which of them are loaded."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from llamaduo.errors import AdapterRejected, RetryableError, UserInputError
from services.inference.adapter_check import WEIGHTS, digest_of
from services.inference.adapter_slots import AdapterSlots
from services.inference.adapter_store import AdapterStore
from services.inference.engine import AdapterFiles, GenerationRequest, served_name
from tests.adapter_files import write_adapter

LAYERS = {"model.q": (2, 2)}


def test_a_kept_adapter_outlives_the_folder_it_came_from(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    adapter = write_adapter(tmp_path / "a", LAYERS, rank=1)
    kept = store.keep(adapter)
    shutil.rmtree(adapter.folder)
    assert digest_of(store.keep(adapter)) == adapter.digest
    assert kept == store.folder(adapter.name)


def test_a_spoilt_copy_is_made_again_and_a_lost_one_reported(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    adapter = write_adapter(tmp_path / "a", LAYERS, rank=1)
    (store.keep(adapter) / WEIGHTS).write_bytes(b"spoilt")
    assert not store.is_whole(adapter)
    store.keep(adapter)
    assert store.is_whole(adapter)
    shutil.rmtree(adapter.folder)
    shutil.rmtree(store.folder(adapter.name))
    with pytest.raises(RetryableError, match="no longer"):
        store.keep(adapter)


def test_a_name_is_never_used_for_other_content(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    one = write_adapter(tmp_path / "a", LAYERS, rank=1, seed=1)
    other = write_adapter(tmp_path / "b", LAYERS, rank=1, seed=2)
    store.keep(one)
    with pytest.raises(AdapterRejected, match="ends with"):
        store.keep(dataclasses.replace(other, name=one.name))
    # Same start of the digest, other content: the name fits, its content does not.
    forged = dataclasses.replace(one, digest=one.digest[:12] + "0" * 52)
    store.drop(one.name)
    with pytest.raises(AdapterRejected, match="other content"):
        store.keep(forged)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a" * 300])
def test_a_name_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    adapter = write_adapter(tmp_path / "a", LAYERS, rank=1)
    bad = dataclasses.replace(adapter, name=f"{name}-{adapter.digest[:12]}" if name else "")
    with pytest.raises(AdapterRejected):
        AdapterStore(tmp_path / "store").check_name(bad)


def files(number: int) -> AdapterFiles:
    digest = f"{number:064x}"[::-1]
    return AdapterFiles(served_name("m", number, digest), Path("/nowhere"), digest)


def test_the_adapter_unused_for_longest_makes_room() -> None:
    slots = AdapterSlots(2)
    one, two = files(1), files(2)
    slots.add(one)
    assert slots.to_evict() is None
    slots.add(two)
    with slots.use(one.name):
        pass
    assert slots.to_evict() == two.name


def test_adapters_in_use_or_pinned_never_make_room() -> None:
    slots = AdapterSlots(2)
    one, two = files(1), files(2)
    slots.add(one)
    slots.add(two)
    slots.pinned = frozenset({one.name})
    with slots.use(two.name), pytest.raises(RetryableError, match="slots are in use"):
        slots.to_evict()
    assert slots.to_evict() == two.name


def test_an_evicted_adapter_is_known_and_a_forgotten_one_is_not() -> None:
    slots = AdapterSlots(1)
    one = files(1)
    slots.add(one)
    slots.evict(one.name)
    assert (slots.known(one.name), slots.is_loaded(one.name)) == (one, False)
    slots.forget(one.name)
    assert slots.known(one.name) is None


def test_prompt_logprobs_cannot_be_asked_for() -> None:
    with pytest.raises(UserInputError, match="prompt_logprobs"):
        GenerationRequest("r", [], None, 1, 8, 0.0, [1], options={"prompt_logprobs": 1})


def test_each_sample_needs_a_seed() -> None:
    with pytest.raises(UserInputError, match="3 answers need as many seeds, not 1"):
        GenerationRequest("r", [], None, 3, 8, 0.0, [1])
