"""An OpenAI-compatible server of one's own as the client of service LLMs calls it."""

from __future__ import annotations

import os
import re

import aiohttp

from llamaduo.errors import LlamaDuoError, UserInputError
from llamaduo.migrations.spec import VARIABLE_PATTERN, ServiceLLM
from llamaduo.service_llm.credentials import api_key

ENGINE_CALLS_PER_MINUTE = 60_000
MODELS_TIMEOUT_S = 10.0


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
