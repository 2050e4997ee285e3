"""Label accuracy, JSON schema and tool calls: what counts as equal, and that reasons tell no more than they may."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamaduo.built_in_evaluators import NOISY
from llamaduo.errors import PermanentError
from llamaduo.evaluators import Score
from llamaduo.json_schemas import UnusableSchema
from services.judge import json_schema, label_accuracy, tool_call
from services.judge.catalogue import NAMES, make
from tests.unit.judge_tasks import row, task

FREE = [name for name in NAMES if make(name, None).cost_per_row == "free"]


def test_those_that_ask_a_service_llm_may_be_asked_again() -> None:
    assert {name for name in NAMES if make(name, None).noisy} == set(NOISY) == set(NAMES) - set(FREE)


async def marked(name: str, *rows: Any, **options: Any) -> list[Score]:
    scores = await make(name, None).score(list(rows), task(options=options))
    assert isinstance(scores, list)
    return scores


@pytest.mark.parametrize("name", FREE)
async def test_every_answer_is_marked_and_a_missing_one_abstains(name: str) -> None:
    evaluator = make(name, None)
    rows = [
        row("a", '{"x": 1}', '{"x": 1}', None, "").model_copy(update={"response_format": {"type": "json_object"}})
    ]
    scores = await evaluator.score(rows, task())
    assert isinstance(scores, list)
    assert [(one.sample, one.metric) for one in scores] == [(n, m) for n in range(3) for m in evaluator.metrics]
    for one in scores:
        limits = evaluator.metrics[one.metric]
        assert one.reason
        assert (one.value is None) == (one.sample == 1)
        assert one.value is None or limits.low <= one.value <= limits.high
    best = {one.metric: one.value for one in scores if one.sample == 0}
    assert set(best.values()) == {1.0}


@pytest.mark.parametrize("levels", [150, 250, 900])
@pytest.mark.parametrize("name", FREE)
async def test_deep_answers_and_references_are_marked(name: str, levels: int) -> None:
    deep = "[" * levels + "]" * levels
    called = json.dumps({"name": "f", "arguments": {"a": 0}}).replace("0", deep)
    for reference in ("x", deep, called):
        scores = await marked(name, row("a", reference, deep, called, '{"n": ' + "9" * 400 + "}"))
        assert len(scores) == 3 * len(make(name, None).metrics)


@pytest.mark.parametrize("name", FREE)
async def test_an_option_that_nobody_knows_is_an_error(name: str) -> None:
    with pytest.raises(PermanentError, match="no option 'shcema'"):
        await marked(name, row("a", "x", "x"), shcema={})


@pytest.mark.parametrize(
    "candidate",
    ["card arrival", "Card_Arrival", " card-arrival.\n", '"card arrival"', "ＣＡＲＤ arrival", "**card  arrival**."],
)
def test_a_label_is_the_same_however_it_is_spelled(candidate: str) -> None:
    assert label_accuracy.compare("card_arrival", candidate) == (True, "label: the same")


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [("1", "-1"), ("C", "C++"), ("card", "cards"), ("a b", "ab"), ("x", ""), ("é", "e"), ("*", "")],
)
def test_other_labels_are_others(reference: str, candidate: str) -> None:
    assert not label_accuracy.compare(reference, candidate)[0]


def test_a_reason_tells_labels_and_no_other_text() -> None:
    assert label_accuracy.compare("get_refund", '"Card_Lost".') == (
        False,
        "label: said <Card_Lost> instead of <get_refund>",
    )
    for answer in (
        "x" * 61,
        "refund\nof 12 €: call 555",
        "<refund>",
        "I think the customer, Jane Doe, wants: money",
        "",
    ):
        same, reason = label_accuracy.compare("card_lost", answer)
        assert (same, reason) == (False, "label: the answer is no label")
    assert label_accuracy.compare("A whole sentence, with a name: Jane.", "refund") == (False, "label: another one")


async def test_a_label_may_be_one_field_of_a_json_answer() -> None:
    rows = [
        row("a", '{"team": "sales", "x": 1}', '{"x": 2, "team": "Sales"}', '{"team": "it"}', "sales", '{"x": 1}'),
        row("b", '{"x": 1}', '{"team": "it"}'),
    ]
    scores = await marked("label-accuracy", *rows, field="team")
    assert [one.value for one in scores] == [1.0, 0.0, 0.0, 0.0, None]
    assert scores[1].reason == "label: said <it> instead of <sales>"
    with pytest.raises(PermanentError, match="'field' is a text"):
        await marked("label-accuracy", *rows, field=1)


SCHEMA = {
    "type": "object",
    "properties": {"team": {"enum": ["it", "sales"]}, "age": {"minimum": 0}, "tags": {"items": {"type": "string"}}},
    "required": ["team"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"team": "it", "age": 3}', "the schema allows it"),
        ('{"age": 3}', "missing: team"),
        ('{"team": "Jane Doe"}', "team breaks the rule 'enum'"),
        ('{"team": "it", "age": -1}', "age breaks the rule 'minimum'"),
        ('{"team": "it", "tags": ["a", 7]}', "tags[] breaks the rule 'type'"),
        ('{"team": "it", "Jane Doe owes": 1}', "the answer breaks the rule 'additionalProperties'"),
        ("[]", "the answer breaks the rule 'type'"),
        ("Sure: {}", "the answer is not one JSON value"),
        ("[" * 100_000, "the answer is not one JSON value"),
    ],
)
def test_the_schema_decides_and_the_reason_holds_no_value(answer: str, reason: str) -> None:
    assert json_schema.valid(SCHEMA, answer) == (reason == "the schema allows it", reason)


@pytest.mark.parametrize(
    ("asked", "schema"),
    [
        (SCHEMA, SCHEMA),
        (json.dumps(SCHEMA), SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}, SCHEMA),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "text"}, None),
    ],
)
def test_a_response_format_is_read_as_the_providers_write_it(asked: Any, schema: Any) -> None:
    assert json_schema.schema_of(asked) == schema


async def test_the_rows_schema_wins_over_the_specs_and_without_any_it_abstains() -> None:
    own = row("a", "-", "7").model_copy(update={"response_format": {"type": "integer"}})
    bad = row("b", "-", "7").model_copy(update={"response_format": {"type": "integr"}})
    away = row("c", "-", "7").model_copy(update={"response_format": {"$ref": "http://127.0.0.1:1/x"}})
    scores = await marked("json-schema", own, bad, away, row("d", "-", "7"), schema={"type": "string"})
    assert [one.value for one in scores] == [1.0, None, None, 0.0]
    assert scores[1].reason == "the schema cannot be used: it is no JSON Schema"
    assert scores[2].reason == "the schema cannot be used: it refers to a schema that is not in it"
    assert [one.value for one in await marked("json-schema", row("d", "-", "7"))] == [None]
    with pytest.raises(PermanentError, match="option 'schema': it is no JSON Schema"):
        await marked("json-schema", own, schema={"type": "strng"})


def test_a_schema_from_elsewhere_is_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[object] = []
    monkeypatch.setattr("urllib.request.urlopen", lambda request, *_, **__: fetched.append(request))
    with pytest.raises(UnusableSchema, match="not in it"):
        json_schema.valid({"$ref": "http://127.0.0.1:1/away"}, "7")
    assert not fetched


CALL = '{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}'


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        f"[{CALL}]",
        '{"name": "weather", "arguments": "{\\"days\\": 2.0, \\"city\\": \\"Oslo\\"}"}',
        '{"tool_calls": [{"id": "1", "type": "function", "function": ' + CALL + "}]}",
        f"<tool_call>\n{CALL}\n</tool_call>",
        CALL.replace("arguments", "parameters"),
    ],
)
def test_one_call_in_any_notation_is_the_same_call(text: str) -> None:
    assert tool_call.compare(CALL, text) == (1.0, 1.0, "the same calls")


OTHER = '{"name": "news", "arguments": {}}'


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        (CALL, CALL.replace("Oslo", "Rome"), (1.0, 0.5, "differing arguments: city")),
        (CALL, CALL.replace('"days"', '"Jane Doe"'), (1.0, 1 / 3, "differing arguments: days, an unasked one")),
        (CALL, OTHER, (0.0, 0.0, "1 calls are missing; 1 calls are unasked")),
        (CALL, "It will rain.", (0.0, 0.0, "no tool call can be read")),
        (CALL, CALL + CALL, (0.0, 0.0, "no tool call can be read")),
        ("It will rain.", "Sun!", (1.0, 1.0, "no tool is called")),
        ("It will rain.", CALL, (0.0, 0.0, "a tool is called where none should be")),
        (f"[{CALL}, {OTHER}]", f"[{OTHER}, {CALL}]", (1.0, 1.0, "the same calls")),
        (f"[{CALL}, {OTHER}]", OTHER, (0.5, 0.5, "1 calls are missing")),
        (CALL, f"[{CALL}, {CALL}]", (0.5, 0.5, "1 calls are unasked")),
        (OTHER, OTHER, (1.0, 1.0, "the same calls")),
    ],
)
def test_names_and_arguments_are_compared_apart(
    reference: str, candidate: str, expected: tuple[float, float, str]
) -> None:
    assert tool_call.compare(reference, candidate) == pytest.approx(expected)
