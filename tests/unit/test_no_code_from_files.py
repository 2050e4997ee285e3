"""Nothing that comes from outside is run: no pickle, no code of strangers, no shell; no archive unpacks anywhere."""

from __future__ import annotations

import ast
import json
import os
import pickle
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llamaduo.base_models import check_folder
from llamaduo.errors import AdapterRejected, UserInputError
from llamaduo.scratch_folders import make_scratch, remove_stale
from llamaduo.sharing.taking import take_adapter
from services.inference.adapter_check import PICKLED, check_adapter, digest_of
from services.inference.safetensors_header import read_header
from services.inference.vllm_process import VllmOptions, command_line
from tests.adapter_files import write_adapter
from tests.support import ROOT, environment
from tests.unit.test_taking_adapters import adapter_in

SOURCES = [path for folder in ("shared", "services", "deploy", "examples") for path in (ROOT / folder).rglob("*.py")]
NEVER_IMPORTED = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
NEVER_CALLED = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "torch.load",
    "shutil.unpack_archive", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
    "numpy.load", "np.load",
}  # fmt: skip
NEVER_TRUE = {"shell", "trust_remote_code", "allow_pickle"}


def named(node: ast.expr) -> str:
    """`a.b` of an expression; "" where it is no plain name."""
    if isinstance(node, ast.Attribute):
        return f"{named(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def forbidden(source: str) -> Iterator[str]:
    """What of this is in a source, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (
                f"{node.lineno}: import {a.name}" for a in node.names if a.name.split(".")[0] in NEVER_IMPORTED
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in NEVER_IMPORTED:
            yield f"{node.lineno}: from {node.module}"
        elif isinstance(node, ast.Call):
            if named(node.func) in NEVER_CALLED:
                yield f"{node.lineno}: {named(node.func)}()"
            safe = any(k.arg == "filter" and getattr(k.value, "value", None) == "data" for k in node.keywords)
            if isinstance(node.func, ast.Attribute) and node.func.attr == "extractall" and not safe:
                yield f"{node.lineno}: an archive is unpacked wherever it says"
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in NEVER_TRUE and not off:
                    yield f"{node.lineno}: {keyword.arg}"


def test_no_source_runs_what_it_reads() -> None:
    assert len(SOURCES) > 200
    found = {
        str(path.relative_to(ROOT)): lines for path in SOURCES if (lines := list(forbidden(path.read_text("utf-8"))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "eval(x)", "os.system(x)", "yaml.load(x)", "torch.load(x)",
        "subprocess.run(x, shell=True)", "f(trust_remote_code=True)", "f(trust_remote_code=settings.trust)",
        "import shelve", "archive.extractall(x)", "archive.extractall(x, filter='tar')",
    ],
)  # fmt: skip
def test_such_a_source_would_be_found(line: str) -> None:
    assert len(list(forbidden(line))) == 1


def test_ruffs_security_rules_are_on_for_all_that_runs_in_production() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert [rule for rule in lint["ignore"] if rule.startswith("S")] == ["S101", "S603"]
    relaxed = {where for where, rules in lint["per-file-ignores"].items() if any(r.startswith("S") for r in rules)}
    assert relaxed == {"tests/**", "benchmarks/**", "deploy/**"}


def test_vllm_is_not_told_to_trust_anybodys_code(tmp_path: Path) -> None:
    options = VllmOptions(python=Path("python"), model=tmp_path, model_name="m", log=tmp_path / "log")
    command = " ".join(command_line(options, tmp_path / "socket"))
    assert "--enable-lora" in command and "--trust" not in command and "pickle" not in command
    other = [path for path in (ROOT / "deploy").rglob("*") if path.is_file() and path.suffix not in (".pyc",)]
    texts = [*other, ROOT / "docker-compose.yml", ROOT / "Makefile"]
    assert not [path for path in texts if "trust-remote-code" in path.read_text("utf-8", "replace")]


# --- files of strangers

LAYERS = {"model.q": (2, 2)}


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("ending", PICKLED)
def test_an_adapter_with_a_file_that_would_run_is_not_served(tmp_path: Path, ending: str) -> None:
    adapter = write_adapter(tmp_path / "adapter", LAYERS, rank=1)
    (adapter.folder / f"adapter_model{ending}").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    adapter = replace(adapter, digest=digest_of(adapter.folder))
    with pytest.raises(AdapterRejected, match="pickled, and reading it would run"):
        check_adapter(adapter, max_rank=8, base_digest=None, base=None)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_alone_are_refused_at_every_door(tmp_path: Path) -> None:
    folder = adapter_in(tmp_path / "taken")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(UserInputError, match="only pickled weights are here, and those are not read"):
        take_adapter(str(folder), tmp_path / "kept")
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(UserInputError, match=r"only pickled weights \(pytorch_model.bin\), no \*.safetensors"):
        check_folder(base)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_link_out_of_an_adapters_folder_is_not_followed(tmp_path: Path, file: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"base_model_name_or_path": "x"}')
    folder = adapter_in(tmp_path / "adapter")
    (folder / file).unlink()
    (folder / file).symlink_to(secret)
    with pytest.raises(UserInputError, match="is a link to elsewhere"):
        take_adapter(str(folder), tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("make", ["link", "fifo", "folder"])
def test_what_is_no_plain_file_in_an_adapter_is_not_served(tmp_path: Path, make: str) -> None:
    adapter = write_adapter(tmp_path / "adapter", LAYERS, rank=1)
    other = adapter.folder / "more.json"
    if make == "link":
        other.symlink_to("/etc/hostname")
    elif make == "fifo":
        os.mkfifo(other)
    else:
        other.mkdir()
    with pytest.raises(AdapterRejected, match=r"more\.json is no plain file"):
        check_adapter(adapter, max_rank=8, base_digest=None, base=None)


def test_a_fifo_in_an_adapters_place_is_not_waited_for(tmp_path: Path) -> None:
    folder = adapter_in(tmp_path / "adapter")
    (folder / "adapter_config.json").unlink()
    os.mkfifo(folder / "adapter_config.json")
    with pytest.raises(UserInputError, match=r"no adapter_config\.json"):
        take_adapter(str(folder), tmp_path / "kept")


@pytest.mark.parametrize("config", ["[" * 100_000, " " * 1_000_001, '{"base_model_name_or_path"'])
def test_a_config_that_is_a_bomb_is_refused(tmp_path: Path, config: str) -> None:
    folder = adapter_in(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text(config)
    with pytest.raises(UserInputError, match=r"too large|does not name its base model"):
        take_adapter(str(folder), tmp_path / "kept")
    adapter = write_adapter(tmp_path / "served", LAYERS, rank=1)
    (adapter.folder / "adapter_config.json").write_text(config)
    with pytest.raises(AdapterRejected):
        check_adapter(replace(adapter, digest=digest_of(adapter.folder)), max_rank=8, base_digest=None, base=None)


@pytest.mark.parametrize("header", [b"[" * 50_000, b"{" * 50_000, b'{"a":' * 50_000, json.dumps({"x": 1}).encode()])
def test_a_header_of_weights_that_is_a_bomb_is_refused(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match=r"weights.safetensors"):
        read_header(file)
    # One that says that it is larger than memory.
    file.write_bytes((2**62).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="cut off or no safetensors file"):
        read_header(file)


# --- folders for the while


def test_what_killed_processes_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import os, signal, tempfile; from llamaduo.scratch_folders import make_scratch; "
        f"tempfile.tempdir = {str(tmp_path)!r}; make_scratch('unit'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=False)
    [left] = tmp_path.glob("llamaduo-unit-*")
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        kept = [
            tmp_path / "llamaduo-unit-somebody-elses",
            tmp_path / "llamaduo-unit-1-0-abc",  # the first process lives always
            tmp_path / f"llamaduo-unit-{living.pid}-0-abc",
            tmp_path / "llamaduo-other-999999-1-abc",
        ]
        for folder in kept:
            folder.mkdir()
        outside = tmp_path / "outside"
        outside.mkdir()
        link = tmp_path / "llamaduo-unit-999999-1-link"
        link.symlink_to(outside)
        reused = tmp_path / f"llamaduo-unit-{living.pid}-1-abc"  # of an older process with this number
        reused.mkdir()
        own = make_scratch("unit")
        assert own.is_dir() and own.stat().st_mode & 0o077 == 0
        assert not left.exists() and not reused.exists()
        assert all(folder.exists() for folder in (*kept, outside, link))
        assert remove_stale("unit") == []
    finally:
        living.communicate(b"\n", timeout=20)
