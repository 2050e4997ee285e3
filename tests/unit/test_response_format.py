"""The form that a row's answer was asked in goes along: to the small model, the service LLM, the judge, new rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamaduo.bus.kv import MemoryKeyValue
from llamaduo.datasets import ShardRow, dump_rows, load_shard
from llamaduo.event_parts import ArtifactRef, Candidate, FailingRow
from llamaduo.events import ResponsesRequested
from llamaduo.identity import content_digest
from llamaduo.migrations.spec import Budgets
from llamaduo.service_llm import Call, Reply, ServiceLLMClient
from llamaduo.service_llm.prices import largest
from services.inference.answering import requests_for, shard_rows
from services.inference.engine import Generation
from services.judge.llm_judge import judge_messages
from services.synthesizer.asking import Pair, TeacherAnswer, TeacherPrompt
from services.synthesizer.fake_teacher import FakeTeacher
from services.synthesizer.references import reference_prompts, reference_rows
from services.synthesizer.seeding import SeedPlan
from services.synthesizer.synthesis import synthesize
from services.synthesizer.teacher import ServiceTeacher
from tests.unit.service_llm_fakes import LLM, call
from tests.unit.synthesizer_rows import row, some_splits, spec

OBJECT: dict[str, Any] = {"type": "json_object"}
SCHEMA: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "triage", "strict": True, "schema": {"type": "object", "properties": {"kind": {}}}},
}
ASKED, FREE = row("asked", '{"kind": 1}', response_format=SCHEMA), row("free", "yes")


def test_the_small_model_is_asked_in_that_form() -> None:
    nowhere = ArtifactRef(uri="blob:x", sha256="0" * 64, size=1, media_type="x")
    event = ResponsesRequested(
        migration="m", candidate=Candidate(kind="base"), split="test", shard=0, of=1, size=2, rows=nowhere
    )
    first, second = requests_for([ASKED, FREE], event, None)
    assert (first.options, second.options) == ({"response_format": SCHEMA}, {})
    given = [Generation(one.row, ["x"], ["stop"], 1, 1) for one in (first, second)]
    shard = shard_rows([ASKED, FREE], given)
    assert [one.response_format for one in load_shard(dump_rows(shard))] == [SCHEMA, None]
    assert b"response_format" not in dump_rows(shard[1:])


def test_the_service_llm_is_asked_in_that_form() -> None:
    prompts = reference_prompts([ASKED, FREE], migration="m")
    assert [prompt.response_format for prompt in prompts] == [SCHEMA, None]
    shard = reference_rows([ASKED, FREE], [TeacherAnswer(text="x")] * 2)
    assert [one.response_format for one in shard] == [SCHEMA, None]


async def test_the_call_holds_the_form_and_its_price_and_key_count_it() -> None:
    sent: list[Call] = []

    class Provider:
        async def __call__(self, call: Call, _key: str) -> Reply:
            sent.append(call)
            return Reply("{}", "stop", 1, 1)

        async def close(self) -> None:
            """Nothing to leave."""

    buckets = [MemoryKeyValue() for _ in range(3)]
    client = ServiceLLMClient(
        ledger=buckets[0], budget=buckets[1], permits=buckets[2], replica="test", send=Provider()
    )
    teacher = ServiceTeacher(client, LLM, Budgets(), migration="m", job="event")
    prompts = reference_prompts([ASKED], migration="m") + reference_prompts([row("asked", "x")], migration="m")
    assert len(await teacher.ask(prompts)) == 2
    with_form, without = sorted(sent, key=lambda one: one.response_format is None)
    assert (with_form.response_format, without.response_format) == (SCHEMA, None)
    assert with_form.key != without.key
    assert largest(with_form).tokens >= largest(without).tokens + len(json.dumps(SCHEMA))


def test_a_call_without_a_form_keeps_its_key() -> None:
    plain = call()
    fields = {
        "model": plain.llm.model,
        "messages": [dict(message) for message in plain.messages],
        "schema": None,
        "max_tokens": plain.max_tokens,
        "temperature": None,
        "seed": None,
        "sample": 0,
    }
    assert plain.key == "call." + content_digest(fields)
    with pytest.raises(ValueError, match="one form"):
        call(schema=Pair, response_format=OBJECT)


def test_the_judge_is_shown_the_form() -> None:
    shard = ShardRow(row="a", messages=ASKED.prompt, reference="r", answers=["x"], response_format=SCHEMA)
    shown = judge_messages(shard, "x")[1]["content"]
    assert '"name":"triage"' in shown.split("</instruction>")[0]
    plain = judge_messages(shard.model_copy(update={"response_format": None}), "x")[1]["content"]
    assert "response_format" not in plain


@pytest.mark.parametrize("strategy", ["uniform", "targeted"])
def test_examples_of_one_call_ask_for_one_form(strategy: str) -> None:
    train = [row(f"message {n}", "x", response_format=(None, OBJECT, SCHEMA)[n % 3]) for n in range(30)]
    test = [row(f"message of {n}", "x") for n in range(4)]
    failures = [FailingRow(row=one.id, mark=0.0, reasons=[]) for one in test]
    plan = SeedPlan("m", 1, train, test, failures, strategy, 0.5)  # type: ignore[arg-type]
    chosen = [plan.seeds(call) for call in range(30)]
    for seeds in chosen:
        assert [one.response_format for one in seeds.rows] == [seeds.response_format] * len(seeds.rows)
    assert len({json.dumps(seeds.response_format) for seeds in chosen}) > 1


async def test_a_new_row_asks_for_the_form_of_its_examples() -> None:
    splits = some_splits()
    splits["train"] = [
        row(one.user_text, one.answer, response_format=SCHEMA if n % 2 else None)
        for n, one in enumerate(splits["train"])
    ]
    forms = {one.id: one.response_format for one in splits["train"]}

    def answer(prompt: TeacherPrompt) -> TeacherAnswer:
        pairs = [
            Pair(prompt=f"{prompt.seed} asks {word * 5}", answer='{"kind": "refund", "place": "x"}')
            for word in ("abc", "def", "ghi")
        ]
        return TeacherAnswer(pairs=pairs)

    made = await synthesize(
        splits=splits,
        failures=[],
        spec=spec(rows_per_round=20, strategy="uniform"),
        migration="m",
        round_number=1,
        teacher=FakeTeacher(answer),
    )
    assert made.rows
    for one in made.rows:
        assert one.lineage is not None
        assert [forms[seed] for seed in one.lineage.seeds] == [one.response_format] * len(one.lineage.seeds)
    assert {one.response_format is None for one in made.rows} == {True, False}


PROVIDERS: list[tuple[str, dict[str, Any], str | None, dict[str, Any] | None]] = [
    # (provider, asked for, mode of the output, schema that its own protocol is given)
    ("openai:gpt-4o", SCHEMA, None, None),
    ("openai:gpt-4o", OBJECT, None, None),
    ("test", SCHEMA, "native", SCHEMA["json_schema"]["schema"]),
    ("test", OBJECT, "prompted", {"type": "object"}),
]


@pytest.mark.parametrize(("provider", "form", "mode", "schema"), PROVIDERS)
def test_a_provider_is_asked_as_it_is_spoken_to(
    provider: str, form: dict[str, Any], mode: str | None, schema: dict[str, Any] | None
) -> None:
    pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.models.test import TestModel
    from pydantic_ai.providers.openai import OpenAIProvider

    from llamaduo.service_llm.providers import _parameters, _with_format

    model = (
        TestModel(profile={"supports_json_schema_output": True})
        if provider == "test"
        else OpenAIChatModel("gpt-4o", provider=OpenAIProvider(api_key="x"))
    )
    asked = call(response_format=form)
    settings, parameters = _with_format({}, asked, model), _parameters(asked, model)
    if mode is None:
        assert settings == {"extra_body": {"response_format": form}}
        assert (parameters.output_mode, parameters.output_object) == ("text", None)
    else:
        assert settings == {}
        assert parameters.output_mode == mode
        assert parameters.output_object is not None
        assert parameters.output_object.json_schema == schema
