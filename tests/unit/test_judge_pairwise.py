"""Pairwise counts only what the judge says in both orders."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from llamaduo.datasets import ShardRow
from llamaduo.errors import BudgetExhausted, ServiceLLMRefused
from llamaduo.evaluators import Score, Scored, Task
from llamaduo.service_llm import Call, Reply, SendFailed
from services.emulator.judging import prefer
from services.judge.catalogue import make
from services.judge.pairwise import Choice, pairwise_calls
from tests.unit.judge_tasks import row, task
from tests.unit.service_llm_fakes import Buckets, FakeProvider, VirtualClock

Judge = Callable[[str, str], str]
"""(first answer, second answer) -> what is better"""


def said(better: str) -> Reply:
    return Reply(json.dumps({"reason": "it lacks the date", "better": better}), "stop", 10, 5)


async def compared(judge: Judge, *rows: ShardRow, of: Task | None = None) -> tuple[list[Score], FakeProvider, Scored]:
    clock = VirtualClock()

    def reply(asked: Call) -> Reply:
        text = asked.messages[1]["content"]
        first, second = (text.split(f"<{name}>\n")[1].split(f"\n</{name}>")[0] for name in ("first", "second"))
        return said(judge(first, second))

    provider = FakeProvider(clock, reply=reply)
    result = await clock.run(make("pairwise", Buckets().client(provider, clock)).score(rows, of or task()))
    assert isinstance(result, Scored)
    return result.scores, provider, result


def honest(first: str, second: str) -> str:
    return "neither" if len(first) == len(second) else ("first" if len(first) > len(second) else "second")


async def test_only_agreement_counts() -> None:
    rows = [row("a", "good", "better!", "bad", "fair"), row("b", "good", "better!")]
    scores, provider, result = await compared(honest, *rows)
    assert [one.value for one in scores] == [1.0, 0.0, 0.5, 1.0]
    assert [one.reason for one in scores[:3]] == [
        "better in both orders: it lacks the date",
        "worse in both orders: it lacks the date",
        "as good as the reference",
    ]
    assert (result.calls.made, provider.paid.total()) == (8, 8)


@pytest.mark.parametrize("place", ["first", "second"])
async def test_a_judge_that_goes_by_the_place_says_nothing(place: str) -> None:
    scores, _, _ = await compared(lambda _first, _second: place, row("a", "good", "better!", "bad"))
    assert [(one.value, one.reason) for one in scores] == [(0.5, "the order decided, so it is a tie")] * 2


async def test_half_a_preference_is_a_tie() -> None:
    scores, _, _ = await compared(
        lambda first, _: "first" if first == "better!" else "neither", row("a", "x", "better!")
    )
    assert [one.value for one in scores] == [0.5]


async def test_what_needs_no_judge_is_not_asked() -> None:
    scores, provider, _ = await compared(honest, row("a", "good", " good\n", "  ", None), row("b", "good", "better!"))
    assert [one.value for one in scores] == [0.5, 0.0, None, 1.0]
    assert provider.paid.total() == 2


async def test_an_unreadable_or_refused_half_abstains_and_a_wrong_key_is_no_mark() -> None:
    clock = VirtualClock()
    answers: list[Reply | SendFailed] = [
        said("first"),
        Reply("hm", "stop", 1, 1),
        SendFailed("refused", "no"),
        said("first"),
    ]
    provider = FakeProvider(clock, reply=lambda _: answers[len(provider.sends) - 1])
    made = make("pairwise", Buckets().client(provider, clock))
    result = await clock.run(made.score([row("a", "good", "bad"), row("b", "good", "bad")], task()))
    assert isinstance(result, Scored)
    assert [one.value for one in result.scores] == [None, None]
    assert all(one.reason for one in result.scores)
    refusing = FakeProvider(clock, reply=lambda _: SendFailed("refused", "401"))
    with pytest.raises(ServiceLLMRefused):
        await clock.run(make("pairwise", Buckets().client(refusing, clock)).score([row("a", "good", "bad")], task()))
    with pytest.raises(BudgetExhausted):
        await compared(honest, row("a", "good", "bad"), of=task(budgets={"calls": 1}))


def test_the_two_calls_differ_in_order_alone_and_do_not_name_the_reference() -> None:
    one, other = pairwise_calls(row("a", "REF", "x"), "CAND", task())
    assert one.key != other.key and one.messages[0] == other.messages[0]
    assert "REF" in one.messages[1]["content"].split("<second>")[1]
    assert "REF" in other.messages[1]["content"].split("<second>")[0]
    assert "reference" not in "".join(message["content"] for message in (*one.messages, *other.messages)).lower()
    assert list(Choice.model_json_schema()["properties"]) == ["reason", "better"]


@pytest.mark.parametrize(
    ("first", "second", "better"),
    [("{right}", "{wrong}", "first"), ("no", "{right}", "second"), ("{right}", "{right}", "neither")],
)
def test_the_emulated_judge_prefers_the_right_fields(first: str, second: str, better: str) -> None:
    right = '{"intent":"refund","product":"tent","order":"A1234","urgency":"low"}'
    wrong = right.replace("tent", "lamp")
    asked = row("a", "r", "x", prompt="Please refund the tent of order A1234. No rush.")
    texts = [text.replace("{right}", right).replace("{wrong}", wrong) for text in (first, second)]
    call, _ = pairwise_calls(asked.model_copy(update={"reference": texts[1]}), texts[0], task())
    assert prefer(call.messages[1]["content"]).better == better
