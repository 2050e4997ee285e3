"""An existing vLLM by URL, which others start and stop."""

from __future__ import annotations

import asyncio
import time

from services.inference.engine import EngineNotReady, WrongBaseModel
from services.inference.vllm_client import VllmClient, until_silent


class RemoteServer:
    """`url` is `http://host:port`, with or without `/v1`. The server must see our adapter store under its path."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        request_timeout_s: float = 300.0,
        start_timeout_s: float = 60.0,
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._api_key = api_key
        self._request_timeout_s, self._start_timeout_s = request_timeout_s, start_timeout_s

    async def start(self) -> VllmClient:
        """A client of the server. EngineNotReady where it does not answer in time."""
        client = VllmClient(self._url, socket=None, timeout_s=self._request_timeout_s, api_key=self._api_key)
        started = time.monotonic()
        while not await client.is_up():
            if time.monotonic() - started > self._start_timeout_s:
                await client.close()
                raise EngineNotReady(f"no vLLM answers at {self._url}/health")
            await asyncio.sleep(1)
        return client

    async def ended(self, client: VllmClient) -> str:
        await until_silent(client)
        return f"the vLLM at {self._url} does not answer"

    async def stop(self) -> None:
        """Nothing: it is not ours."""


async def served_name_of(client: VllmClient, base_model: str) -> str:
    """The name under which a server serves this base model (Hub id, folder or `.gguf`).

    It is found by the served name or by where the server has it from; the last part of a path or Hub id is enough.
    WrongBaseModel where the server serves another, EngineNotReady where it serves none.
    """
    bases = [model for model in await client.models() if model.parent is None]
    if not bases:
        raise EngineNotReady(f"the vLLM at {client.url} serves no model")
    wanted = _short(base_model)
    for base in bases:
        if wanted in (_short(base.name), _short(base.root)):
            return base.name
    served = ", ".join(f"{base.name} (from {base.root})" if base.root else base.name for base in bases)
    raise WrongBaseModel(
        f"the engine at {client.url} serves {served}, and this migration is for {base_model}: serve that one, or, if "
        f"they are the same model, say so with LLAMADUO_ENGINE_MODEL={bases[0].name}"
    )


def _short(model: str | None) -> str | None:
    """What is the same however a model is reached: the last part, without revision and ending."""
    if model is None:
        return None
    last = model.rstrip("/").rpartition("/")[2].partition("@")[0]
    return last.removesuffix(".gguf").lower()
