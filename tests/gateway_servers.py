"""What the gateway's tests share: stand-ins for servers that speak OpenAI's API, and a gateway in this process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import openai
import yaml
from aiohttp import web

from llamaduo.api_keys import KeyFile
from services.gateway.app import listen, make_app
from services.gateway.endpoints import Gateway
from services.gateway.gateway_file import parse_gateway_file
from services.gateway.spool import Spool, segments
from services.gateway.upstream import Target
from tests.support import ROOT, environment, free_port, until

Behaviour = Literal["answer", "error", "limited", "refuse", "hang", "break_before", "break_within"]


@dataclass
class StandIn:
    """A server whose answers say by whom they are; `does` is how it behaves from now on."""

    name: str
    does: Behaviour = "answer"
    asked: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    """A stream waits for this after its first word."""
    url: str = ""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Whoever asked went away in the midst of an answer."""

    def __post_init__(self) -> None:
        self.go_on.set()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        body = json.loads(self.bodies[-1])
        self.asked.append(body)
        self.headers.append(request.headers.copy())
        self.paths.append(request.path_qs)
        match self.does:
            case "error":
                return web.json_response({"error": {"message": "broken", "type": "server_error"}}, status=500)
            case "limited":
                limited = {"error": {"message": "too many", "type": "requests", "code": "rate_limit_exceeded"}}
                return web.json_response(limited, status=429, headers={"Retry-After": "7"})
            case "refuse":
                return web.json_response({"error": {"message": "bad request", "type": "invalid"}}, status=400)
            case "hang":
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    self.left.set()
                    raise
        if body.get("stream"):
            return await self._stream(request, body)
        if self.does in ("break_before", "break_within"):
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(
            self.answer(body["model"]), headers={"x-request-id": "theirs", "x-ratelimit-limit": "9"}
        )

    def answer(self, model: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": f"said by {self.name}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {
            "id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice],
            "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4},
        }  # fmt: skip

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        assert request.transport is not None
        if self.does == "break_before":
            request.transport.abort()
            return response
        for number, word in enumerate(("said ", "by ", self.name)):
            delta = {"role": "assistant", "content": word} if number == 0 else {"content": word}
            chunk = {
                "id": "c", "object": "chat.completion.chunk", "created": 1, "model": body["model"],
                "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
            }  # fmt: skip
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.left.set()
                raise
            if self.does == "break_within":
                request.transport.abort()
                return response
        last = {
            "id": "c", "object": "chat.completion.chunk", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        }  # fmt: skip
        await response.write(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode())
        await response.write_eof()
        return response

    async def embeddings(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.asked.append(body)
        item = {"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}
        return web.json_response({"object": "list", "data": [item], "model": body["model"], "usage": {}})

    async def models(self, _: web.Request) -> web.Response:
        one = {"id": f"model-of-{self.name}", "object": "model", "created": 1, "owned_by": self.name}
        return web.json_response({"object": "list", "data": [one]})

    async def model(self, request: web.Request) -> web.Response:
        return web.json_response({"id": request.match_info["name"], "object": "model", "created": 1, "owned_by": "x"})


@asynccontextmanager
async def stand_in(name: str) -> AsyncIterator[StandIn]:
    """A running one."""
    one = StandIn(name)
    app = web.Application(client_max_size=2**26)
    for prefix in ("/v1", "/openai/deployments/{deployment}"):
        app.router.add_post(f"{prefix}/chat/completions", one.chat)
    app.router.add_post("/v1/embeddings", one.embeddings)
    app.router.add_get("/v1/models", one.models)
    app.router.add_get("/v1/models/{name}", one.model)
    runner = await listen(app, "127.0.0.1", 0, None)
    one.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield one
    finally:
        one.go_on.set()
        # Without waiting for what hangs.
        runner._shutdown_timeout = 0.1
        await runner.cleanup()


@asynccontextmanager
async def gateway(
    tree: dict[str, Any],
    *,
    approved: Sequence[Target] = (),
    max_body_bytes: int = 2**20,
    spool_bytes: int = 2**30,
    folder: Path | None = None,
    keys: KeyFile | None = None,
    **environment: str,
) -> AsyncIterator[tuple[Gateway, str]]:
    """A gateway with this file in this process, and its address; `approved` are the local models of every alias.

    What it captures is in `folder`.
    """
    with tempfile.TemporaryDirectory() as temp:
        spool = Spool(folder or Path(temp), max_bytes=spool_bytes, segment_bytes=2**20, segment_s=3600)
        made = Gateway(parse_gateway_file(tree), environment, lambda _: approved, spool)
        runner = await listen(make_app(made, max_body_bytes, keys), "127.0.0.1", 0, None)
        try:
            yield made, f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            runner._shutdown_timeout = 0.1
            await runner.cleanup()
            spool.close()


def captured(folder: Path) -> list[dict[str, Any]]:
    """The rows in a spool, in the order they were written."""
    return [json.loads(line) for path in segments(folder) for line in path.read_bytes().splitlines()]


class GatewayProcess:
    """`python -m services.gateway` in `folder`, on a port of its own; can be killed and started again."""

    def __init__(self, folder: Path, tree: dict[str, Any], **extra: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gateway.yaml").write_text(yaml.safe_dump(tree))
        self.folder, self._extra = folder, extra
        # The same one after a restart, as applications need it.
        self._port = str(free_port())
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        (self.folder / "port").unlink(missing_ok=True)
        env = environment(
            LLAMADUO_GATEWAY_FILE=str(self.folder / "gateway.yaml"),
            LLAMADUO_GATEWAY_PORT=self._port,
            LLAMADUO_GATEWAY_PORT_FILE=str(self.folder / "port"),
            LLAMADUO_STATE_DIR=str(self.folder / "state"),
            LLAMADUO_PROFILE="faults",
            **({} if "LLAMADUO_NATS_URL" in self._extra else {"LLAMADUO_GATEWAY_ON_BUS": "false"}),
            **self._extra,
        )
        log = (self.folder / "gateway.log").open("ab")
        self.process = subprocess.Popen([sys.executable, "-m", "services.gateway"], env=env, cwd=ROOT, stderr=log)

        async def listening() -> bool:
            assert self.process is not None and self.process.poll() is None, self.log()
            return (self.folder / "port").exists()

        await until(listening, seconds=60, what="a gateway that listens")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{(self.folder / 'port').read_text()}/v1"

    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key="key-of-the-application", max_retries=0)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


@asynccontextmanager
async def gateway_process(folder: Path, tree: dict[str, Any], **extra: str) -> AsyncIterator[GatewayProcess]:
    one = GatewayProcess(folder, tree, **extra)
    await one.start()
    try:
        yield one
    finally:
        one.stop()
