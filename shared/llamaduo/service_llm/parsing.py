"""Reads typed answers leniently: fences and prose around the JSON, answers cut off in the middle, single bad items.

What is read is still checked against the schema; the leniency ends where it would have to guess a value.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import from_json

from llamaduo.service_llm.call import Shape

S = TypeVar("S", bound=BaseModel)

_FENCE = re.compile(r"^\s*```[a-zA-Z0-9_-]*\s*\n?|\n?\s*```\s*$")
_CUT_NUMBER = re.compile(r"[-+.0-9eE]+$")
_OUT_OF = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:/|out of|of)\s*([0-9]+(?:\.[0-9]+)?)")
_MOST_STARTS = 20


def _mark(value: Any) -> Any:
    """`"85/100"`, `"85 %"` and `"85"` as the number they name; anything else unchanged, to be refused by its type."""
    if isinstance(value, bool):
        raise ValueError("a mark is a number")
    if not isinstance(value, str):
        return value
    text = value.strip().removesuffix("%").strip().lower()
    out_of = _OUT_OF.fullmatch(text)
    if out_of and float(out_of[2]) > 0:
        return 100 * float(out_of[1]) / float(out_of[2])
    return text


_Range = Annotated[float, Field(ge=0, le=100)]
Mark100 = Annotated[_Range, BeforeValidator(_mark, json_schema_input_type=_Range)]
"""A mark from 0 to 100 in a typed answer, however a model writes it."""


def parse_one(text: str, schema: type[S]) -> tuple[S | None, list[str]]:
    """The one object asked for, or None; and what was wrong with the answer.

    Several that differ are none: one of them may be quoted, from an answer that wants to be the judge's.
    """
    whole = [item for value in _values_of(text) if (item := _validated(value, schema)[0]) is not None]
    if whole:
        same = all(item == whole[0] for item in whole)
        return (whole[0], []) if same else (None, [f"the answer holds {len(whole)} different ones"])
    value, problems = _json_of(text)
    if value is None:
        return None, problems
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    item, problem = _validated(value, schema)
    return item, [*problems, *([problem] if problem else [])]


def parse_items(text: str, item: type[S], field: str) -> tuple[list[S], list[str]]:
    """The good items of the list under `field` (or of a bare list), and what was wrong with the rest."""
    value, problems = _json_of(text)
    if value is None:
        return [], problems
    raw = value.get(field) if isinstance(value, dict) else value
    if not isinstance(raw, list):
        return [], [*problems, f"there is no list {field!r}"]
    good: list[S] = []
    for number, one in enumerate(raw):
        read, problem = _validated(one, item)
        if read is not None:
            good.append(read)
        else:
            problems.append(f"{field}[{number}]: {problem}")
    return good, problems


def parse(text: str, schema: type[BaseModel]) -> tuple[list[BaseModel], list[str]]:
    """The good items of a typed answer: those of its only field where that is a list of models, else the object."""
    lists = {name: _item_of(field.annotation) for name, field in schema.model_fields.items()}
    if len(lists) == 1:
        name, item = next(iter(lists.items()))
        if item is not None:
            return parse_items(text, item, name)
    one, problems = parse_one(text, schema)
    return ([one] if one is not None else []), problems


def shape_of(text: str, schema: type[BaseModel]) -> Shape:
    """How a typed answer came: exactly as asked, otherwise but readable at least in part, or not at all."""
    try:
        value = json.loads(text)
        if schema.model_validate(value).model_dump(mode="json") == value:
            return "asked"
    except (ValueError, RecursionError):
        pass
    return "odd" if parse(text, schema)[0] else "unreadable"


def _item_of(annotation: Any) -> type[BaseModel] | None:
    arguments = get_args(annotation)
    if get_origin(annotation) is list and isinstance(arguments[0], type) and issubclass(arguments[0], BaseModel):
        return arguments[0]
    return None


def _validated(value: Any, schema: type[S]) -> tuple[S | None, str]:
    try:
        return schema.model_validate(value), ""
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return None, f"{'.'.join(map(str, first['loc'])) or 'the object'}: {first['msg']}"


def _json_of(text: str) -> tuple[Any, list[str]]:
    """The JSON object or list in a text, None where there is none; and what was wrong."""
    bare = _FENCE.sub("", text).strip()
    if not bare:
        return None, ["the answer is empty"]
    starts = [match.start() for match in re.finditer(r"[{\[]", bare)][:_MOST_STARTS]
    for start in starts:
        try:
            value, _ = json.JSONDecoder().raw_decode(bare, start)
        except (ValueError, RecursionError):
            continue
        if value and not _is_inside_cut(bare, starts[0], start):
            return value, []
    if starts:
        try:
            value = from_json(_CUT_NUMBER.sub("", bare[starts[0] :]), allow_partial=True)
        except ValueError:
            value = None
        if value:
            return value, ["the answer was cut off"]
    return None, ["the answer is not JSON"]


def _values_of(text: str) -> list[Any]:
    """The whole JSON objects and lists that stand one after the other in a text."""
    bare, after = _FENCE.sub("", text).strip(), 0
    found: list[Any] = []
    for start in [match.start() for match in re.finditer(r"[{\[]", bare)][:_MOST_STARTS]:
        if start < after:
            continue
        try:
            value, after = json.JSONDecoder().raw_decode(bare, start)
        except (ValueError, RecursionError):
            if _begins_a_cut_one(bare, start):
                return found
            continue
        found.append(value)
    return found


def _is_inside_cut(text: str, first: int, start: int) -> bool:
    """Whether a complete object found at `start` is only a part of a cut-off one that begins at `first`."""
    return start != first and _begins_a_cut_one(text, first)


def _begins_a_cut_one(text: str, start: int) -> bool:
    """Whether what begins at `start` is JSON as far as it goes."""
    try:
        return bool(from_json(text[start:], allow_partial=True))
    except ValueError:
        return False
