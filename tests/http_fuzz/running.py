"""The APIs under test, running: the emulator and a service as processes, the endpoint of the served models here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from services.inference.adapter_store import AdapterStore
from services.inference.vllm_engine import BaseModel, VllmEngine
from tests.support import ROOT, NatsServer, connected, environment, nats_server
from tests.unit.vllm_stand_in import VllmStandIn

MODEL = "base"
STARTS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Api:
    """A running API: its OpenAPI document's name, where it listens, what it logs, and how to see that it lives."""

    name: str
    url: str
    log: Path
    health: str


class StandIn(VllmStandIn):
    """As vLLM does, it refuses what is no chat with 400, and answers anything else."""

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body.get("messages", body.get("prompt")) or not isinstance(body.get("max_tokens", 1), int):
            refused = {"message": "no chat", "type": "BadRequestError", "param": None, "code": 400}
            return web.json_response({"error": refused}, status=400)
        if body.get("stream") is True:
            return web.Response(body=b"data: {}\n\ndata: [DONE]\n\n", content_type="text/event-stream")
        choice = {"message": {"content": "hi"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        return web.json_response({"choices": [choice], "usage": usage})


@contextmanager
def emulator(folder: Path) -> Iterator[Api]:
    """The emulator as its own process."""
    command = ["-m", "services.emulator", "--model-name", MODEL, "--batch-ms", "0"]
    with _process("emulator", command, folder) as (url, log):
        yield Api("emulator", url, log, "/healthz")


@contextmanager
def service(folder: Path) -> Iterator[Api]:
    """The verdict service on a real bus."""
    with nats_server(folder / "nats") as server:
        asyncio.run(_set_up(server, folder))
        settings = {
            "LLAMADUO_NATS_URL": server.url,
            "LLAMADUO_PROFILE": "faults",
            "LLAMADUO_STATE_DIR": str(folder / "state"),
            "LLAMADUO_PORT_FILE": str(folder / "verdict.port"),
        }
        with _process("verdict", ["-m", "services.verdict"], folder, **settings) as (url, log):
            yield Api("health", url, log, "/healthz")


@contextmanager
def endpoint(folder: Path) -> Iterator[Api]:
    """The endpoint of the served models in a thread of this process, before a stand-in for vLLM."""
    began, ending = threading.Event(), asyncio.Event()
    address: list[str] = []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        engine = VllmEngine(StandIn(), BaseModel(MODEL, None, None), AdapterStore(folder / "served"))
        await engine.start()
        address.append(engine.base_url.removesuffix("/v1"))
        began.set()
        await ending.wait()
        await engine.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert began.wait(STARTS_WITHIN_S), "the endpoint did not start"
    try:
        yield Api("inference", address[0], folder / "endpoint.log", "/health")
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(STARTS_WITHIN_S)


async def _set_up(server: NatsServer, folder: Path) -> None:
    async with connected(server, folder):
        pass  # streams, durables and buckets are there now


@contextmanager
def _process(name: str, command: list[str], folder: Path, **settings: str) -> Iterator[tuple[str, Path]]:
    port_file, log = folder / f"{name}.port", folder / f"{name}.log"
    more = ["--port-file", str(port_file)] if name == "emulator" else []
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, *command, *more],
            cwd=ROOT,
            env=environment(**settings),
            stdout=out,
            stderr=out,
        )
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not port_file.exists():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{int(port_file.read_text())}", log
        assert process.poll() is None, f"{name} ended: {log.read_text()[-2000:]}"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def with_names(api: Api, document: dict[str, object]) -> dict[str, object]:
    """The document with names that exist where a name is asked for, so that sound requests get beyond a 404."""
    text = json.dumps(document)
    found = json.loads(text)
    schemas = found["components"]["schemas"]
    for name in ("ChatRequest", "Chat", "Prompted"):
        if name in schemas:
            schemas[name]["properties"]["model"] = {"enum": [MODEL]}
    if api.name == "emulator":
        line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": MODEL}}
        file = _uploaded(api.url, json.dumps(line).encode())
        asked = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = json.loads(_post(f"{api.url}/v1/batches", json.dumps(asked).encode(), "application/json"))["id"]
        schemas["BatchAsked"]["properties"]["input_file_id"] = {"enum": [file, "file-none"]}
        for path in found["paths"].values():
            for operation in path.values():
                for parameter in operation.get("parameters", []):
                    if parameter["in"] == "path":
                        parameter["schema"] = {"anyOf": [{"enum": [file, batch]}, parameter["schema"]]}
    return dict(found)


def _uploaded(url: str, content: bytes) -> str:
    parts = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + content + b"\r\n--b--\r\n"
    )
    return str(json.loads(_post(f"{url}/v1/files", parts, "multipart/form-data; boundary=b"))["id"])


def _post(url: str, body: bytes, kind: str) -> bytes:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": kind}, method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())
