"""A stand-in for a vLLM server: its routes and answers, without a model."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from services.inference.vllm_client import VllmClient


class VllmStandIn:
    """Also a `Server` of the engine. Each start is a fresh server: adapters loaded before are gone.

    `unchanged` are adapters that answer like the base. `breaks_at` requests, the engine breaks down. Without
    `unloads` it keeps what it has. `root` is where it says that its base model is from; with an `api_key`
    it answers nobody without. `says` is what it answers to everything.
    """

    def __init__(self) -> None:
        self.adapters: dict[str, str] = {}
        self.loads: list[str] = []
        self.unchanged: set[str] = set()
        self.asked: list[dict[str, Any]] = []
        self.under_way: list[str] = []
        self.mixed = False
        self.starts = 0
        self.failing_starts = 0
        self.breaks_at: int | None = None
        self.hold: asyncio.Event | None = None
        self.unloads = True
        self.root: str | None = None
        self.api_key: str | None = None
        self.says: str | None = None
        self.timeout_s = 10.0
        self._broken = False
        self._runner: web.AppRunner | None = None
        self._ended = asyncio.Event()
        self.url = ""

    async def start(self) -> VllmClient:
        self.starts += 1
        if self.failing_starts:
            self.failing_starts -= 1
            raise OSError("no memory left")
        self._broken = False
        self.adapters.clear()
        self._ended.clear()
        app = web.Application(middlewares=[self._check_key])
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._chat)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return VllmClient(self.url, socket=None, timeout_s=self.timeout_s)

    async def ended(self, client: VllmClient) -> str:
        await self._ended.wait()
        return "the stand-in ended"

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def end(self) -> None:
        """As if the process had died."""
        await self.stop()
        self._ended.set()

    @web.middleware
    async def _check_key(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        wanted = f"Bearer {self.api_key}" if self.api_key and request.path != "/health" else None
        if wanted is not None and request.headers.get("Authorization") != wanted:
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self._broken else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        running = len(self.under_way)
        return web.Response(text=f'vllm:num_requests_running{{engine="0"}} {running}.0\n')

    async def _models(self, _: web.Request) -> web.Response:
        entries = [{"id": "base", "root": self.root}] + [{"id": name, "parent": "base"} for name in self.adapters]
        return web.json_response({"data": entries})

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.loads.append(body["lora_name"])
        self.adapters[body["lora_name"]] = body["lora_path"]
        return web.Response(text="Success")

    async def _unload(self, request: web.Request) -> web.Response:
        body = await request.json()
        if not self.unloads:
            return web.Response(status=503)
        return web.Response(status=200 if self.adapters.pop(body["lora_name"], None) else 404)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        model = body["model"]
        if self.breaks_at is not None and len(self.asked) >= self.breaks_at:
            self._broken, self.breaks_at = True, None
        if self._broken:
            return web.json_response({"error": {"message": "EngineCore encountered an issue"}}, status=500)
        if model != "base" and model not in self.adapters:
            return web.json_response({"error": {"message": f"The model {model} does not exist."}}, status=404)
        kind = "base" if model == "base" else "adapter"
        self.under_way.append(kind)
        self.mixed = self.mixed or len(set(self.under_way)) > 1
        try:
            await asyncio.sleep(0.005)
            if self.hold is not None and not body.get("logprobs"):
                await self.hold.wait()
        finally:
            self.under_way.remove(kind)
        prompt = body["messages"][-1]["content"]
        if len(prompt) > 1000:
            message = "This model's maximum context length is 512 tokens."
            return web.json_response({"error": {"message": message}}, status=400)
        speaks_like = "base" if model in self.unchanged else model
        text = self.says or f"{speaks_like} says {body['seed']} to {prompt}"
        return web.json_response(
            {
                "choices": [
                    {
                        "message": {"content": text},
                        "finish_reason": "stop",
                        "logprobs": {"content": [{"token": speaks_like, "logprob": -1.0}]},
                    }
                ],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2},
            }
        )
