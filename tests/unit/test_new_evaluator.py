"""`llamaduo evaluator new`: what it writes works as it stands."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamaduo.cli.evaluator_commands import load
from llamaduo.cli.main import app
from llamaduo.cli.new_evaluator import write_project
from llamaduo.errors import UserInputError
from tests.support import environment


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "two-lines"
    made = CliRunner().invoke(app, ["evaluator", "new", "two-lines", "--folder", str(folder)])
    assert made.exit_code == 0, made.output
    assert "evaluator check" in made.output
    return folder


def test_its_own_test_passes_also_under_the_name_of_a_module_of_python(tmp_path: Path) -> None:
    write_project("json", tmp_path)
    passed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert passed.returncode == 0 and "2 passed" in passed.stdout, passed.stdout + passed.stderr


def test_it_passes_evaluator_check(project: Path) -> None:
    tried = CliRunner().invoke(app, ["evaluator", "check", f"{project / 'two_lines_evaluator.py'}:score"])
    assert tried.exit_code == 0, tried.output
    assert {line.split()[0] for line in tried.output.splitlines()} == {"ok"}, tried.output
    assert "two-lines, version 1: lines 0 to 1" in tried.output


def test_it_is_a_project_and_its_page_names_what_is_there(project: Path) -> None:
    declared = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    assert declared["project"]["name"] == "two-lines"
    module, _, function = declared["project"]["scripts"]["two-lines"].partition(":")
    loaded = load(f"{project / module}.py:score")
    assert loaded.name == "two-lines" and function == "main"
    assert declared["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"] == [f"{module}.py"]
    readme = (project / "README.md").read_text("utf-8")
    assert f"evaluator run {module}.py:score" in readme and "$" not in readme
    assert sorted(path.name for path in project.iterdir() if path.is_file()) == sorted(
        ["README.md", "pyproject.toml", f"{module}.py", f"test_{module}.py"]
    )


def test_nothing_is_written_over_and_our_names_are_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    with pytest.raises(UserInputError, match="something in it already"):
        write_project("mine", tmp_path)
    with pytest.raises(UserInputError, match="cannot be written"):
        write_project("mine", tmp_path / "notes.txt")
    with pytest.raises(UserInputError, match="comes with LlamaDuo"):
        write_project("exact-match", tmp_path / "new")
    refused = CliRunner().invoke(app, ["evaluator", "new", "Not A Name", "--folder", str(tmp_path / "new")])
    assert refused.exit_code != 0 and not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
