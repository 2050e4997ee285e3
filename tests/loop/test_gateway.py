"""The gateway as a process: the official client against the emulator, streaming included."""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
from openai.types.chat import ChatCompletionToolParam

from benchmarks.gateway import through_a_cut
from benchmarks.limits import emulator
from llamaduo.artifacts import read_bytes
from llamaduo.events import AdapterLoaded, AdapterPromoted, AdapterRolledBack, Event, TrafficCaptured
from tests.gateway_servers import GatewayProcess, gateway_process, stand_in
from tests.simulated import trained
from tests.support import connected, nats_server, until

QUESTION: Any = [{"role": "user", "content": "Where is my yoga mat? Order A4821. This is urgent!"}]
RECORD = '{"intent":"delivery","product":"yoga mat","order":"A4821","urgency":"high"}'
SCHEMA: dict[str, object] = {"type": "object", "properties": {"intent": {"type": "string"}}}


async def test_the_official_client_works_unchanged_streaming_tools_and_schemas_included(tmp_path: Path) -> None:
    with emulator(tmp_path / "emulator", api_key="of-the-emulator") as url:
        service = {"base_url": url, "model": "scripted-teacher", "api_key_env": "THE_KEY"}
        tree = {"service": service, "aliases": {"triage": {}}}
        async with gateway_process(tmp_path / "gateway", tree, THE_KEY="of-the-emulator") as gateway:
            client = gateway.client()
            answer = await client.chat.completions.create(model="triage", messages=QUESTION)
            assert answer.choices[0].message.content == RECORD and answer.usage and answer.usage.completion_tokens

            stream = await client.chat.completions.create(
                model="triage", messages=QUESTION, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert said == RECORD and len(chunks) > 3 and chunks[-1].usage == answer.usage

            tool: ChatCompletionToolParam = {"type": "function", "function": {"name": "record", "parameters": SCHEMA}}
            called = await client.chat.completions.create(
                model="triage",
                messages=QUESTION,
                tools=[tool],
                tool_choice={"type": "function", "function": {"name": "record"}},
            )
            calls = called.choices[0].message.tool_calls
            assert calls and calls[0].type == "function" and calls[0].function.name == "record"

            async with client.chat.completions.stream(model="triage", messages=QUESTION) as events:
                assert (await events.get_final_completion()).choices[0].message.content == RECORD

            assert [model.id async for model in client.models.list()] == ["triage", "scripted-teacher"]

            def with_the_blocking_client() -> str | None:
                blocking = openai.OpenAI(base_url=gateway.url, api_key="any", max_retries=0)
                told = blocking.chat.completions.create(model="scripted-teacher", messages=QUESTION)
                return told.choices[0].message.content

            assert await asyncio.to_thread(with_the_blocking_client) == RECORD
        assert "of-the-emulator" not in gateway.log() and "key-of-the-application" not in gateway.log()


async def test_curl_works_too(tmp_path: Path) -> None:
    with emulator(tmp_path / "emulator") as url:
        tree = {"service": {"base_url": url, "model": "scripted-teacher"}, "aliases": {"triage": {}}}
        async with gateway_process(tmp_path / "gateway", tree) as gateway:
            body = '{"model": "triage", "stream": true, "messages": [{"role": "user", "content": "Where is it?"}]}'
            curl = await asyncio.create_subprocess_exec(
                "curl", "-sN", f"{gateway.url}/chat/completions", "-H", "content-type: application/json", "-d", body,
                stdout=subprocess.PIPE,
            )  # fmt: skip
            told, _ = await curl.communicate()
    assert told.startswith(b"data: ") and told.endswith(b"data: [DONE]\n\n")


def promote(number: int, url: str) -> list[Event]:
    """Round `number` becomes what `triage` means, served at `url`."""
    adapter, name = trained(number).adapter, f"m-1-r{number}"
    return [
        AdapterLoaded(migration="m-1", round=number, name=name, digest=adapter.digest, replica="r", url=url),
        AdapterPromoted(
            migration="m-1", round=number, alias="triage", adapter=adapter, name=name, by="me", why="it passed"
        ),
    ]


async def served_by(gateway: GatewayProcess) -> tuple[str, str | None]:
    raw = await gateway.client().chat.completions.with_raw_response.create(model="triage", messages=QUESTION)
    return raw.headers["x-llamaduo-served-by"], raw.headers.get("x-llamaduo-model")


async def test_what_was_promoted_answers_and_so_it_does_after_a_cold_start_without_the_bus(tmp_path: Path) -> None:
    async with stand_in("service") as service, stand_in("local") as local:
        tree = {"service": {"base_url": service.url, "model": "gpt-4o"}, "aliases": {"triage": {"mode": "local"}}}
        with nats_server(tmp_path / "nats") as server:
            gateway = GatewayProcess(tmp_path / "gateway", tree, LLAMADUO_NATS_URL=server.url)
            await gateway.start()
            try:
                async with connected(server, tmp_path) as bus:
                    assert await served_by(gateway) == ("service", "gpt-4o")

                    async def means(model: str) -> bool:
                        return (await served_by(gateway))[1] == model

                    for event in promote(1, local.url):
                        await bus.publish(event)
                    await until(lambda: means("m-1-r1"), what="the promoted model's answer")
                    for event in promote(2, local.url):
                        await bus.publish(event)
                    await until(lambda: means("m-1-r2"), what="the next one's answer")
                    back = AdapterRolledBack(
                        migration="m-1", round=2, alias="triage", to=trained(1).adapter, by="me", why="worse"
                    )
                    await bus.publish(back)
                    await until(lambda: means("m-1-r1"), what="the answer after the roll-back")

                server.kill()
                assert await served_by(gateway) == ("local", "m-1-r1")
                gateway.kill()
                await gateway.start()
                assert await served_by(gateway) == ("local", "m-1-r1")

                # Back on the bus it learns what has happened since.
                server.start()
                async with connected(server, tmp_path) as bus:
                    for event in promote(3, local.url):
                        await bus.publish(event)
                    await until(lambda: means("m-1-r3"), seconds=60, what="the promotion after the bus came back")
            finally:
                gateway.stop()


@dataclass
class Traffic:
    """Callers that go on asking, each prompt once, and note the ids of answers that came to their end."""

    url: str
    answered: dict[str, str] = field(default_factory=dict)
    """Request id -> prompt."""
    sent: int = 0

    async def one_caller(self, http: aiohttp.ClientSession) -> None:
        while True:
            self.sent += 1
            prompt = f"prompt {self.sent} of ann@example.org"
            body = {
                "model": "triage",
                "messages": [{"role": "user", "content": prompt}],
                "stream": self.sent % 2 == 0,
            }
            try:
                async with http.post(f"{self.url}/chat/completions", json=body) as answer:
                    told = await answer.read()
                    assert answer.status == 200, told
                    if told.endswith(b"data: [DONE]\n\n" if body["stream"] else b"}"):
                        self.answered[answer.headers["x-request-id"]] = prompt
            except (aiohttp.ClientError, OSError):
                await asyncio.sleep(0.05)

    async def more(self, count: int) -> None:
        """Once so many more answers have come."""
        wanted = len(self.answered) + count

        async def enough() -> bool:
            return len(self.answered) >= wanted

        await until(enough, seconds=90, what=f"{count} more answers")


async def test_no_row_is_lost_or_doubled_when_gateway_and_bus_are_killed_in_mid_traffic(tmp_path: Path) -> None:
    callers, kills = 6, 3
    async with stand_in("service") as service:
        tree = {"service": {"base_url": service.url}, "aliases": {"triage": {"mode": "capture"}}}
        with nats_server(tmp_path / "nats") as server:
            async with connected(server, tmp_path):
                pass
            gateway = GatewayProcess(
                tmp_path / "gateway", tree, LLAMADUO_NATS_URL=server.url, LLAMADUO_GATEWAY_SEGMENT_S="0.2"
            )
            await gateway.start()
            try:
                async with aiohttp.ClientSession() as http:
                    traffic = Traffic(gateway.url)
                    tasks = [asyncio.create_task(traffic.one_caller(http)) for _ in range(callers)]
                    await traffic.more(150)
                    gateway.kill()
                    await gateway.start()
                    await traffic.more(100)
                    server.kill()
                    await traffic.more(200)
                    gateway.kill()
                    await gateway.start()
                    await traffic.more(100)
                    server.start()
                    await traffic.more(150)
                    gateway.kill()
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
                await gateway.start()
                async with connected(server, tmp_path) as bus:
                    spool = tmp_path / "gateway" / "state" / "gateway" / "spool"

                    async def shipped() -> bool:
                        return not list(spool.glob("*/*"))

                    await until(shipped, seconds=90, what="all captured rows on the bus")
                    events = [
                        logged.event
                        async for logged in bus.log(follow=False)
                        if isinstance(logged.event, TrafficCaptured)
                    ]
                    store = await bus.artifacts()
                    files = [await read_bytes(store, event.traffic) for event in events]
            finally:
                gateway.stop()
    rows = [json.loads(line) for file in files for line in file.splitlines()]
    ids = [row["id"] for row in rows]
    assert len({event.id for event in events}) == len(events) >= 2
    assert len(ids) == len(set(ids)), "a row came twice"
    assert set(traffic.answered) <= set(ids), "an answer that a caller has got was not captured"
    # Beyond those at most what was in flight at each kill.
    assert len(ids) - len(traffic.answered) <= callers * kills
    prompts = {row["id"]: row["request"]["messages"][0]["content"] for row in rows}
    assert all(prompts[one] == said.replace("ann@example.org", "[EMAIL]") for one, said in traffic.answered.items())
    assert sum(event.rows for event in events) == len(rows)
    assert all(event.alias == "triage" and event.first <= event.last for event in events)
    assert any(row["response"]["choices"][0]["message"]["content"] == "said by service" for row in rows)


async def test_its_health_and_figures_are_where_those_of_every_service_are(tmp_path: Path) -> None:
    async with stand_in("service") as service:
        tree = {"service": {"base_url": service.url}, "aliases": {"triage": {"mode": "capture"}}}
        health = tmp_path / "health"
        async with gateway_process(tmp_path / "gateway", tree, LLAMADUO_PORT_FILE=str(health)) as gateway:
            await served_by(gateway)

            async def there() -> bool:
                return health.exists()

            await until(there, what="the port of its health")
            async with aiohttp.ClientSession() as http:

                async def told(path: str) -> str:
                    async with http.get(f"http://127.0.0.1:{health.read_text()}{path}") as answer:
                        assert answer.status == 200
                        return await answer.text()

                assert json.loads(await told("/healthz"))["service"] == "gateway"
                assert json.loads(await told("/readyz"))["ready"]
                figures = await told("/metrics")
    assert 'llamaduo_gateway_requests_total{alias="triage",served_by="service"} 1.0' in figures
    assert 'llamaduo_gateway_captured_total{alias="triage",outcome="kept"} 1.0' in figures


async def test_no_request_fails_when_the_service_llm_is_cut_in_mid_traffic_and_it_is_soon_found_again(
    tmp_path: Path,
) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path):
            pass
        told = await through_a_cut(tmp_path / "gateway", server.url, requests=300, per_second=30.0)
    assert told["requests"] > 300 and told["failed"] == 0
    assert told["answered_locally"] > 50 and told["failed_after_open"] == 0
    assert told["back_after_s"] is not None and told["back_after_s"] < 10
