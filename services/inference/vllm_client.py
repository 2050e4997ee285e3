"""The calls we make to a vLLM server, and what its answers mean."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from llamaduo.errors import AdapterRejected, PermanentError, RetryableError
from llamaduo.masking import learn, masked

# Few and short: on a CPU an adapter costs a copy of its weights for every token.
PROBES = (
    "Write one word.",
    "What is 7 + 5?",
    'Reply with JSON: {"ok": true}',
)
PROBE_TOKENS = 4
# How a call fails when the server is not there or too slow; RuntimeError is a session closed meanwhile.
BROKEN = (aiohttp.ClientError, OSError, TimeoutError, RuntimeError)


@dataclass(frozen=True)
class Answer:
    """One completion; `tokens` are its texts and log-probabilities where they were asked for."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    tokens: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class ServedModel:
    """A model of a server: its served `name`, where it came from (`root`), and its base, None for a base itself."""

    name: str
    root: str | None
    parent: str | None


class ServerBroken(RetryableError):
    """The connection broke, or the server says that its engine did; if it is not up any more, it stays so."""


class ModelNotServed(RetryableError):
    """The server does not know this model (any more)."""


class PromptTooLong(PermanentError):
    """Prompt and answer do not fit into the model's window."""


class VllmClient:
    """One vLLM server, by a Unix socket or by URL (`http://host:port`, without `/v1`)."""

    def __init__(self, url: str, *, socket: Path | None, timeout_s: float, api_key: str | None = None) -> None:
        # The server closes connections that were idle for 5 s; one closed as we write on it looks like a crash.
        connector = (
            aiohttp.UnixConnector(str(socket), limit=0, keepalive_timeout=2)
            if socket
            else aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
        )
        learn(api_key)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url.rstrip("/")
        self.session = aiohttp.ClientSession(
            connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(total=timeout_s)
        )

    async def close(self) -> None:
        await self.session.close()

    async def is_up(self, timeout_s: float = 20.0) -> bool:
        try:
            async with self.session.get(
                f"{self.url}/health", timeout=aiohttp.ClientTimeout(total=timeout_s)
            ) as answer:
                return answer.status == 200
        except BROKEN:
            return False

    async def models(self) -> list[ServedModel]:
        """What is served, base model and adapters."""
        found = await self._json("GET", "/v1/models")
        return [ServedModel(entry["id"], entry.get("root"), entry.get("parent")) for entry in found["data"]]

    async def metrics(self) -> str:
        """Its figures in Prometheus's text form. ServerBroken where it does not answer."""
        try:
            async with self.session.get(f"{self.url}/metrics") as answer:
                return await answer.text()
        except BROKEN as error:
            raise _lost("vLLM could not be asked for its figures", error) from error

    async def busy(self) -> bool:
        """Whether the server has requests in work or waiting."""
        text = await self.metrics()
        gauges = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
        return any(float(line.rpartition(" ")[2]) > 0 for line in text.splitlines() if line.startswith(gauges))

    async def load_adapter(self, name: str, folder: Path) -> None:
        """AdapterRejected where the server will not have it; RetryableError where it could not be asked."""
        body = {"lora_name": name, "lora_path": str(folder), "load_inplace": False}
        try:
            async with self.session.post(f"{self.url}/v1/load_lora_adapter", json=body) as answer:
                text = await answer.text()
        except BROKEN as error:
            raise _lost(f"vLLM could not be asked to load {name}", error) from error
        if answer.status == 200 or (answer.status == 400 and "already been loaded" in text):
            return
        if answer.status == 404 and "No adapter found" not in text:
            raise PermanentError(
                f"the engine at {self.url} loads no adapters while it runs: start it with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
            )
        if answer.status >= 500 and "Engine" in text:
            raise ServerBroken(f"vLLM broke down while it was loading {name}")
        raise AdapterRejected(f"adapter {name}: vLLM refused it ({answer.status}): {_message(text)}")

    async def unload_adapter(self, name: str) -> None:
        """Nothing happens if it is not loaded."""
        try:
            async with self.session.post(f"{self.url}/v1/unload_lora_adapter", json={"lora_name": name}) as answer:
                await answer.read()
        except BROKEN as error:
            raise _lost(f"vLLM could not be asked to unload {name}", error) from error
        if answer.status not in (200, 404):
            raise RetryableError(f"vLLM did not unload {name} ({answer.status})")

    async def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        options: Mapping[str, Any] | None = None,
        logprobs: bool = False,
    ) -> Answer:
        """One completion. PromptTooLong, PermanentError for what the server will never do, else RetryableError."""
        body: dict[str, Any] = {
            **(options or {}),
            "model": model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        if logprobs:
            body["logprobs"] = True
        found = await self._json("POST", "/v1/chat/completions", body)
        choice, usage = found["choices"][0], found["usage"]
        listed = ((choice.get("logprobs") or {}).get("content") or []) if logprobs else []
        return Answer(
            text=choice["message"].get("content") or "",
            finish_reason=choice.get("finish_reason") or "stop",
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
            tokens=tuple((token["token"], float(token["logprob"])) for token in listed),
        )

    async def probe(self, model: str) -> list[Answer]:
        """What this model answers to a few fixed prompts, one at a time, with its tokens' log-probabilities."""
        return [
            await self.chat(
                model,
                [{"role": "user", "content": prompt}],
                max_tokens=PROBE_TOKENS,
                temperature=0.0,
                seed=0,
                logprobs=True,
            )
            for prompt in PROBES
        ]

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            async with self.session.request(method, f"{self.url}{path}", json=body) as answer:
                text = await answer.text()
                if answer.status == 200:
                    return await answer.json(content_type=None)
        except BROKEN as error:
            raise _lost("vLLM did not answer", error) from error
        if answer.status >= 500 and "Engine" in text:
            raise ServerBroken(f"vLLM's engine is broken: {_message(text)}")
        if answer.status >= 500 or answer.status in (408, 429):
            raise RetryableError(f"vLLM answered {answer.status}: {_message(text)}")
        if answer.status == 400 and "maximum" in text and "length" in text:
            raise PromptTooLong(_message(text))
        if answer.status == 404:
            raise ModelNotServed(f"vLLM answered 404: {_message(text)}")
        raise PermanentError(f"vLLM answered {answer.status}: {_message(text)}")


async def until_silent(client: VllmClient, *, every_s: float = 5.0, times: int = 4) -> None:
    """Returns when the server did not say that it is well for so many times in a row."""
    failed = 0
    while failed < times:
        await asyncio.sleep(every_s)
        failed = 0 if await client.is_up() else failed + 1


def probes_differ(base: Sequence[Answer], adapter: Sequence[Answer], tolerance: float) -> bool:
    """Whether any probe was answered otherwise, or with log-probabilities further apart than `tolerance`.

    ValueError where a log-probability is no number: such weights must not be served.
    """
    for one, other in zip(base, adapter, strict=True):
        if any(math.isnan(logprob) for _, logprob in other.tokens):
            raise ValueError("its log-probabilities are not numbers")
        if [text for text, _ in one.tokens] != [text for text, _ in other.tokens]:
            return True
        if any(abs(a - b) > tolerance for (_, a), (_, b) in zip(one.tokens, other.tokens, strict=True)):
            return True
    return False


async def wait_until_idle(client: VllmClient, limit_s: float = 30.0) -> None:
    """Waits until the server has no request in work; gives up quietly after `limit_s` or if it is down."""
    try:
        async with asyncio.timeout(limit_s):
            while await client.busy():  # noqa: ASYNC110 (the server tells only when asked)
                await asyncio.sleep(0.05)
    except (RetryableError, *BROKEN):
        return


def _message(text: str) -> str:
    return masked(" ".join(text.split()))[:300]


def _lost(what: str, error: BaseException) -> RetryableError:
    """A call that was not answered: too slow, or the server went away."""
    kind = RetryableError if isinstance(error, TimeoutError) else ServerBroken
    return kind(f"{what}: {str(error) or type(error).__name__}")
