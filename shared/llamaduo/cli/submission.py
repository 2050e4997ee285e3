"""From a spec file to a checked migration that can be published. Decides everything before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from llamaduo.cli.spec_checks import (
    check_base_models,
    check_gate,
    check_keys,
    check_providers,
    check_serving,
    check_slices,
    check_splits,
    check_test_rows,
    check_tools,
    doubtful_evaluators,
)
from llamaduo.coverage_files import BadLine, sound
from llamaduo.datasets import Row, dataset_digest
from llamaduo.errors import UserInputError
from llamaduo.identity import content_digest, identity
from llamaduo.migrations.spec import MODEL_PATTERN, MigrationSpec, ServiceLLM
from llamaduo.migrations.spec_file import PATTERNS, SpecFile, likely_value, read_spec
from llamaduo.plain_words import in_words


@dataclass(frozen=True)
class Overrides:
    """Another service LLM than the spec's, from the command line."""

    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """Key of `service_llm` -> value, of those that were given."""
        every = {"model": self.model, "base_url": self.base_url, "api_key_env": self.api_key_env}
        return {name: value for name, value in every.items() if value is not None}


@dataclass(frozen=True)
class Submission:
    """A checked migration: its id, spec file with the frozen spec, rows, and what the submitter should know.

    `skipped` are the bad lines of its dataset, left out by wish.
    """

    migration: str
    file: SpecFile
    rows: list[Row]
    number: int
    notes: list[str] = field(default_factory=list)
    skipped: list[BadLine] = field(default_factory=list)

    @property
    def spec(self) -> MigrationSpec:
        """The frozen spec."""
        return self.file.spec


OPTIONS = {"model": "--service-llm", "base_url": "--service-llm-url", "api_key_env": "--api-key-env"}


def migration_id(spec: MigrationSpec, rows: list[Row], number: int) -> str:
    """The id of submission `number`: from the spec without the way to its dataset, and the rows themselves."""
    # A key that came later and is not used leaves the id of a spec what it was.
    unused = set() if spec.base_models else {"base_models"}
    frozen = spec.model_dump(mode="json", exclude={"coverage", "columns", *unused})
    return "m-" + identity("migration", content_digest(frozen), dataset_digest(rows), number)[:16]


def with_overrides(found: SpecFile, overrides: Overrides) -> SpecFile:
    """The spec with another service LLM. UserInputError, naming the option, if the result is none."""
    if not overrides.given:
        return found
    try:
        llm = ServiceLLM.model_validate({**found.spec.service_llm.model_dump(), **overrides.given})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][-1])
        hint = likely_value(MODEL_PATTERN, str(first["input"])) if name == "model" else None
        raise UserInputError(in_words(first, PATTERNS), field=OPTIONS.get(name), hint=hint) from error
    return dataclasses.replace(found, spec=found.spec.model_copy(update={"service_llm": llm}))


def prepare(
    path: Path,
    *,
    number: int = 1,
    overrides: Overrides | None = None,
    environment: Mapping[str, str],
    key_names_of_services: list[str] | None = None,
    keys_needed: bool = True,
    skip_bad: bool = False,
) -> Submission:
    """Read and check a spec and its dataset, see `check`."""
    return check(
        with_overrides(read_spec(path), overrides or Overrides()),
        number=number,
        environment=environment,
        key_names_of_services=key_names_of_services,
        keys_needed=keys_needed,
        skip_bad=skip_bad,
    )


def check(
    found: SpecFile,
    *,
    number: int = 1,
    environment: Mapping[str, str],
    key_names_of_services: list[str] | None = None,
    keys_needed: bool = True,
    skip_bad: bool = False,
) -> Submission:
    """Check a spec and its dataset. UserInputError for the first thing that would not work.

    `key_names_of_services`: the key variables that running services have, where that is known. Keys come last, so
    that a missing one hides nothing; where they are not needed yet it is only a note. `skip_bad`: go on without the
    dataset's bad lines.
    """
    check_gate(found)
    check_providers(found)
    notes = check_base_models(found)
    coverage = sound(found.spec.coverage, found.spec.columns, skip_bad=skip_bad)
    rows = list(coverage.rows.values())
    check_tools(found, rows)
    check_slices(found, rows)
    check_splits(found, len(rows))
    notes += check_test_rows(found, len(rows))
    notes += check_serving(found, len(rows))
    notes += doubtful_evaluators(found)
    notes += check_keys(found, environment, key_names_of_services, needed=keys_needed)
    return Submission(migration_id(found.spec, rows, number), found, rows, number, notes, coverage.bad)
