"""The teacher over the real client and a ledger in memory: good parts of bad answers, refusals, a spent budget."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llamaduo.bus.kv import MemoryKeyValue
from llamaduo.datasets import Message
from llamaduo.errors import BudgetExhausted, RetryableError
from llamaduo.migrations.spec import Budgets
from llamaduo.service_llm import Call, Reply, SendFailed, ServiceLLMClient
from services.synthesizer.asking import PairCheck, PairChecks, Pairs, TeacherPrompt
from services.synthesizer.teacher import ServiceTeacher
from tests.unit.service_llm_fakes import LLM

PAIRS = [{"prompt": f"question {number}", "answer": {"kind": number}} for number in range(4)]
WHOLE = json.dumps({"pairs": PAIRS})


class Provider:
    """Answers by the text of the prompt; counts what it was sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def __call__(self, call: Call, _key: str) -> Reply:
        asked = call.messages[-1]["content"]
        self.sent.append(asked)
        match asked:
            case "refuse":
                raise SendFailed("refused", "no such key")
            case "cut":
                return Reply(WHOLE[: WHOLE.index("question 3")], "length", 10, 5)
            case "one bad":
                return Reply(json.dumps({"pairs": [*PAIRS, {"prompt": "no answer"}]}), "stop", 10, 5)
            case "check":
                text = '{"checks": [{"number": 1, "keep": "no"}, {"number": "2"}, {"keep": true, "num'
                return Reply(text, "length", 10, 5)
            case "prose":
                return Reply("I cannot do that.", "stop", 10, 5)
            case "down":
                raise SendFailed("failed", "down", retry_after=10_000)
        return Reply(WHOLE, "stop", 10, 5)

    async def close(self) -> None:
        """Nothing to leave."""


def prompt(asked: str, *, typed: bool = True) -> TeacherPrompt:
    return TeacherPrompt(
        job="synthesis/1/0",
        messages=[Message(role="user", content=asked)],
        seed=1,
        output=Pairs if typed else None,
    )


def teacher(provider: Provider, budgets: Budgets | None = None) -> ServiceTeacher:
    client = ServiceLLMClient(
        ledger=MemoryKeyValue(),
        budget=MemoryKeyValue(),
        permits=MemoryKeyValue(),
        replica="test",
        send=provider,
    )
    return ServiceTeacher(client, LLM, budgets or Budgets(), migration="m", job="event")


async def test_the_good_part_of_a_bad_answer_is_kept() -> None:
    asked = ["whole", "cut", "one bad", "prose", "refuse"]
    answers = await teacher(Provider()).ask([prompt(one) for one in asked])
    assert [[pair.prompt for pair in answer.pairs] for answer in answers] == [
        ["question 0", "question 1", "question 2", "question 3"],
        ["question 0", "question 1", "question 2"],
        ["question 0", "question 1", "question 2", "question 3"],
        [],
        [],
    ]
    assert answers[0].pairs[0].answer == '{"kind": 0}'
    assert [bool(answer.error) for answer in answers] == [False, True, True, True, True]
    assert "no such key" in answers[4].error
    assert [answer.counts.made for answer in answers] == [1, 1, 1, 1, 0]
    assert [answer.work is not None for answer in answers] == [True, True, True, True, False]


async def test_the_good_part_of_a_cut_check_is_kept() -> None:
    asked = replace(prompt("check"), output=PairChecks)
    (given,) = await teacher(Provider()).ask([asked])
    assert given.checks == [PairCheck(number=1, keep=False)]
    assert given.error
    assert given.pairs == []


async def test_an_untyped_prompt_gets_its_text() -> None:
    answers = await teacher(Provider()).ask([prompt("prose", typed=False), prompt("refuse", typed=False)])
    assert [answer.text for answer in answers] == ["I cannot do that.", None]


async def test_work_that_ends_in_an_error_says_what_it_had_bought() -> None:
    asking = teacher(Provider(), Budgets(calls=3))
    await asking.ask([prompt("whole"), prompt("cut")])
    with pytest.raises(BudgetExhausted) as ended:
        await asking.ask([prompt("one bad"), prompt("prose")])
    assert ended.value.calls is not None
    assert (ended.value.calls.made, ended.value.calls.output_tokens) == (3, 15)


async def test_what_was_bought_is_not_bought_again() -> None:
    provider = Provider()
    asking = teacher(provider)
    first = await asking.ask([prompt("whole")])
    again = await asking.ask([prompt("whole")])
    assert provider.sent == ["whole"]
    assert [answer.pairs for answer in again] == [answer.pairs for answer in first]


async def test_a_spent_budget_and_a_provider_that_is_down_are_raised() -> None:
    with pytest.raises(BudgetExhausted):
        await teacher(Provider(), Budgets(calls=1)).ask([prompt("whole"), prompt("cut"), prompt("down")])
    with pytest.raises(RetryableError):
        await teacher(Provider()).ask([prompt("whole"), prompt("down")])
