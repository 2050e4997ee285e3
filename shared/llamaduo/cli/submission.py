"""From a spec file to a checked migration that can be published. Decides everything before anything starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llamaduo.datasets import Row, dataset_digest, read_coverage
from llamaduo.errors import UserInputError
from llamaduo.identity import content_digest, identity
from llamaduo.migrations.spec import MigrationSpec, ServiceLLM, read_spec

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")
FEWEST_ROWS = 14


@dataclass(frozen=True)
class Overrides:
    """Another service LLM than the spec's, from the command line."""

    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None


@dataclass(frozen=True)
class Submission:
    """A checked migration: its id, frozen spec and rows, and what the submitter should know."""

    migration: str
    spec: MigrationSpec
    rows: list[Row]
    number: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluatorOnBus:
    """An evaluator that has a durable, and whether a process is asking it for work now."""

    name: str
    attended: bool


def migration_id(spec: MigrationSpec, rows: list[Row], number: int) -> str:
    """The id of submission `number`: from the spec without the path of its dataset, and the rows themselves."""
    frozen = spec.model_dump(mode="json", exclude={"coverage"})
    return "m-" + identity("migration", content_digest(frozen), dataset_digest(rows), number)[:16]


def with_overrides(spec: MigrationSpec, overrides: Overrides) -> MigrationSpec:
    """The spec with another service LLM. UserInputError if the result is none."""
    given = {
        name: value
        for name, value in (
            ("model", overrides.model),
            ("base_url", overrides.base_url),
            ("api_key_env", overrides.api_key_env),
        )
        if value is not None
    }
    if not given:
        return spec
    try:
        llm = ServiceLLM.model_validate({**spec.service_llm.model_dump(), **given})
    except ValueError as error:
        raise UserInputError(
            f"{', '.join(given.values())}: no service LLM",
            hint="--service-llm takes provider:model, e.g. openai:gpt-4o",
        ) from error
    return spec.model_copy(update={"service_llm": llm})


def prepare(
    path: Path,
    *,
    number: int = 1,
    overrides: Overrides | None = None,
    environment: Mapping[str, str],
    key_names_of_services: list[str] | None = None,
) -> Submission:
    """Read and check a spec and its dataset. UserInputError for the first thing that would not work.

    `key_names_of_services`: the key variables that running services have, where that is known.
    """
    spec = with_overrides(read_spec(path), overrides or Overrides())
    rows = read_coverage(Path(spec.coverage))
    notes = [
        *check_keys(spec, environment, key_names_of_services, str(path)),
        *check_base_model(spec, str(path)),
        *check_size(spec, rows, str(path)),
    ]
    return Submission(migration_id(spec, rows, number), spec, rows, number, notes)


def check_keys(
    spec: MigrationSpec, environment: Mapping[str, str], of_services: list[str] | None, file: str
) -> list[str]:
    """Notes on keys of providers. UserInputError if one that is surely needed is not set."""
    notes: list[str] = []
    for role, llm in (("service_llm", spec.service_llm), ("teacher", spec.teacher), ("judge", spec.judge)):
        if llm is None:
            continue
        name = llm.api_key_env
        if of_services is not None and name in of_services:
            continue
        if llm.base_url is not None:
            if not environment.get(name):
                notes.append(f"{role}: {name} is not set; {llm.base_url} will be called without a key")
            continue
        if not environment.get(name):
            raise UserInputError(
                f"the environment variable {name} is not set",
                file=file,
                field=f"{role}.api_key_env",
                hint=f"export {name}=… before `llamaduo up` and this command",
            )
        if of_services is not None:
            raise UserInputError(
                f"`llamaduo up` was started without {name}",
                file=file,
                field=f"{role}.api_key_env",
                hint="stop it and start it again from a shell in which that variable is set",
            )
    return list(dict.fromkeys(notes))


def check_base_model(spec: MigrationSpec, file: str) -> list[str]:
    """UserInputError if the base model cannot be one; a note if it will have to be fetched."""
    from llamaduo.base_models import check_folder

    base = Path(spec.base_model)
    if base.is_dir():
        check_folder(base)
        return []
    if base.is_file():
        if base.suffix != ".gguf":
            raise UserInputError("a file, but not a .gguf", file=file, field="base_model")
        return []
    if not HUB_ID.fullmatch(spec.base_model):
        raise UserInputError(
            f"{spec.base_model!r} is no folder, no .gguf file and no Hub id",
            file=file,
            field="base_model",
            hint="e.g. HuggingFaceTB/SmolLM2-135M-Instruct",
        )
    return [] if _is_cached(spec.base_model) else [f"{spec.base_model} is not on this machine: it will be fetched"]


def _is_cached(hub_id: str) -> bool:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    repo, _, revision = hub_id.partition("@")
    return isinstance(try_to_load_from_cache(repo, "config.json", revision=revision or None), str)


def check_size(spec: MigrationSpec, rows: list[Row], file: str) -> list[str]:
    """UserInputError if the dataset cannot be split as asked."""
    wanted = spec.splits.train + spec.splits.validation + spec.splits.test + spec.splits.holdout
    if len(rows) < FEWEST_ROWS:
        raise UserInputError(
            f"{len(rows)} different rows are too few to train, test and hold out: {FEWEST_ROWS} at least",
            file=spec.coverage,
            field="coverage",
        )
    if wanted > len(rows):
        raise UserInputError(
            f"asks for {wanted} rows, the dataset has {len(rows)} different ones", file=file, field="splits"
        )
    return []


def check_evaluators(spec: MigrationSpec, on_bus: list[EvaluatorOnBus], file: str) -> list[str]:
    """Notes on evaluators that nobody runs now. UserInputError if one that decides is unknown to the bus."""
    known = {evaluator.name: evaluator.attended for evaluator in on_bus}
    notes: list[str] = []
    for choice in spec.evaluators:
        if known.get(choice.name):
            continue
        if choice.name in known:
            notes.append(f"evaluator {choice.name} ({choice.role}): no process is running it now")
        elif choice.role != "advisory":
            raise UserInputError(
                f"nobody would mark for {choice.name!r}: the bus has no consumer for it",
                file=file,
                field="evaluators",
                hint=f"llamaduo evaluator add {choice.name}; known: {', '.join(sorted(known)) or 'none'}",
            )
        else:
            notes.append(f"evaluator {choice.name} (advisory) is unknown to the bus and will mark nothing")
    return notes
