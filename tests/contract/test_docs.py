"""The pages in `docs/` name everything the code has, with the defaults the code has; links and recipes hold."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
import typer
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

import services
from llamaduo.bus import topology
from llamaduo.checker import question_of
from llamaduo.cli.main import app
from llamaduo.events import EVENT_TYPES, EvalScored, parse_event, subject_of
from llamaduo.migrations.spec import MigrationSpec, ServiceLLM
from llamaduo.migrations.spec_file import parse_spec
from llamaduo.settings import BusSettings, ServiceSettings
from tests.support import ROOT
from tests.unit.judge_tasks import row, task

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(ROOT.glob("services/*/README.md"))]
EVERY_SERVICE = "every service"
VARIABLE = r"LLAMADUO_[A-Z0-9_]*[A-Z0-9]"


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def table(text: str, first: str) -> dict[str, list[str]]:
    """Rows of the Markdown tables whose first column is headed `first`: the first cell's code -> the other cells."""
    rows: dict[str, list[str]] = {}
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == first:
            inside = True
        elif inside and not set(cells[0]) <= set("-: "):
            name = cells[0].strip("`")
            assert name not in rows, f"{name} stands in two rows"
            rows[name] = cells[1:]
    return rows


def section(text: str, heading: str) -> str:
    """What stands under a second-level heading."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert heading in found, f"there is no section {heading!r}"
    return found[heading]


def codes(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


# --- events


def test_the_page_of_events_says_who_publishes_and_who_works_on_each() -> None:
    rows = table(page("events.md"), "event")
    assert set(rows) == set(EVENT_TYPES)
    everyone = {service for service, contract in topology.SERVICES.items() if contract.durables}
    for name, model in EVENT_TYPES.items():
        publishers = {service for service, contract in topology.SERVICES.items() if model in contract.publishes}
        workers = {
            re.sub(r"^evaluator-.*", "evaluator-NAME", durable.name)
            for contract in topology.SERVICES.values()
            for durable in contract.durables
            if model in durable.events and durable.name != "verdict"
        }
        said = everyone if rows[name][0] == EVERY_SERVICE else codes(rows[name][0])
        assert said == publishers, name
        assert codes(rows[name][1]) == workers, name
        assert (rows[name][2] == "yes") == (model in topology.BROADCAST), name


def test_the_page_of_events_lists_the_durables_as_they_are() -> None:
    rows = table(page("events.md"), "durable")
    durables = [durable for contract in topology.SERVICES.values() for durable in contract.durables]
    assert set(rows) == {re.sub(r"^evaluator-.*", "evaluator-NAME", durable.name) for durable in durables}
    for durable in durables:
        events, attempts, leased = rows[re.sub(r"^evaluator-.*", "evaluator-NAME", durable.name)]
        wanted = {"all"} if durable.events == topology.ALL else {subject_of(model) for model in durable.events}
        assert (codes(events) or {events}) == wanted
        assert (int(attempts), leased) == (durable.attempts, "yes" if durable.leased else "no")


def test_the_page_of_events_gives_the_times_of_both_profiles() -> None:
    rows = table(page("events.md"), "seconds")
    for number, profile in enumerate(("default", "faults")):
        timing = topology.TIMINGS[profile]
        names = ("ack_wait", "lease", "heartbeat", "retry_first", "retry_most")
        assert {name: float(rows[name][number]) for name in names} == {
            name: pytest.approx(getattr(timing, name)) for name in names
        }


def test_the_recipe_for_ids_gives_the_published_vectors() -> None:
    recipe = next(code for code in re.findall(r"```python\n(.*?)```", page("events.md"), re.DOTALL) if "def " in code)
    assert "llamaduo" not in [
        name.name for node in ast.walk(ast.parse(recipe)) for name in getattr(node, "names", [])
    ]
    assert len(recipe.strip().splitlines()) <= 12
    room: dict[str, Any] = {}
    exec(recipe, room)
    vectors = json.loads((DOCS / "contract" / "ids.json").read_text("utf-8"))
    for vector in vectors["events"]:
        scheme, *fields = vector["lines"]
        assert scheme == vectors["scheme"] and room["event_id"](*fields) == vector["id"]


def test_the_evaluator_on_the_page_is_the_example_and_its_event_is_one() -> None:
    text = page("evaluators.md")
    example = (ROOT / "examples" / "same_length_evaluator.py").read_text("utf-8")
    shown_code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    assert example.endswith(shown_code)
    *_, shown_event = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    event = parse_event(shown_event.encode())
    assert isinstance(event, EvalScored) and event.marks and set(event.metrics) == {"ratio"}


def test_the_line_to_a_checker_on_the_page_is_what_a_checker_gets() -> None:
    shown, *_ = re.findall(r"```json\n(.*?)```", page("evaluators.md"), re.DOTALL)
    assert list(json.loads(shown)) == ["id", *question_of(row("f00", "reference", "answer"), 0, "answer", task())]


# --- settings


def settings_by_section() -> dict[str, type[BaseSettings]]:
    """Heading in docs/settings.md -> the class whose own fields stand there."""
    found: dict[str, type[BaseSettings]] = {"Bus and artifacts": BusSettings, "Every service": ServiceSettings}
    for module in pkgutil.iter_modules(services.__path__):
        try:
            settings = importlib.import_module(f"services.{module.name}.settings")
        except ModuleNotFoundError:
            continue
        for value in vars(settings).values():
            if isinstance(value, type) and issubclass(value, BaseSettings) and value.__module__ == settings.__name__:
                found[module.name.capitalize()] = value
    return found


def own_fields(model: type[BaseSettings]) -> dict[str, FieldInfo]:
    inherited = {name for base in model.__mro__[1:] for name in getattr(base, "model_fields", {})}
    return {name: field for name, field in model.model_fields.items() if name not in inherited}


def shown(field: FieldInfo) -> str | None:
    """A default as the pages write it; None where it is made when it is read."""
    if field.default_factory is not None:
        return None
    default = field.default
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "none"
    assert not isinstance(default, SecretStr)
    return f"`{default}`" if isinstance(default, str | Path) and str(default) else json.dumps(default)


@pytest.mark.parametrize("heading", sorted(settings_by_section()))
def test_every_setting_is_on_the_page_with_its_default(heading: str) -> None:
    model = settings_by_section()[heading]
    text = section(page("settings.md"), heading)
    fields, prefix = own_fields(model), model.model_config["env_prefix"]
    rows = table(text, "variable")
    assert set(rows) == {f"{prefix}{name}".upper() for name in fields}
    for name, field in fields.items():
        if (default := shown(field)) is not None:
            assert rows[f"{prefix}{name}".upper()][0] == default, name


def test_no_page_names_a_variable_that_nobody_reads() -> None:
    known = {
        f"{model.model_config['env_prefix']}{name}".upper()
        for model in settings_by_section().values()
        for name in model.model_fields
    }
    for file in ("docker-compose.yml", "docker-compose.gpu.yml"):
        known |= set(re.findall(VARIABLE, (ROOT / file).read_text("utf-8")))
    others = {"LLAMADUO_EMULATOR", "LLAMADUO_API_KEY", "LLAMADUO_API_KEY_FILE"}
    for path in PAGES:
        named = set(re.findall(VARIABLE, path.read_text("utf-8")))
        assert not named - known - others, path.name


# --- the spec


def part_of(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as `Parity | None` or `list[Annotated[Choice, ...]]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        if (model := part_of(argument)) is not None:
            return model
    return None


def spec_keys(model: type[BaseModel] = MigrationSpec, before: str = "") -> dict[str, FieldInfo]:
    """Dotted key -> field, of everything a spec can say; the three service LLMs share one description."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        inner = part_of(field.annotation)
        listed, mapped = get_origin(field.annotation) is list, get_origin(field.annotation) is dict
        optional = get_origin(field.annotation) in (Union, UnionType)
        if inner is None or listed or (optional and inner is ServiceLLM):
            found[before + name] = field
        if inner is not None and not (optional and inner is ServiceLLM):
            found |= spec_keys(inner, f"{before}{name}{'[]' if listed else '.COLUMN' if mapped else ''}.")
    return found


def test_every_key_of_a_spec_is_on_the_page_with_its_default() -> None:
    rows, keys = table(page("spec.md"), "key"), spec_keys()
    assert set(rows) == set(keys)
    for name, field in keys.items():
        if (default := shown(field)) is not None:
            assert rows[name][0] == default, name


def test_the_specs_on_the_page_are_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", page("spec.md"), re.DOTALL)
    assert len([line for line in blocks[0].splitlines() if line.strip()]) == 5
    for block in blocks:
        parse_spec(block, "docs/spec.md")


def test_the_stop_rules_are_explained() -> None:
    from llamaduo.migrations.next_step import StopRule

    assert set(table(page("operate.md"), "rule")) == set(get_args(StopRule))


# --- the command line


def commands() -> list[str]:
    def walk(command: Any, path: str) -> list[str]:
        children = getattr(command, "commands", None)
        if not children:
            return [path]
        return [one for name, child in children.items() for one in walk(child, f"{path} {name}".strip())]

    return walk(typer.main.get_command(app), "")


@pytest.mark.parametrize("command", commands())
def test_every_command_is_on_the_page(command: str) -> None:
    assert f"`{command}`" in page("cli.md")


# --- what holds all pages together


def anchors(path: Path) -> set[str]:
    """Headings as GitHub names them in links."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(there), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_tests_that_are_named_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    for name in set(re.findall(r"`((?:shared|services|tests|deploy|examples)/[\w/.-]+\.\w+)`", text)):
        assert (ROOT / name).is_file(), name
    for name, test in set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)):
        assert re.search(rf"def {test}\(", (ROOT / name).read_text("utf-8")), f"{name}::{test}"


def test_the_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for path in PAGES:
        assert set(re.findall(r"`make ([a-z-]+)", path.read_text("utf-8"))) <= targets, path.name


def test_every_service_has_a_page_of_its_own() -> None:
    for module in pkgutil.iter_modules(services.__path__):
        assert (ROOT / "services" / module.name / "README.md").is_file(), module.name
