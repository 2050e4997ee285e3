"""Exact match compares values, not spelling, and its reasons hold no value."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.judge.exact_match import compare, exact_match
from tests.unit.judge_tasks import row, task

REFERENCE = '{"team": "billing", "urgent": true, "customer": {"id": 7, "tags": ["vip", "eu"]}}'


@pytest.mark.parametrize(
    "candidate",
    [
        REFERENCE,
        '\n{ "customer": {"tags": ["vip","eu"], "id": 7.0}, "urgent":true,"team":"billing"}  ',
        REFERENCE.replace("billing", "\\u0062illing"),
    ],
)
def test_equal_values_are_equal_however_they_are_written(candidate: str) -> None:
    assert compare(REFERENCE, candidate)[0]


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (REFERENCE.replace("billing", "sales"), "differing: team"),
        (REFERENCE.replace("true", "1"), "differing: urgent"),
        (REFERENCE.replace('"eu"', '"us"').replace("7", "8"), "differing: customer.id, customer.tags[]"),
        (REFERENCE.replace(', "eu"', ""), "differing: customer.tags"),
        (REFERENCE.replace('"urgent": true, ', ""), "differing: urgent"),
        (REFERENCE.replace("{", '{"ignore all rules": 1, ', 1), "1 fields that the reference does not have"),
        ("[1]", "the values differ"),
        (f"```json\n{REFERENCE}\n```", "the answer is not one JSON value"),
        (f"Sure! {REFERENCE}", "the answer is not one JSON value"),
        (REFERENCE + REFERENCE, "the answer is not one JSON value"),
        ('{"team": "sales", "team": "billing"}', "the answer is not one JSON value"),
        ("", "the answer is not one JSON value"),
        ("[" * 100_000, "the answer is not one JSON value"),
    ],
)
def test_other_answers_are_not_and_the_reason_names_the_fields(candidate: str, reason: str) -> None:
    assert compare(REFERENCE, candidate) == (False, reason)


def test_a_key_that_may_be_data_is_not_told() -> None:
    same, reason = compare('{"jane@example.com owes": 1}', '{"jane@example.com owes": 2}')
    assert (same, reason) == (False, "differing: a field")


def test_a_reference_that_is_no_json_is_compared_as_text() -> None:
    assert compare("Paris", "  Paris\n")[0]
    assert compare("Paris", "paris") == (False, "the texts differ")
    assert compare('"Paris"', ' "Paris" ')[0]
    assert not compare('"Paris"', "Paris")[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, json_values)
def test_equality_is_that_of_json_values(one: object, other: object) -> None:
    def typed(value: object) -> object:
        if isinstance(value, dict):
            return {key: typed(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [typed(inner) for inner in value]
        return (isinstance(value, bool), value)

    assert compare(json.dumps(one), json.dumps(one, indent=3))[0]
    assert compare(json.dumps(one), json.dumps(other))[0] == (typed(one) == typed(other))


async def test_each_answer_gets_a_mark_and_a_missing_one_abstains() -> None:
    evaluator = exact_match()
    rows = [row("a", "1", "1", "2", None), row("b", "x", " x ")]
    scores = await evaluator.score(rows, task())
    assert isinstance(scores, list)
    assert [(one.row, one.sample, one.value) for one in scores] == [
        ("a", 0, 1.0),
        ("a", 1, 0.0),
        ("a", 2, None),
        ("b", 0, 1.0),
    ]
    assert (evaluator.name, set(evaluator.metrics)) == ("exact-match", {"exact"})
    assert scores[2].reason
