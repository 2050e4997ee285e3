"""The recipe is strict: what it does not know, or cannot be, is an error."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from llamaduo.migrations.recipe import Preference, Recipe


def test_defaults_are_a_lora_with_a_fixed_number_of_steps() -> None:
    recipe = Recipe()
    assert (recipe.steps, recipe.rank, recipe.quantization, recipe.precision) == (100, 16, "none", "auto")
    assert (recipe.start, recipe.preference) == ("base", None)


def test_dpo_is_asked_for_by_an_empty_mapping() -> None:
    assert Recipe.model_validate({"preference": {}}).preference == Preference()


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 3},
        {"steps": 0},
        {"learning_rate": 0},
        {"warmup": 1.0},
        {"dropout": 1},
        {"quantization": "int8"},
        {"threads": 0},
        {"start": "last"},
        {"continued_rate": 0},
        {"preference": {"rows": 0}},
        {"preference": {"epochs": 1}},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(wrong)


def test_every_field_is_described() -> None:
    fields = {**Recipe.model_fields, **Preference.model_fields}
    undescribed = [name for name, field in fields.items() if not field.description]
    assert undescribed == []
