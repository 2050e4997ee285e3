"""An OpenAI-compatible server of one's own as the client of service LLMs calls it; a vLLM also loads adapters."""

from __future__ import annotations

import os
import re

import aiohttp

from llamaduo.errors import LlamaDuoError, UserInputError
from llamaduo.masking import masked
from llamaduo.migrations.spec import VARIABLE_PATTERN, ServiceLLM
from llamaduo.service_llm.credentials import api_key
from llamaduo.sharing.taking import TakenAdapter

ENGINE_CALLS_PER_MINUTE = 60_000
MODELS_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 120.0


async def load_adapter(url: str, key_variable: str, adapter: TakenAdapter) -> None:
    """Have a vLLM server serve this adapter, under its name; it must see the folder under the same path.

    UserInputError where it loads none, LlamaDuoError where it refuses this one or does not answer.
    """
    engine = await own_engine(url, adapter.name, key_variable, 1)
    status, text = await _asked_to(engine, "load", {"lora_name": adapter.name, "lora_path": str(adapter.folder)})
    if status == 200 or (status == 400 and "already been loaded" in text):
        return
    if status in (404, 405):
        raise UserInputError(
            f"{engine.base_url} loads no adapters while it runs",
            field="--adapter",
            hint="start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
        )
    raise LlamaDuoError(f"{engine.base_url} refused the adapter ({status}): {masked(' '.join(text.split()))[:300]}")


async def unload_adapter(url: str, key_variable: str, adapter: TakenAdapter) -> None:
    """Have the server serve it no longer. LlamaDuoError where it does not answer."""
    engine = await own_engine(url, adapter.name, key_variable, 1)
    await _asked_to(engine, "unload", {"lora_name": adapter.name})


async def _asked_to(engine: ServiceLLM, what: str, body: dict[str, str]) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {api_key(engine, os.environ)}"}
    timeout = aiohttp.ClientTimeout(total=LOAD_TIMEOUT_S)
    address = f"{engine.base_url}/{what}_lora_adapter"
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.post(address, json=body) as response,
        ):
            return response.status, await response.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise LlamaDuoError(f"{address} does not answer: {error or type(error).__name__}") from error


async def own_engine(url: str, model: str | None, key_variable: str, concurrency: int) -> ServiceLLM:
    """A server of one's own as the client calls it: unpaid, as fast as it is. UserInputError where it is none."""
    if not url.startswith(("http://", "https://")):
        raise UserInputError("must begin with http:// or https://", field="--url")
    if not re.fullmatch(VARIABLE_PATTERN, key_variable):
        raise UserInputError("must be the name of an environment variable, and never the key", field="--api-key-env")
    engine = ServiceLLM(
        model=f"openai:{model or 'to be asked for'}",
        base_url=url.rstrip("/").removesuffix("/v1") + "/v1",
        api_key_env=key_variable,
        requests_per_minute=ENGINE_CALLS_PER_MINUTE,
        concurrency=concurrency,
    )
    return engine if model else engine.model_copy(update={"model": f"openai:{await _only_model(engine)}"})


async def _only_model(engine: ServiceLLM) -> str:
    """The one model that a server serves. UserInputError names all where there are several."""
    url, headers = engine.base_url, {"Authorization": f"Bearer {api_key(engine, os.environ)}"}
    timeout = aiohttp.ClientTimeout(total=MODELS_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(f"{url}/models") as response,
        ):
            response.raise_for_status()
            names = [str(one["id"]) for one in (await response.json(content_type=None))["data"]]
    except (aiohttp.ClientError, TimeoutError, ValueError, TypeError, KeyError) as error:
        why = f"{error}" or type(error).__name__
        raise LlamaDuoError(f"{url}/models does not say what is served: {why}; name it with --model") from error
    if len(names) != 1:
        raise UserInputError(
            f"{url} serves {', '.join(names) or 'no model'}", field="--model", hint="name one of them"
        )
    return names[0]
