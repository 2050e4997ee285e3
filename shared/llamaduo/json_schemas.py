"""JSON Schemas of others, made ready for use. jsonschema is imported with the first one."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonschema.protocols import Validator


class UnusableSchema(ValueError):
    """What was given as a schema is none."""


@lru_cache(maxsize=64)
def validator_of(schema: str) -> Validator:
    """A validator by this schema, given as JSON text. UnusableSchema where it is none.

    What the schema refers to is never fetched from elsewhere.
    """
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    parsed = json.loads(schema)
    kind = validator_for(parsed, default=Draft202012Validator)
    try:
        kind.check_schema(parsed)
    except SchemaError as error:
        raise UnusableSchema("it is no JSON Schema") from error
    # The default registry would fetch a foreign $ref by HTTP: a row of a dataset must not make us call anyone.
    return kind(parsed, registry=Registry())
