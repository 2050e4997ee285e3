"""Every dependency is declared once, used where it is declared, and has a line that says why it is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {
    "faststream[nats]": "faststream",
    "nats-py": "nats",
    "pydantic-ai-slim[openai]": "pydantic_ai",
    "pyyaml": "yaml",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
}
"""Where the module is not called as the distribution."""
THROUGH_ANOTHER = {"accelerate": "transformers", "bitsandbytes": "transformers"}
"""Never imported by name: transformers runs on the one, and loads the other when it is asked for 4 bits."""
SERVICES = ("synthesizer", "judge", "inference", "trainer")


def name_of(requirement: str) -> str:
    return re.split(r"[<>=~ ]", requirement)[0]


def imported_in(*folders: Path) -> set[str]:
    """Top-level modules that the files of these folders import, at any indentation."""
    found: set[str] = set()
    for folder in folders:
        for path in folder.rglob("*.py"):
            found |= set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), flags=re.MULTILINE))
    return found


def uses(requirement: str, imported: set[str]) -> bool:
    name = name_of(requirement)
    name = THROUGH_ANOTHER.get(name, name)
    return MODULES.get(name, name.replace("-", "_")) in imported


@pytest.mark.parametrize("requirement", PROJECT["dependencies"], ids=name_of)
def test_what_all_need_is_used_by_what_is_shared(requirement: str) -> None:
    assert uses(requirement, imported_in(ROOT / "shared")), f"{requirement}: nothing imports it"


@pytest.mark.parametrize("service", SERVICES)
def test_an_extra_holds_what_its_service_uses(service: str) -> None:
    imported = imported_in(ROOT / "shared", ROOT / "services" / service)
    for requirement in PROJECT["optional-dependencies"][service]:
        assert uses(requirement, imported), f"{requirement}: nothing imports it"


def test_the_extra_of_one_evaluator_holds_what_it_uses() -> None:
    imported = imported_in(ROOT / "services" / "judge")
    assert [one for one in PROJECT["optional-dependencies"]["embedding"] if not uses(one, imported)] == []


def test_the_extra_of_the_command_line_holds_what_it_uses() -> None:
    imported = imported_in(ROOT / "shared")
    unused = [one for one in PROJECT["optional-dependencies"]["data"] if not uses(one, imported)]
    assert unused == []


def test_each_dependency_has_its_reason() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text()
    first_cells = re.findall(r"^\| ([^|]+) \|", text, flags=re.MULTILINE)
    named = {name.strip() for cell in first_cells for name in cell.split(",")}
    extras = [r for extra in PROJECT["optional-dependencies"].values() for r in extra]
    for requirement in [*PROJECT["dependencies"], *extras]:
        name = name_of(requirement)
        assert name in named or name.split("[")[0] in named, f"{name}: say in docs/dependencies.md why it is there"


def test_what_runs_in_production_has_an_exact_version() -> None:
    extras = PROJECT["optional-dependencies"]
    for requirement in [*PROJECT["dependencies"], *(r for name in extras if name != "dev" for r in extras[name])]:
        assert "==" in requirement, f"{requirement}: name one version"
