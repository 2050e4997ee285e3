"""An existing vLLM by URL, which others start and stop."""

from __future__ import annotations

import asyncio
import time

from services.inference.engine import EngineNotReady
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


async def base_name(client: VllmClient) -> str:
    """The name under which a server serves its base model. EngineNotReady where it serves none."""
    names = [name for name, parent in (await client.models()).items() if parent is None]
    if not names:
        raise EngineNotReady(f"the vLLM at {client.url} serves no model")
    return names[0]
