"""Rows with tools: what the small model is taught and asked, how calls come back, and which new ones are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from llamaduo.bus.kv import MemoryKeyValue
from llamaduo.datasets import Message, Row, ShardRow, dump_rows, load_rows, load_shard, make_row
from llamaduo.errors import PermanentError
from llamaduo.event_parts import ArtifactRef, Candidate
from llamaduo.events import ResponsesRequested
from llamaduo.migrations.spec import Budgets
from llamaduo.service_llm import Call, Reply, ServiceLLMClient
from llamaduo.service_llm.prices import largest
from llamaduo.tool_calls import SaidAndCalled, ToolCall, as_openai, call_of, read_answer
from llamaduo.tools_in_words import in_words, tools_in_words, why_not_learnt
from services.emulator.chat import ChatRequest
from services.emulator.synthesis import check_pairs, write_pairs
from services.inference.answering import requests_for, shard_rows
from services.inference.engine import Generation
from services.judge import tool_call
from services.judge.sections import instruction_of
from services.synthesizer.asking import Pair, TeacherAnswer, TeacherPrompt
from services.synthesizer.called_tools import called_rightly
from services.synthesizer.fake_teacher import FakeTeacher
from services.synthesizer.filtering import Screen
from services.synthesizer.nearest import nearest_rows
from services.synthesizer.once import as_asked, as_taught
from services.synthesizer.prompting import synthesis_prompt
from services.synthesizer.references import reference_prompts, reference_rows
from services.synthesizer.seeding import SeedPlan, seed_pool
from services.synthesizer.synthesis import synthesize
from services.synthesizer.teacher import ServiceTeacher
from tests.unit.service_llm_fakes import LLM, call
from tests.unit.synthesizer_rows import row, some_splits, spec

FIND: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Find an order.",
        "parameters": {
            "type": "object",
            "properties": {"order": {"type": "string", "pattern": "^A[0-9]+$"}, "limit": {"type": "integer"}},
            "required": ["order"],
            "additionalProperties": False,
        },
    },
}
CLOSE: dict[str, Any] = {"type": "function", "function": {"name": "close"}}
SPOKEN = '{"tool_calls":[{"name":"find","arguments":{"limit":1,"order":"A1"}}]}'


def calling(user: str, order: str = "A1", tools: Sequence[dict[str, Any]] | None = (FIND,), **extra: Any) -> Row:
    """A row whose answer calls `find`."""
    calls = as_openai([ToolCall("find", {"order": order, "limit": 1})])
    answer = Message(role="assistant", content=extra.pop("says", ""), tool_calls=calls)
    asked = [Message(role="system", content="Help."), Message(role="user", content=user)]
    return make_row([*asked, answer], tools=list(tools) if tools else None, **extra)


def going_on(user: str) -> Row:
    """A row that answers in words after two calls of tools."""
    calls = as_openai([ToolCall("find", {"order": "A1"}), ToolCall("close", {})])
    return make_row(
        [
            Message(role="user", content=user),
            Message(role="assistant", content="", tool_calls=calls),
            Message(role="tool", content="paid", tool_call_id="0"),
            Message(role="tool", content="done", tool_call_id="1"),
            Message(role="assistant", content="It is closed."),
        ],
        tools=[FIND, CLOSE],
    )


def test_a_call_is_one_line_that_reads_back() -> None:
    assert calling("q").answer == SPOKEN
    assert calling("q", says="Let me see.").answer == f"Let me see.\n{SPOKEN}"
    for said in ("", "Let me see.", "Two\nlines"):
        whole = SaidAndCalled(said, (ToolCall("find", {"a": [1, "é\n"]}), ToolCall("close", {})))
        assert read_answer(whole.text) == whole
    assert load_rows(dump_rows([calling("q")])) == [calling("q")]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "find", "parameters": {"order": "A1", "limit": 1}}',
        '<tool_call>\n{"name": "find", "arguments": {"limit": 1, "order": "A1"}}\n</tool_call>',
        '[{"function": {"name": "find", "arguments": "{\\"order\\": \\"A1\\", \\"limit\\": 1}"}}]',
    ],
)
def test_calls_in_other_wordings_become_ours(text: str) -> None:
    assert read_answer(text).text == SPOKEN
    assert read_answer(f"I look.\n{text}" if "\n" not in text else f"I look.{text}").text == f"I look.\n{SPOKEN}"


@pytest.mark.parametrize(
    "text", ["It is paid.", '{"name": "find"', "{}", "[]", "", '{"name":"f","arguments":{"a":"\\ud800"}}', "[" * 500]
)
def test_what_is_no_call_stays_as_it_is(text: str) -> None:
    assert read_answer(text) == SaidAndCalled(text)


@pytest.mark.parametrize("call", [{}, {"id": "0", "name": "f"}, {"id": "0", "function": {"name": "f"}}])
def test_what_is_no_call_is_no_message(call: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="call of a tool"):
        Message(role="assistant", content="x", tool_calls=[call])


def test_a_conversation_in_words_takes_turns_and_holds_all() -> None:
    plain = in_words(going_on("close A1").messages, [FIND, CLOSE])
    assert [message.role for message in plain] == ["system", "user", "assistant", "user", "assistant"]
    assert all(message.tool_calls is None and message.tool_call_id is None for message in plain)
    assert plain[0].content == tools_in_words([FIND, CLOSE])
    lines = plain[0].content.splitlines()[-2:]
    assert json.loads(lines[0]) == FIND["function"] and lines[0].startswith('{"name":"find","description":')
    assert lines[1] == '{"name":"close"}'
    assert plain[2].content.startswith('{"tool_calls":[{"name":"find"')
    assert plain[3].content == "Result of find:\npaid\n\nResult of close:\ndone"
    told = in_words(calling("q").messages, [FIND])
    assert [message.role for message in told] == ["system", "user", "assistant"]
    assert told[0].content.startswith("Help.\n\n") and told[-1].content == SPOKEN
    assert in_words(row("q").messages, None) == row("q").messages


def test_the_small_model_is_asked_in_the_words_it_was_taught() -> None:
    event = ResponsesRequested(
        migration="m",
        candidate=Candidate(kind="base"),
        split="test",
        shard=0,
        of=1,
        size=2,
        rows=ArtifactRef(uri="blob:x", sha256="0" * 64, size=1, media_type="x"),
    )
    rows = [calling("q"), going_on("close A1")]
    asked = requests_for(rows, event, None)
    for one, request in zip(rows, asked, strict=True):
        taught = [message.model_dump() for message in in_words(one.messages, one.tools)]
        assert request.messages == taught[:-1]
        assert request.options == {}
    written = '<tool_call>{"name": "find", "arguments": {"order": "A1", "limit": 1}}</tool_call>'
    given = [Generation(request.row, [written, "no"], ["stop"] * 2, 1, 1) for request in asked]
    shard = load_shard(dump_rows(shard_rows(rows, given)))
    assert [one.tools for one in shard] == [[FIND], [FIND, CLOSE]]
    assert shard[0].answers == [SPOKEN, "no"]
    marks = [tool_call.compare(shard[0].reference, answer or "")[:2] for answer in shard[0].answers]
    assert marks == [(1.0, 1.0), (0.0, 0.0)]
    untouched = shard_rows([row("q")], [Generation(row("q").id, [written], ["stop"], 1, 1)])
    assert untouched[0].answers == [written] and b"tools" not in dump_rows(untouched)


def test_the_judge_sees_tools_and_calls_as_text() -> None:
    [shard] = shard_rows([going_on("close A1")], [Generation(going_on("close A1").id, ["x"], ["stop"], 1, 1)])
    shown = instruction_of(shard)
    assert '"name":"find","description":"Find an order."' in shown
    assert 'assistant: {"tool_calls":[' in shown and "tool: paid" in shown
    plain = ShardRow(row="a", messages=row("q").prompt, reference="r", answers=["x"])
    assert "tools" not in instruction_of(plain)


async def test_the_service_llm_is_asked_with_the_tools_and_their_price_counts() -> None:
    sent: list[Call] = []

    class Provider:
        async def __call__(self, call: Call, _key: str) -> Reply:
            sent.append(call)
            return Reply(SPOKEN, "stop", 1, 1)

        async def close(self) -> None:
            """Nothing to leave."""

    buckets = [MemoryKeyValue() for _ in range(3)]
    client = ServiceLLMClient(
        ledger=buckets[0], budget=buckets[1], permits=buckets[2], replica="test", send=Provider()
    )
    teacher = ServiceTeacher(client, LLM, Budgets(), migration="m", job="event")
    rows = [calling("q"), calling("q", tools=None), going_on("close A1")]
    answers = await teacher.ask(reference_prompts(rows, migration="m"))
    shard = reference_rows(rows, answers)
    assert [one.tools for one in shard] == [[FIND], None, [FIND, CLOSE]]
    assert shard[0].answers == [shard[0].reference]
    by_tools = {len(one.tools or ()): one for one in sent}
    assert by_tools.keys() == {0, 1, 2} and by_tools[1].key != by_tools[0].key
    assert largest(by_tools[1]).tokens > largest(by_tools[0]).tokens + len(tools_in_words([FIND]))
    assert [message["role"] for message in by_tools[2].messages][-2:] == ["tool", "tool"]
    with pytest.raises(ValueError, match="without tools"):
        call(schema=Pair, tools=[FIND])


async def test_a_provider_is_given_calls_and_results_and_its_calls_come_back_as_text() -> None:
    pytest.importorskip("pydantic_ai")
    from pydantic_ai.messages import (
        ModelMessage,
        ModelRequest,
        ModelResponse,
        ModelResponsePart,
        TextPart,
        ToolCallPart,
        ToolReturnPart,
    )
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.models.function import AgentInfo, FunctionModel

    from llamaduo.service_llm.providers import ProviderSender

    seen: list[tuple[list[ModelMessage], ModelRequestParameters]] = []
    answers: list[list[ModelResponsePart]] = [
        [TextPart("I look."), ToolCallPart("find", '{"order": "A1", "limit": 1}')],
        [ToolCallPart("find", "no JSON")],
        [ToolCallPart("find", '{"order": "\\ud800"}')],
    ]

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append((messages, info.model_request_parameters))
        return ModelResponse(parts=answers[len(seen) - 1])

    class Sender(ProviderSender):
        def _model(self, _llm: object) -> Any:
            return FunctionModel(answer)

    asked = [message.model_dump() for message in going_on("close A1").prompt]
    reply = await Sender({})(Call(asked, LLM, "m", "job", tools=[FIND, CLOSE]), "key")
    assert (reply.text, reply.finish_reason in ("stop", "other")) == (f"I look.\n{SPOKEN}", True)
    messages, parameters = seen[0]
    assert [(tool.name, tool.description) for tool in parameters.function_tools] == [
        ("find", "Find an order."),
        ("close", None),
    ]
    assert parameters.function_tools[0].parameters_json_schema == FIND["function"]["parameters"]
    assert parameters.allow_text_output
    assert isinstance(messages[1], ModelResponse) and isinstance(messages[2], ModelRequest)
    assert [part.tool_name for part in messages[1].parts if isinstance(part, ToolCallPart)] == ["find", "close"]
    returned = [part for part in messages[2].parts if isinstance(part, ToolReturnPart)]
    assert [(part.tool_name, part.content, part.tool_call_id) for part in returned] == [
        ("find", "paid", "0"),
        ("close", "done", "1"),
    ]
    wrong = await Sender({})(Call(asked, LLM, "m", "job", tools=[FIND]), "key")
    assert wrong.text == "find(no JSON)"
    half = await Sender({})(Call(asked, LLM, "m", "job", tools=[FIND]), "key")
    assert half.text == '{"tool_calls":[{"name":"find","arguments":{"order":"?"}}]}'


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (SPOKEN, SPOKEN),
        (f"I look.\n{SPOKEN}", f"I look.\n{SPOKEN}"),
        ('{"name": "find", "arguments": {"order": "A1", "limit": 1}}', SPOKEN),
        ('{"name": "close", "arguments": {"any": 1}}', '{"tool_calls":[{"name":"close","arguments":{"any":1}}]}'),
        ('{"name": "seek", "arguments": {"order": "A1"}}', None),
        ('{"name": "find", "arguments": {"order": "B1"}}', None),
        ('{"name": "find", "arguments": {"limit": 1}}', None),
        ('{"name": "find", "arguments": {"order": "A1", "colour": "red"}}', None),
        (f'[{SPOKEN}, {{"name": "find", "arguments": {{}}}}]', None),
        ('{"name": "find", "arguments": ', None),
        ("It is paid.", None),
    ],
)
def test_a_new_call_must_be_one_that_the_tool_allows(answer: str, kept: str | None) -> None:
    assert called_rightly(answer, [FIND, CLOSE], words_too=False) == kept
    in_words_only = "It is paid." if answer == "It is paid." else kept
    assert called_rightly(answer, [FIND, CLOSE], words_too=True) == in_words_only


def test_a_tool_without_a_usable_schema_holds_no_call_back() -> None:
    answer = '{"tool_calls":[{"name":"odd","arguments":{"a":1}}]}'
    for schema in ({"type": "nonsense"}, {"$ref": "https://elsewhere.example/schema"}):
        odd = {"type": "function", "function": {"name": "odd", "parameters": schema}}
        assert called_rightly(answer, [odd], words_too=False) == answer


def test_what_is_dropped_is_counted_by_its_name() -> None:
    splits = some_splits()
    splits["train"] = [calling(one.user_text) for one in splits["train"]]
    screen = Screen(splits, 90)
    fresh = [Pair(prompt=f"where is the parcel number {n}, friends", answer=SPOKEN) for n in range(2)]
    assert screen.admit(fresh[0], [FIND]) == fresh[0]
    assert screen.admit(Pair(prompt="entirely other words than before", answer="in words"), [FIND]) == "invalid_call"
    splits["train"].append(going_on("close A1").model_copy(update={"tools": [FIND]}))
    assert (
        Screen(splits, 90).admit(Pair(prompt="yet others than before", answer="in words"), [FIND]) == "invalid_call"
    )
    splits["train"].append(row("and this one", "in words", tools=[FIND]))
    words = Pair(prompt="entirely other words than before", answer="in words")
    assert Screen(splits, 90).admit(words, [FIND]) == words


def test_only_questions_are_examples() -> None:
    assert seed_pool([going_on("close A1"), calling("q")]) == [calling("q")]
    assert seed_pool([going_on("close A1")]) == []
    assert why_not_learnt([going_on("close A1"), calling("q")]) is None


async def test_new_rows_keep_the_tools_of_their_examples_and_call_them() -> None:
    splits = some_splits()
    other = {"type": "function", "function": {**FIND["function"], "description": "Another."}}
    splits["train"] = [
        calling(one.user_text, tools=[FIND] if n % 2 else [other]) for n, one in enumerate(splits["train"])
    ]
    tools_of = {one.id: one.tools for one in splits["train"]}

    def answer(prompt: TeacherPrompt) -> TeacherAnswer:
        good = [
            Pair(prompt=f"{prompt.seed} asks {word * 5}", answer=f'{{"name":"find","arguments":{{"order":"A{n}"}}}}')
            for n, word in enumerate(("abc", "def", "ghi"))
        ]
        bad = Pair(prompt=f"{prompt.seed} is {'xyz' * 5}", answer='{"name":"find","arguments":{"order":7}}')
        return TeacherAnswer(pairs=[*good, bad])

    teacher = FakeTeacher(answer)
    made = await synthesize(
        splits=splits,
        failures=[],
        spec=spec(rows_per_round=20, strategy="uniform"),
        migration="m",
        round_number=1,
        teacher=teacher,
    )
    assert len(made.rows) == 20 and made.removed["invalid_call"] >= 6 and made.removed["malformed"] == 0
    for one in made.rows:
        assert one.lineage is not None
        assert [tools_of[seed] for seed in one.lineage.seeds] == [one.tools] * len(one.lineage.seeds)
        calls = one.messages[-1].tool_calls or []
        assert [call_of(each).name for each in calls] == ["find"] and one.messages[-1].content == ""
    assert {one.tools[0]["function"]["description"] for one in made.rows if one.tools} == {
        "Find an order.",
        "Another.",
    }
    shown = teacher.asked[0].messages[1].content
    assert '{"name":"find","description":' in shown and json.dumps(SPOKEN)[1:-1] in shown
    with pytest.raises(PermanentError, match="goes on after a tool"):
        await synthesize(
            splits={**splits, "train": [going_on("close A1")]},
            failures=[],
            spec=spec(),
            migration="m",
            round_number=1,
            teacher=teacher,
        )


def test_prompts_without_tools_are_what_they_were() -> None:
    rows = [row(f"message {n}", "x", system="") for n in range(10)]
    prompt = synthesis_prompt(
        migration="m",
        round_number=1,
        call=0,
        task="t",
        seeds=SeedPlan("m", 1, rows, [], [], "uniform", 1.0).seeds(0),
        pairs=1,
        test={},
    )
    assert "tools" not in prompt.messages[1].content
    assert reference_prompts(rows, migration="m")[0].tools is None


def test_a_server_of_ones_own_is_asked_as_the_model_was_taught() -> None:
    rows = [calling("where is A1"), row("q", response_format={"type": "json_object"})]
    asked = as_taught(rows, spec())
    assert asked[0].messages == in_words(rows[0].messages, [FIND]) and asked[0].tools is None
    assert asked[1] == rows[1]
    assert as_taught(rows, spec().model_copy(update={"tool_wording": "template"})) == rows
    written = '<tool_call>{"name": "find", "arguments": {"order": "A1", "limit": 1}}</tool_call>'
    shard = reference_rows(asked, [TeacherAnswer(text=written), TeacherAnswer(text=written)])
    given, plain = (as_asked(one, answered) for one, answered in zip(rows, shard, strict=True))
    assert (given.answers, given.tools, given.messages) == ([SPOKEN], [FIND], rows[0].prompt)
    assert given.reference == SPOKEN and plain.answers == [written]


def test_the_emulator_writes_and_checks_calls() -> None:
    def asked(text: str) -> ChatRequest:
        return ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": text}]})

    example = json.dumps({"prompt": "x", "answer": SPOKEN})
    made = write_pairs(asked(f"{example}\nWrite 4 new pairs"))
    assert len(made) == 4
    assert all([call.name for call in read_answer(pair["answer"]).calls] == ["find"] for pair in made)
    wrong = {**made[1], "answer": SPOKEN}
    lines = [json.dumps({"number": n, **pair}) for n, pair in enumerate([made[0], wrong])]
    assert [check["keep"] for check in check_pairs(asked("\n".join(lines)))] == [True, False]


def test_the_nearest_answer_is_a_call_too() -> None:
    [near] = nearest_rows([calling("where is A1")], [calling("where is A2", "A2")])
    assert near.answers == [SPOKEN] and near.tools == [FIND]
