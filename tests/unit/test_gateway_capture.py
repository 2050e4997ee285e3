"""What a gateway keeps of its traffic, and that an answer never depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaduo.coverage_rows import row_of
from services.gateway.capture import sampled
from tests.gateway_servers import captured, gateway, stand_in
from tests.support import until
from tests.unit.test_gateway_answers import MESSAGES, ask, client, tree


async def test_prompt_and_answer_are_kept_as_a_row_that_a_coverage_dataset_can_hold(tmp_path: Path) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    async with (
        stand_in("service") as service,
        gateway(tree(service, mode="capture"), folder=tmp_path, THE_KEY="k") as (_, url),
    ):
        request_id = (await ask(url, tools=tools, user="ann", temperature=0.5))[2]
        [row] = captured(tmp_path)
    assert row["id"] == request_id and row["alias"] == "triage" and row["served_by"] == "service"
    assert row["request"] == {"messages": MESSAGES, "tools": tools}
    learnt = row_of(row)
    assert [message.content for message in learnt.messages] == ["Where is my mat?", "said by service"]
    assert "key-of-the-application" not in str(row)


async def test_a_streamed_answer_is_kept_whole_before_the_caller_can_know_of_its_end(tmp_path: Path) -> None:
    async with (
        stand_in("service") as service,
        gateway(tree(service, mode="capture"), folder=tmp_path, THE_KEY="k") as (_, url),
    ):
        stream = await client(url).chat.completions.create(model="triage", messages=MESSAGES, stream=True)
        async for _ in stream:
            pass
        [row] = captured(tmp_path)
    assert row["response"]["choices"][0]["message"]["content"] == "said by service"


@pytest.mark.parametrize("mode", ["service", "local"])
async def test_other_modes_keep_nothing(tmp_path: Path, mode: str) -> None:
    async with (
        stand_in("service") as service,
        gateway(tree(service, mode=mode), folder=tmp_path, THE_KEY="k") as (_, url),
    ):
        await ask(url)
        await ask(url, "gpt-4o")
    assert captured(tmp_path) == []


async def test_refusals_and_halves_of_answers_are_not_kept(tmp_path: Path) -> None:
    async with (
        stand_in("service") as service,
        gateway(tree(service, mode="capture"), folder=tmp_path, THE_KEY="k") as (_, url),
    ):
        for does in ("refuse", "error", "break_within"):
            service.does = does
            with pytest.raises(Exception, match=r".+"):
                stream = await client(url).chat.completions.create(model="triage", messages=MESSAGES, stream=True)
                async for _ in stream:
                    pass
    assert captured(tmp_path) == []


async def test_what_the_rules_name_is_replaced_before_anything_is_written(tmp_path: Path) -> None:
    rules = {"redact": ["email"], "patterns": {"thing": "mat"}}
    async with (
        stand_in("ann@example.org") as service,
        gateway(tree(service, mode="capture", capture=rules), folder=tmp_path, THE_KEY="k") as (_, url),
    ):
        assert (await ask(url))[0] == "said by ann@example.org"
        [row] = captured(tmp_path)
    assert row["request"]["messages"][0]["content"] == "Where is my [THING]?"
    assert row["response"]["choices"][0]["message"]["content"] == "said by [EMAIL]"


async def test_a_sample_keeps_its_share_and_the_answers_are_the_same(tmp_path: Path) -> None:
    assert 0.2 < sum(sampled(f"req_{n}", 0.25) for n in range(2000)) / 2000 < 0.3
    assert all(sampled(f"req_{n}", 1.0) for n in range(100)) and not any(sampled(f"req_{n}", 0.0) for n in range(100))
    async with (
        stand_in("service") as service,
        gateway(tree(service, mode="capture", capture={"sample": 0.5}), folder=tmp_path, THE_KEY="k") as (_, url),
    ):
        asked = [(await ask(url))[2] for _ in range(30)]
        assert [row["id"] for row in captured(tmp_path)] == [one for one in asked if sampled(one, 0.5)]


async def test_a_full_spool_costs_rows_and_no_answer(tmp_path: Path) -> None:
    async with (
        stand_in("service") as service,
        gateway(tree(service, mode="capture"), folder=tmp_path, spool_bytes=10, THE_KEY="k") as (_, url),
    ):
        assert (await ask(url))[0] == "said by service"
    assert captured(tmp_path) == []


async def test_a_disk_that_refuses_costs_rows_and_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> int:
        raise OSError(28, "no space left")

    async with (
        stand_in("service") as service,
        gateway(tree(service, mode="capture"), folder=tmp_path, THE_KEY="k") as (_, url),
    ):
        monkeypatch.setattr("services.gateway.spool.os.write", refuses)
        assert (await ask(url))[0] == "said by service"
        monkeypatch.undo()
        await ask(url)
        assert len(captured(tmp_path)) == 1


async def test_what_is_too_large_is_passed_on_and_not_kept_and_what_is_large_is_kept(tmp_path: Path) -> None:
    long: Any = [{"role": "user", "content": "x" * 200_000}]
    async with stand_in("service" + "y" * 100_000) as service:
        file = tree(service, mode="capture")
        async with gateway(file, folder=tmp_path / "large", THE_KEY="k") as (_, url):
            answer = await client(url).chat.completions.create(model="triage", messages=long)
        [row] = captured(tmp_path / "large")
        assert row["response"]["choices"][0]["message"]["content"] == answer.choices[0].message.content
        file = tree(service, mode="capture", capture={"most_bytes": 1000})
        async with gateway(file, folder=tmp_path / "too large", THE_KEY="k") as (_, url):
            assert (await ask(url))[0].startswith("said by service")
    assert captured(tmp_path / "too large") == []


async def test_in_the_shadow_the_local_model_answers_too_and_nobody_waits_for_it(tmp_path: Path) -> None:
    async with (
        stand_in("service") as service,
        stand_in("local") as local,
        gateway(tree(service, local, mode="shadow"), folder=tmp_path, THE_KEY="k") as (_, url),
    ):
        local.does = "hang"
        assert (await ask(url))[:2] == ("said by service", "service")

        async def local_is_asked() -> bool:
            return len(local.asked) == 1

        await until(local_is_asked, what="the shadow's request")
        local.does = "answer"
        stream = await client(url).chat.completions.create(model="triage", messages=MESSAGES, stream=True)
        async for _ in stream:
            pass

        async def both() -> bool:
            return len(captured(tmp_path)) == 3

        await until(both, what="the shadow's answer")
        rows = captured(tmp_path)
        assert [row["served_by"] for row in rows] == ["service", "service", "local"]
        assert rows[2]["shadow_of"] == rows[1]["id"] == rows[2]["id"].removesuffix("-shadow")
        assert rows[2]["response"]["choices"][0]["message"]["content"] == "said by local"
        assert local.asked[-1]["model"] == "m-1-r2" and "stream" not in local.asked[-1]
