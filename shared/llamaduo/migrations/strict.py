"""The base of everything a spec is made of: unknown keys are errors, and so is a truth value for a number."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """A part of the spec."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as truth values, and Python counts those as 1 and 0."""
        field = cls.model_fields[info.field_name] if info.field_name else None
        if isinstance(value, bool) and field is not None and field.annotation is not bool:
            kind = "int_type" if field.annotation in (int, int | None) else "float_type"
            wanted = "string_type" if field.annotation in (str, str | None) else kind
            raise PydanticCustomError(wanted, "not a truth value")
        return value


def wrong_at(path: tuple[str | int, ...], message: str, hint: str | None = None) -> PydanticCustomError:
    """An error of a validator that is about the key at `path` below the model, not about the model as a whole."""
    return PydanticCustomError(AT_KEY, "{message}", {"message": message, "path": path, "hint": hint})


AT_KEY = "wrong_at_key"
