"""Base models from folders, `.gguf` files and Hub ids, with a stub in the converter's place."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from llamaduo.base_models import check_folder, file_digest, folder_digest, resolve
from llamaduo.errors import RetryableError, UserInputError
from tests.support import environment, until


def _model(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


async def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = _model(tmp_path / "smol")
    found = await resolve(str(folder), tmp_path / "cache")
    assert (found.name, found.folder) == ("smol", folder)
    assert len(found.digest) == 64


def test_the_digest_covers_what_an_adapter_depends_on_and_nothing_else(tmp_path: Path) -> None:
    folder, cache = _model(tmp_path / "a"), tmp_path / "cache"
    first = folder_digest(folder, cache)
    assert folder_digest(_model(tmp_path / "elsewhere"), cache) == first
    (folder / "README.md").write_text("words")
    assert folder_digest(folder, cache) == first
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        before = folder_digest(folder, cache)
        (folder / name).write_text("something else, and longer")
        assert folder_digest(folder, cache) != before, name
    assert not [p for p in folder.iterdir() if "digest" in p.name]


def test_a_template_inside_the_tokenizers_config_counts_too(tmp_path: Path) -> None:
    folder, cache = _model(tmp_path / "a"), tmp_path / "cache"
    (folder / "chat_template.jinja").unlink()
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one", "model_max_length": 5}))
    first = folder_digest(folder, cache)
    config.write_text(json.dumps({"chat_template": "one", "model_max_length": 77}))
    assert folder_digest(folder, cache) == first
    config.write_text(json.dumps({"chat_template": "two"}))
    assert folder_digest(folder, cache) != first


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file, cache = tmp_path / "big", tmp_path / "cache"
    file.write_bytes(b"one")
    stamp = file.stat().st_mtime_ns
    first = file_digest(file, cache)
    file.write_bytes(b"two")
    os.utime(file, ns=(stamp, stamp))
    assert file_digest(file, cache) == first, "same size and time: not read again"
    os.utime(file, ns=(stamp, stamp + 1))
    assert file_digest(file, cache) != first


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, missing: str, words: str) -> None:
    folder = _model(tmp_path / "a")
    (folder / missing).unlink()
    with pytest.raises(UserInputError, match=words) as caught:
        check_folder(folder)
    assert str(folder) in str(caught.value)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = _model(tmp_path / "a")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserInputError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        check_folder(folder)


def test_a_missing_part_of_the_weights_is_named(tmp_path: Path) -> None:
    folder = _model(tmp_path / "a")
    index = {"weight_map": {"x": "model.safetensors", "y": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserInputError, match=r"model-2\.safetensors"):
        check_folder(folder)


def _stub_converter(folder: Path, body: str) -> str:
    """An "interpreter" that runs `body` with the target folder as `target` in place of the real converter."""
    file = folder / "python"
    file.write_text(f"#!{sys.executable}\nimport sys, pathlib, time\ntarget = pathlib.Path(sys.argv[-1])\n{body}\n")
    file.chmod(0o755)
    return str(file)


async def test_a_gguf_is_converted_once_however_many_ask(tmp_path: Path) -> None:
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF")
    log = tmp_path / "log"
    stub = _stub_converter(
        tmp_path,
        f"open({str(log)!r}, 'a').write('x')\ntime.sleep(0.3)\ntarget.mkdir(parents=True)\n"
        "for name in ('config.json', 'tokenizer.json', 'chat_template.jinja', 'model.safetensors'):\n"
        "    (target / name).write_text('{}')",
    )
    cache = tmp_path / "cache"
    found = await asyncio.gather(*(resolve(str(gguf), cache, python=stub) for _ in range(3)))
    assert len({(f.name, f.folder, f.digest) for f in found}) == 1
    assert found[0].name == "tiny"
    assert log.read_text() == "x"
    gguf.write_bytes(b"GGUF of another model")
    assert (await resolve(str(gguf), cache, python=stub)).folder != found[0].folder


async def test_a_failed_conversion_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    gguf = tmp_path / "bad.gguf"
    gguf.write_bytes(b"GGUF")
    stub = _stub_converter(tmp_path, "target.mkdir(parents=True)\nsys.exit('ValueError: unknown architecture')")
    for _ in range(2):
        with pytest.raises(UserInputError, match="unknown architecture"):
            await resolve(str(gguf), tmp_path / "cache", python=stub)


@pytest.mark.parametrize("base", ["./nowhere", "nowhere.gguf", "owner/model.gguf", "no spaces please", "C:\\model"])
async def test_what_is_no_model_is_refused_with_a_hint(tmp_path: Path, base: str) -> None:
    with pytest.raises(UserInputError, match="give a folder"):
        await resolve(base, tmp_path)


async def test_a_hub_id_out_of_reach_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserInputError, match=r"give a folder or a \.gguf"):
        await resolve("nobody/nothing", tmp_path)


async def test_a_fault_on_the_way_to_the_hub_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def download(*_args: object, local_files_only: bool, **_kwargs: object) -> str:
        if local_files_only:
            raise hub.errors.LocalEntryNotFoundError("not at hand")
        raise ConnectionResetError("the peer hung up")

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(RetryableError, match="owner/name could not be fetched: ConnectionResetError"):
        await resolve("owner/name", tmp_path / "cache")


async def test_a_converter_that_outlives_its_parent_keeps_its_lock(tmp_path: Path) -> None:
    """Else a restarted service would write into the same folder beside it."""
    gguf, ready = tmp_path / "m.gguf", tmp_path / "ready"
    gguf.write_bytes(b"GGUF")
    stub = _stub_converter(tmp_path, f"pathlib.Path({str(ready)!r}).touch()\ntime.sleep(120)")
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import asyncio, pathlib, sys\n"
        "from llamaduo.base_models import resolve\n"
        "asyncio.run(resolve(sys.argv[1], pathlib.Path(sys.argv[2]), python=sys.argv[3]))",
        str(gguf),
        str(tmp_path / "cache"),
        stub,
        env=environment(),
    )

    async def converting() -> bool:
        return ready.exists()

    await until(converting, what="the converter runs")
    (converter,) = psutil.Process(parent.pid).children()
    try:
        parent.kill()
        await parent.wait()
        (lock,) = (tmp_path / "cache").glob("*.lock")
        with lock.open("w") as file:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            converter.kill()
            psutil.wait_procs([converter], timeout=20)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            converter.kill()


async def test_a_half_fetched_hub_model_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    half, whole = _model(tmp_path / "half"), _model(tmp_path / "whole")
    (half / "model.safetensors").unlink()
    asked: list[tuple[str, str | None, bool]] = []

    def download(repo: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        assert not {"*.bin", "*.py", "*.pt"} & set(allow_patterns)
        asked.append((repo, revision, local_files_only))
        return str(half if local_files_only else whole)

    monkeypatch.setattr(hub, "snapshot_download", download)
    found = await resolve("owner/name@v2", tmp_path / "cache")
    assert (found.name, found.folder) == ("owner/name@v2", whole)
    assert asked == [("owner/name", "v2", True), ("owner/name", "v2", False)]
    monkeypatch.setattr(hub, "snapshot_download", lambda *_args, **_kwargs: str(half))
    with pytest.raises(UserInputError, match=r"no \*\.safetensors"):
        await resolve("owner/name", tmp_path / "cache")
