"""JSON schema: whether an answer is the JSON that was asked for. Free; needs no reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llamaduo.built_in_evaluators import JSON_SCHEMA, METRICS
from llamaduo.datasets import ShardRow
from llamaduo.errors import PermanentError
from llamaduo.evaluators import Evaluator
from llamaduo.identity import canonical_json
from llamaduo.json_schemas import UnusableSchema, validator_of
from llamaduo.json_values import MISSING, json_value
from services.judge.each_answer import Options, each_answer
from services.judge.json_values import below, listed
from services.judge.options import check_options

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

NAME = JSON_SCHEMA
METRIC = "valid"


def schema_of(asked: Any) -> dict[str, Any] | None:
    """The JSON Schema in a `response_format`, as OpenAI writes one or bare; None where it asks for no JSON.

    UnusableSchema where it is neither. It may be a text that holds JSON, as a table's column does.
    """
    if isinstance(asked, str):
        asked = json_value(asked)
    if not isinstance(asked, dict):
        raise UnusableSchema("it is no JSON object")
    kind = asked.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        return asked
    named = asked.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise UnusableSchema("it has no json_schema.schema")
    return schema


def valid(schema: Mapping[str, Any], answer: str) -> tuple[bool, str]:
    """Whether the answer is one JSON value that the schema allows; the reason names fields and rules, no values.

    UnusableSchema where the schema itself cannot be used; a reference in it is never fetched from elsewhere.
    """
    value = json_value(answer)
    if value is MISSING:
        return False, "the answer is not one JSON value"
    from jsonschema.exceptions import best_match
    from referencing.exceptions import Unresolvable

    try:
        error = best_match(validator_of(canonical_json(schema)).iter_errors(value))
    except Unresolvable as problem:
        raise UnusableSchema("it refers to a schema that is not in it") from problem
    except RecursionError:
        return False, "the answer is nested too deeply"
    return (True, "the schema allows it") if error is None else (False, _told(error))


def json_schema() -> Evaluator:
    """The evaluator `json-schema` with its one metric, `valid`.

    The schema is the row's `response_format`, else the option `schema`; a row without either abstains.
    """
    return Evaluator(
        name=NAME,
        version="1",
        metrics=METRICS[NAME],
        score=each_answer((METRIC,), _marks, check=_check),
    )


def _check(options: Options) -> None:
    check_options(NAME, options, ("schema",))
    if "schema" not in options:
        return
    try:
        schema = schema_of(options["schema"])
        if schema is not None:
            validator_of(canonical_json(schema))
    except UnusableSchema as error:
        raise PermanentError(f"evaluator {NAME}: option 'schema': {error}") from error


def _marks(row: ShardRow, answer: str, options: Options) -> tuple[dict[str, float | None], str]:
    asked = options.get("schema") if row.response_format is None else row.response_format
    if asked is None:
        return {METRIC: None}, "neither the row nor the spec has a schema"
    try:
        schema = schema_of(asked)
        if schema is None:
            return {METRIC: None}, "the row asks for text"
        same, reason = valid(schema, answer)
    except UnusableSchema as error:
        return {METRIC: None}, f"the schema cannot be used: {error}"
    return {METRIC: float(same)}, reason


def _told(error: ValidationError) -> str:
    """Where and by which rule; of a missing field its name, which is the schema's."""
    path = ""
    for part in error.absolute_path:
        path = f"{path}[]" if isinstance(part, int) else below(path, part)
    where = path or "the answer"
    rule: Any = error.validator_value
    if error.validator == "required" and isinstance(error.instance, dict):
        missing = listed([below(path, name) for name in rule if name not in error.instance])
        return f"missing: {missing}"
    return f"{where} breaks the rule {error.validator!r}"
