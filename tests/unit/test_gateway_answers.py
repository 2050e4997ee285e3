"""What an application gets from the gateway, and what the servers behind it are asked, by the official client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from llamaduo.api_keys import KeyFile, new_key
from services.gateway.upstream import Target
from tests.gateway_servers import StandIn, gateway, stand_in
from tests.support import until

MESSAGES: Any = [{"role": "user", "content": "Where is my mat?"}]


@pytest.fixture
async def service() -> AsyncIterator[StandIn]:
    async with stand_in("service") as one:
        yield one


@pytest.fixture
async def local() -> AsyncIterator[StandIn]:
    async with stand_in("local") as one:
        yield one


def client(url: str, **more: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="key-of-the-application", max_retries=0, **more)


def tree(service: StandIn, local: StandIn | None = None, **alias: Any) -> dict[str, Any]:
    """A file with one alias, `triage`, that the service LLM knows as gpt-4o and the local server as m-1-r2."""
    upstream = {"base_url": service.url, "api_key_env": "THE_KEY", "timeout_s": 30}
    triage: dict[str, Any] = {"service": {**upstream, "model": "gpt-4o"}, **alias}
    if local is not None:
        triage["local"] = {"base_url": local.url, "model": "m-1-r2", "timeout_s": 30}
    return {"service": upstream, "aliases": {"triage": triage}}


async def ask(url: str, model: str = "triage", **more: Any) -> tuple[str, str, str]:
    """(answer, who served it, request id)"""
    async with client(url) as one:
        raw = await one.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, **more)
    return (
        raw.parse().choices[0].message.content or "",
        raw.headers["x-llamaduo-served-by"],
        raw.headers["x-request-id"],
    )


async def test_a_plain_model_name_goes_to_the_service_llm_byte_for_byte(service: StandIn) -> None:
    body = '{"model": "gpt-4o-mini",  "messages": [{"role":"user","content":"\\u00fc"}], "seed": 1.0}'
    async with (
        gateway(tree(service), THE_KEY="k") as (_, url),
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/chat/completions", data=body) as answer,
    ):
        assert answer.status == 200
        assert (await answer.json())["model"] == "gpt-4o-mini" and service.bodies == [body.encode()]
        assert answer.headers["x-ratelimit-limit"] == "9" and answer.headers["x-upstream-request-id"] == "theirs"


async def test_an_alias_is_asked_by_the_models_own_name_and_all_else_is_passed_on(service: StandIn) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    form: Any = {"type": "json_object"}
    async with gateway(tree(service), THE_KEY="k") as (_, url):
        said, by, request_id = await ask(url, tools=tools, response_format=form, extra_body={"of_tomorrow": [1]})
        again = (await ask(url))[2]
    assert (said, by) == ("said by service", "service")
    assert request_id.startswith("req_") and request_id != again
    assert service.asked[0] == {
        "model": "gpt-4o", "messages": MESSAGES, "tools": tools, "response_format": form, "of_tomorrow": [1],
    }  # fmt: skip
    assert service.headers[0]["X-Request-Id"] == request_id


async def test_the_server_gets_its_own_key_and_never_the_applications(service: StandIn, local: StandIn) -> None:
    async with gateway(tree(service, local), THE_KEY="k") as (_, url):
        await ask(url)
        service.does = "error"
        assert (await ask(url))[1] == "local"
    assert service.headers[0]["Authorization"] == "Bearer k"
    assert "Authorization" not in local.headers[0]
    assert "key-of-the-application" not in str([*service.headers, *local.headers])


async def test_the_applications_key_is_passed_on_where_the_file_says_so(service: StandIn) -> None:
    file = {"service": {"base_url": service.url, "pass_authorization": True}}
    async with gateway(file) as (_, url):
        await ask(url, "gpt-4o")
    assert service.headers[0]["Authorization"] == "Bearer key-of-the-application"


async def test_a_stream_is_passed_on_chunk_by_chunk(service: StandIn) -> None:
    service.go_on.clear()
    async with gateway(tree(service), THE_KEY="k") as (_, url):
        stream = await client(url).chat.completions.create(model="triage", messages=MESSAGES, stream=True)
        chunks = aiter(stream)
        # The server says no more until this first word was read here.
        assert (await asyncio.wait_for(anext(chunks), 20)).choices[0].delta.content == "said "
        service.go_on.set()
        rest = [chunk.choices[0].delta.content or "" async for chunk in chunks]
    assert "".join(rest) == "by service" and stream.response.headers["x-llamaduo-served-by"] == "service"


async def test_who_goes_away_in_the_midst_of_a_stream_ends_it_at_the_server_too(service: StandIn) -> None:
    service.go_on.clear()
    async with gateway(tree(service), THE_KEY="k") as (_, url):
        stream = await client(url).chat.completions.create(model="triage", messages=MESSAGES, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await asyncio.wait_for(service.left.wait(), 20)


@pytest.mark.parametrize("does", ["error", "limited", "break_before"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_local_model_answers_when_the_service_llm_does_not(
    service: StandIn, local: StandIn, does: Any, stream: bool
) -> None:
    service.does = does
    async with gateway(tree(service, local), THE_KEY="k") as (_, url):
        if stream:
            told = await client(url).chat.completions.create(model="triage", messages=MESSAGES, stream=True)
            said = "".join([chunk.choices[0].delta.content or "" async for chunk in told])
            assert told.response.headers["x-llamaduo-served-by"] == "local"
            assert told.response.headers["x-llamaduo-model"] == "m-1-r2"
        else:
            said, by, _ = await ask(url)
            assert by == "local"
    assert said == "said by local" and local.asked[0]["model"] == "m-1-r2"


async def test_the_local_model_answers_when_the_service_llm_is_silent_for_too_long(
    service: StandIn, local: StandIn
) -> None:
    service.does = "hang"
    file = tree(service, local)
    file["aliases"]["triage"]["service"]["timeout_s"] = 0.3
    async with gateway(file, THE_KEY="k") as (_, url):
        assert (await ask(url))[1] == "local"


async def test_an_open_circuit_spares_the_service_llm_and_closes_once_it_answers_again(
    service: StandIn, local: StandIn
) -> None:
    service.does = "error"
    async with gateway(tree(service, local), THE_KEY="k") as (made, url):
        now = 0.0
        made.circuits.clock = lambda: now
        for _ in range(9):
            assert (await ask(url))[1] == "local"
        assert len(service.asked) == 5
        now = 1.1
        assert (await ask(url))[1] == "local" and len(service.asked) == 6
        assert (await ask(url))[1] == "local" and len(service.asked) == 6
        service.does, now = "answer", 3.2
        assert [(await ask(url))[1] for _ in range(3)] == ["service"] * 3


async def test_a_429_is_answered_by_the_local_model_and_does_not_open_the_circuit(
    service: StandIn, local: StandIn
) -> None:
    service.does = "limited"
    async with gateway(tree(service, local), THE_KEY="k") as (_, url):
        for _ in range(8):
            assert (await ask(url))[1] == "local"
    assert len(service.asked) == 8


async def test_a_callers_own_mistake_is_told_to_the_caller(service: StandIn, local: StandIn) -> None:
    service.does = "refuse"
    async with gateway(tree(service, local), THE_KEY="k") as (_, url):
        with pytest.raises(openai.BadRequestError, match="bad request"):
            await ask(url)
    assert local.asked == []


async def test_where_nobody_can_step_in_the_service_llms_own_refusal_comes_back(
    service: StandIn, local: StandIn
) -> None:
    service.does = local.does = "limited"
    async with gateway(tree(service), THE_KEY="k") as (_, url):
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(url)
        assert caught.value.response.headers["retry-after"] == "7"
        assert caught.value.response.headers["x-request-id"].startswith("req_")
    local.does = "error"
    async with gateway(tree(service, local), THE_KEY="k") as (_, url):
        with pytest.raises(openai.RateLimitError):
            await ask(url)


async def test_a_server_that_is_not_there_and_one_that_is_silent_have_errors_of_their_own(service: StandIn) -> None:
    service.does = "hang"
    file = tree(service)
    file["aliases"]["triage"]["service"]["timeout_s"] = 0.2
    file["service"]["base_url"] = "http://127.0.0.1:9/v1"
    async with gateway(file, THE_KEY="k") as (_, url):
        with pytest.raises(openai.APIStatusError) as silent:
            await ask(url)
        with pytest.raises(openai.APIStatusError) as away:
            await ask(url, "gpt-4o")
    assert (silent.value.status_code, silent.value.code) == (504, "upstream_timeout")
    assert (away.value.status_code, away.value.code) == (502, "upstream_unreachable")


async def test_a_stream_that_breaks_off_ends_with_an_error_and_never_as_if_it_were_whole(
    service: StandIn, local: StandIn
) -> None:
    service.does = "break_within"
    async with gateway(tree(service, local), THE_KEY="k") as (_, url):
        stream = await client(url).chat.completions.create(model="triage", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="broke off"):
            async for _ in stream:
                pass
    assert local.asked == []


async def test_mode_local_asks_the_service_llm_when_the_local_model_cannot_answer(
    service: StandIn, local: StandIn
) -> None:
    async with gateway(tree(service, local, mode="local"), THE_KEY="k") as (_, url):
        assert (await ask(url))[1] == "local"
        local.does = "refuse"
        assert (await ask(url))[1] == "service"


async def test_each_address_of_the_approved_model_is_tried(service: StandIn, local: StandIn) -> None:
    away = Target("local", "http://127.0.0.1:9/v1", "m-1-r2")
    there = Target("local", local.url, "m-1-r2")
    async with gateway(tree(service, mode="local"), approved=[away, there], THE_KEY="k") as (_, url):
        assert (await ask(url))[1] == "local"


async def test_a_canary_follows_the_user_or_the_header_that_the_file_names(service: StandIn, local: StandIn) -> None:
    from services.gateway.routing import share_of

    few = next(f"u{n}" for n in range(1000) if share_of("triage", f"u{n}") < 0.1)
    most = next(f"u{n}" for n in range(1000) if share_of("triage", f"u{n}") > 0.2)
    async with gateway(tree(service, local, mode="canary", canary={"percent": 15}), THE_KEY="k") as (_, url):
        assert [(await ask(url, user=user))[1] for user in (few, most, few)] == ["local", "service", "local"]
    by_header = tree(service, local, mode="canary", canary={"percent": 15, "key": "header:X-Tenant"})
    async with gateway(by_header, THE_KEY="k") as (_, url):
        served = [(await ask(url, user=most, extra_headers={"X-Tenant": key}))[1] for key in (few, most)]
        assert served == ["local", "service"]


async def test_the_list_of_models_holds_the_aliases_and_what_the_service_llm_lists(service: StandIn) -> None:
    async with gateway(tree(service), THE_KEY="k") as (_, url):
        assert [one.id async for one in client(url).models.list()] == ["triage", "model-of-service"]
        assert (await client(url).models.retrieve("triage")).owned_by == "llamaduo"
        assert (await client(url).models.retrieve("gpt-4o")).id == "gpt-4o"
    file = tree(service)
    file["service"]["base_url"] = "http://127.0.0.1:9/v1"
    async with gateway(file, THE_KEY="k") as (_, url):
        assert [one.id async for one in client(url).models.list()] == ["triage"]


async def test_embeddings_are_passed_through(service: StandIn) -> None:
    async with gateway(tree(service), THE_KEY="k") as (_, url):
        made = await client(url).embeddings.create(model="small-vectors", input="x", encoding_format="float")
    assert made.data[0].embedding == [0.5, -0.5] and service.asked[0]["model"] == "small-vectors"


async def test_azures_client_names_the_alias_as_its_deployment(service: StandIn) -> None:
    async with gateway(tree(service), THE_KEY="k") as (_, url):
        azure = openai.AsyncAzureOpenAI(azure_endpoint=url, api_key="theirs", api_version="2024-10-21", max_retries=0)
        answer = await azure.chat.completions.create(model="triage", messages=MESSAGES)
    assert answer.choices[0].message.content == "said by service"
    assert service.asked[0]["model"] == "gpt-4o" and "theirs" not in str(service.headers)


async def test_an_azure_service_is_asked_as_azure_wants_it(service: StandIn) -> None:
    base = service.url.removesuffix("/v1") + "/openai/deployments/prod"
    file = {"service": {"base_url": base, "azure_api_version": "2024-10-21", "api_key_env": "THE_KEY"}}
    async with gateway(file, THE_KEY="k") as (_, url):
        assert (await ask(url, "gpt-4o"))[0] == "said by service"
    assert service.paths == ["/openai/deployments/prod/chat/completions?api-version=2024-10-21"]
    assert service.headers[0]["api-key"] == "k" and "Authorization" not in service.headers[0]


async def test_the_responses_api_is_refused_in_openais_form(service: StandIn) -> None:
    async with gateway(tree(service), THE_KEY="k") as (_, url):
        with pytest.raises(openai.InternalServerError) as caught:
            await client(url).responses.create(model="triage", input="x")
    assert caught.value.status_code == 501 and "chat/completions" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ("{", 400, None),
        ("[]", 400, None),
        ("{}", 400, "model"),
        ('{"model": 1}', 400, "model"),
        ('{"model": "triage", "messages": ' + "[" * 300 + "]" * 300 + "}", 400, None),
        ('{"model": "' + "x" * 2000 + '"}', 413, None),
        ('{"model": "triage", "seed": NaN}', 400, None),
        ('{"model": "unknown"}', 404, "model"),
    ],
)
async def test_what_cannot_be_answered_is_refused_in_openais_form(
    service: StandIn, body: str, status: int, param: str | None
) -> None:
    file = tree(service)
    del file["service"]
    async with (
        gateway(file, max_body_bytes=1000, THE_KEY="k") as (_, url),
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/chat/completions", data=body) as answer,
    ):
        told = await answer.json()
        assert answer.status == status and told["error"]["param"] == param and told["error"]["message"]
        assert answer.headers["x-request-id"].startswith("req_")
    assert service.asked == []


async def test_an_unknown_path_is_refused_in_openais_form(service: StandIn) -> None:
    async with gateway(tree(service), THE_KEY="k") as (_, url):
        with pytest.raises(openai.NotFoundError):
            await client(url).files.list()


async def test_an_alias_without_anybody_in_reach_says_so(service: StandIn, local: StandIn) -> None:
    service.does = local.does = "error"
    async with gateway(tree(service, local), THE_KEY="k") as (_, url):

        async def refused() -> bool:
            with pytest.raises(openai.InternalServerError):
                await ask(url)
            return len(service.asked) > 6

        # Also through an open circuit: where all fail, each request tries.
        await until(refused, seconds=20, what="requests that go on asking")


async def test_with_a_file_of_keys_only_who_shows_one_is_answered_and_it_goes_no_further(
    service: StandIn, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    key = new_key(keys, "the-shop")
    async with gateway(tree(service), keys=KeyFile(keys), THE_KEY="k") as (_, url):
        with pytest.raises(openai.AuthenticationError):
            await ask(url)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as ours:
            answer = await ours.chat.completions.create(model="triage", messages=MESSAGES)
        assert answer.choices[0].message.content == "said by service"
        azure = openai.AsyncAzureOpenAI(azure_endpoint=url, api_key=key, api_version="2024-10-21", max_retries=0)
        assert (await azure.chat.completions.create(model="triage", messages=MESSAGES)).choices
        wrong = openai.AsyncAzureOpenAI(
            azure_endpoint=url, api_key=f"{key}x", api_version="2024-10-21", max_retries=0
        )
        with pytest.raises(openai.AuthenticationError):
            await wrong.chat.completions.create(model="triage", messages=MESSAGES)
    assert len(service.headers) == 2 and key not in str(service.headers)
