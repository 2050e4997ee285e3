"""The rooms: what each service may load, and that each core package is declared and used where it belongs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

from tests.support import ROOT, environment

HEAVY = ("torch", "transformers", "vllm", "trl", "peft", "datasets", "bitsandbytes", "pyarrow", "numpy")
LIGHT = [
    "services.judge.app",
    "services.synthesizer.app",
    "services.verdict.app",
    "services.emulator.app",
    "services.gateway.app",
    "services.inference.app",
    "llamaduo.cli.main",
    "llamaduo.evaluating",
]
BELONGS = {
    # package -> (where it is declared, where it is used)
    "faststream": ("core", "shared/llamaduo/bus"),
    "nats-py": ("core", "shared/llamaduo/bus"),
    "pydantic": ("core", "shared/llamaduo/events"),
    "aiohttp": ("core", "services/emulator"),
    "obstore": ("core", "shared/llamaduo/artifacts.py"),
    "pydantic-ai-slim": ("synthesizer", "shared/llamaduo/service_llm"),
    "genai-prices": ("judge", "shared/llamaduo/service_llm"),
    "rapidfuzz": ("synthesizer", "services/synthesizer"),
    "transformers": ("trainer", "services/trainer"),
    "peft": ("trainer", "services/trainer"),
    "trl": ("trainer", "services/trainer"),
    "datasets": ("trainer", "services/trainer"),
    "bitsandbytes": ("trainer", "services/trainer"),
}
IMPORT_NAME = {"nats-py": "nats", "pydantic-ai-slim": "pydantic_ai", "genai-prices": "genai_prices"}


@pytest.mark.parametrize("module", LIGHT)
def test_light_parts_load_no_ml_library(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(done.stdout.split())


@pytest.mark.parametrize("package", sorted(BELONGS))
def test_each_core_package_is_declared_and_used_where_it_belongs(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extra, place = BELONGS[package]
    declared = project["dependencies"] if extra == "core" else project["optional-dependencies"][extra]
    names = {re.split(r"[\[=<>]", line)[0]: line for line in declared}
    assert package in names and "==" in names[package], f"{package} is not pinned in {extra}"
    name = IMPORT_NAME.get(package, package)
    where = ROOT / place
    files = [where] if where.is_file() else sorted(where.rglob("*.py"))
    pattern = re.compile(
        rf"^\s*(from|import) {name}\b|import_module\(.{name}|(?:BitsAndBytesConfig)" if name == "bitsandbytes"
        else rf"^\s*(from|import) {name}\b", re.MULTILINE,
    )  # fmt: skip
    assert any(pattern.search(file.read_text("utf-8")) for file in files), f"{package} is not used in {place}"


def test_vllm_is_run_as_a_process_of_its_own_environment() -> None:
    assert "vllm.entrypoints.openai.api_server" in (ROOT / "services/inference/vllm_process.py").read_text("utf-8")
    assert '"vllm"' not in (ROOT / "pyproject.toml").read_text("utf-8").split("[project.scripts]")[0]
