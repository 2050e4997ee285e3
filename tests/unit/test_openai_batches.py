"""Batches by the real `openai` client against the emulator: what is sent, what comes back, what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import BaseModel

from llamaduo.bus.kv import MemoryKeyValue
from llamaduo.errors import ServiceLLMRefused
from llamaduo.migrations.spec import Budgets, ServiceLLM
from llamaduo.service_llm import Answer, Call, Mark100, Reply, SendFailed, ServiceLLMClient, ServiceLLMMisconfigured
from llamaduo.service_llm.openai_batches import OpenAIBatches, read_answers
from tests.unit.test_emulator_server import RECORD, Server, emulator

KEY = "sk-test-5f0c8a"
JUDGED = (
    "<instruction>\nWhere is my tent?\n</instruction>\n<reference>\n{}\n</reference>\n<candidate>\n{}\n</candidate>"
)


class Marks(BaseModel):
    similarity_reason: str
    similarity: Mark100
    precision_reason: str
    precision: Mark100


def llm_at(server: Server, **more: Any) -> ServiceLLM:
    return ServiceLLM.model_validate(
        {"model": "openai:teacher", "base_url": f"{server.root}/v1", "requests_per_minute": 60_000, **more}
    )


def ask(llm: ServiceLLM, number: int = 0, **more: Any) -> Call:
    messages = [{"role": "user", "content": f"Where is my yoga mat? Order A48{number:02}. This is urgent!"}]
    return Call(**{"messages": messages, "llm": llm, "migration": "m", "job": "j", "max_tokens": 99, **more})


def marks_of(llm: ServiceLLM) -> Call:
    return ask(llm, messages=[{"role": "user", "content": JUDGED}], schema=Marks, seed=7, temperature=0.0)


def client(batches: OpenAIBatches | None = None) -> ServiceLLMClient:
    return ServiceLLMClient(
        ledger=MemoryKeyValue(),
        budget=MemoryKeyValue(),
        permits=MemoryKeyValue(),
        replica="test",
        send_batches=batches,
    )


async def answers(llm: ServiceLLM, calls: list[Call], budgets: Budgets | None = None) -> list[Answer]:
    asking = client()
    try:
        results = await asking.ask_all(calls, budgets or Budgets())
    finally:
        await asking.close()
    for one in results:
        if not isinstance(one, Answer):
            raise one
    return [one for one in results if isinstance(one, Answer)]


async def test_a_call_is_the_same_in_a_batch_as_online_typed_or_not() -> None:
    async with emulator(batch_ms=0) as server, emulator(batch_ms=0) as other:
        batched = llm_at(server, batch=True)
        form = {"type": "json_object"}
        calls = [ask(batched), marks_of(batched), ask(batched, 1, response_format=form)]
        in_batch = await answers(batched, calls)
        online_llm = llm_at(other)
        online = await answers(
            online_llm, [ask(online_llm), marks_of(online_llm), ask(online_llm, 1, response_format=form)]
        )
        assert [one.key for one in in_batch] == [one.key for one in online]
        for mine, theirs in zip(in_batch, online, strict=True):
            assert (mine.text, mine.finish_reason, mine.shape) == (theirs.text, theirs.finish_reason, theirs.shape)
            assert (mine.input_tokens, mine.output_tokens) == (theirs.input_tokens, theirs.output_tokens)
        assert [one.batched for one in (*in_batch, *online)] == [True] * 3 + [False] * 3

        batch = await only_batch(server)
        lines = await lines_of(server, batch["input_file_id"])
        assert [line["custom_id"] for line in lines] == [call.key for call in calls]
        typed = lines[1]["body"]
        assert typed["response_format"]["json_schema"]["name"] == "Marks"
        assert (typed["model"], typed["seed"], typed["temperature"]) == ("teacher", 7, 0.0)
        assert typed["max_completion_tokens"] == 99 and not typed.get("stream")
        assert lines[2]["body"]["response_format"] == form
        _, ledger = await server.get("/emulator/ledger")
        totals: Any = ledger["totals"]
        assert totals["batched"] == totals["completed"] == 3
        assert totals["billed_tokens"] == (totals["prompt_tokens"] + totals["completion_tokens"]) / 2


async def only_batch(server: Server) -> dict[str, Any]:
    _, listed = await server.get("/v1/batches")
    batches: Any = listed["data"]
    assert len(batches) == 1
    return dict(batches[0])


async def lines_of(server: Server, file: str) -> list[dict[str, Any]]:
    async with server.client() as openai:
        content = await openai.files.content(file)
    return [json.loads(line) for line in content.text.splitlines()]


async def test_rows_that_fail_or_expire_are_asked_online_and_nothing_is_answered_twice() -> None:
    async with emulator(batch_ms=0, batch_expired_rate=0.3, error_rate=0.2, seed=3) as server:
        llm = llm_at(server, batch=True)
        given = await answers(llm, [ask(llm, number) for number in range(24)])
        _, ledger = await server.get("/emulator/ledger")
        counted: Any = ledger
        batch = await only_batch(server)
        assert batch["status"] == "expired" and batch["error_file_id"] and batch["output_file_id"]
        in_batch = sum(one.batched for one in given)
        assert in_batch == batch["request_counts"]["completed"] == counted["totals"]["batched"]
        assert 6 < in_batch < 20 and counted["totals"]["failed_500"] > 0
        assert {key["completed"] for key in counted["keys"].values()} == {1}
        assert all(bool(one.failed) != one.batched for one in given)


async def test_bad_answers_are_read_as_online() -> None:
    async with emulator(batch_ms=0, refusal_rate=0.5, cut_rate=0.5) as server:
        llm = llm_at(server, batch=True)
        asking = client()
        results = await asking.ask_all([ask(llm, number) for number in range(12)], Budgets())
        await asking.close()
        cut = [one for one in results if isinstance(one, Answer)]
        refused = [one for one in results if isinstance(one, ServiceLLMRefused)]
        assert len(cut) + len(refused) == 12 and cut and refused
        assert {one.finish_reason for one in cut} == {"length"}
        assert all("content filter" in str(one) for one in refused)


async def test_a_server_without_batches_and_a_wrong_key_are_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with emulator(api_key="sk-right") as server:
        llm = llm_at(server, batch=True)
        with pytest.raises(ServiceLLMRefused, match="Incorrect API key") as refused:
            await answers(llm, [ask(llm)])
        assert KEY not in str(refused.value) and "\n" not in str(refused.value)
        nowhere = llm_at(server, batch=True, base_url=f"{server.root}/nothing/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
        with pytest.raises(ServiceLLMRefused, match="takes no batches, leave batch out"):
            await answers(nowhere, [ask(nowhere)])


async def test_a_provider_that_speaks_otherwise_is_not_asked() -> None:
    llm = ServiceLLM.model_validate({"model": "anthropic:claude-x", "batch": True})
    with pytest.raises(ServiceLLMMisconfigured, match="anthropic is not asked in batches"):
        await answers(llm, [ask(llm)])


async def test_a_batch_is_found_by_its_tag_looked_at_cancelled_and_lost() -> None:
    environment: Mapping[str, str] = {}
    async with emulator(batch_ms=1e9) as server, emulator() as restarted:
        llm, batches = llm_at(server, batch=True), OpenAIBatches(environment)
        sent = await batches.start(llm, "tag-1", [ask(llm)])
        await batches.start(llm, "tag-2", [ask(llm, 1)])
        assert await batches.find(llm, "tag-1", 0.0) == sent
        assert await batches.find(llm, "tag-3", 0.0) is None
        seen = await batches.look(llm, sent)
        assert (seen.status, seen.ended, seen.done, seen.total) == ("in_progress", False, 0, 1)
        await batches.cancel(llm, sent)
        await batches.cancel(llm, sent)
        seen = await batches.look(llm, sent)
        assert (seen.status, seen.ended, seen.rejected) == ("cancelled", True, "")
        assert await batches.replies(llm, sent, {ask(llm).key: ask(llm)}) == {}
        gone = await batches.look(llm_at(restarted, batch=True), sent)
        assert gone.lost and gone.ended
        await batches.close()


async def test_a_batch_that_the_provider_rejects_says_why() -> None:
    async with emulator() as server, server.client() as openai:
        file = await openai.files.create(file=("x.jsonl", b'{"custom_id": "a"}\n'), purpose="batch")
        made = await openai.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        batches = OpenAIBatches({})
        seen = await batches.look(llm_at(server, batch=True), made.id)
        assert seen.ended and seen.rejected == "line 1 is no request of a batch" and not seen.full
        await batches.close()


async def test_lines_that_nobody_can_read_do_not_end_the_rest() -> None:
    """Broken lines, foreign ids, and what is a refusal, no answer at all, or not done."""
    llm = ServiceLLM.model_validate({"model": "openai:teacher", "base_url": "http://127.0.0.1:1/v1", "batch": True})
    calls = {one.key: one for one in (ask(llm, number) for number in range(5))}
    good, refused, unknown, late, missing = calls
    choice = {"index": 0, "message": {"role": "assistant", "content": RECORD}, "finish_reason": "stop"}
    body = {"object": "chat.completion", "id": "x", "created": 1, "model": "teacher", "choices": [choice]}
    lines: list[dict[str, Any]] = [
        {"custom_id": "foreign", "response": {"status_code": 200, "body": body}},
        {"custom_id": good, "response": {"status_code": 200, "body": body}},
        {"custom_id": good, "response": {"status_code": 500, "body": {}}},
        {"custom_id": refused, "response": {"status_code": 400, "body": {"error": {"message": "no"}}}},
        {"custom_id": unknown, "response": {"status_code": 200, "body": {"nothing": "of use"}}},
        {"custom_id": late, "response": None, "error": {"code": "batch_expired", "message": "too late"}},
    ]
    text = "\n".join(["{broken", *(json.dumps(line) for line in lines), "[]"])
    found = await read_answers(llm, text, calls)
    answer = found[good]
    assert isinstance(answer, Reply) and answer.text == RECORD
    kinds = {key: one.kind for key, one in found.items() if isinstance(one, SendFailed)}
    assert kinds == {refused: "refused", unknown: "unknown", late: "failed"} and missing not in found
