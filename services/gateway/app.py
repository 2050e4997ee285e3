"""Wires the gateway: its address for applications, its health, and what runs beside both."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler

from llamaduo.api_keys import KeyFile, key_to_show
from llamaduo.bus.connection import Bus
from llamaduo.bus.service import ended
from llamaduo.errors import describe
from llamaduo.health_api import health_app
from llamaduo.http_api import guarded
from llamaduo.telemetry import set_up_logging
from llamaduo.tls import calling, for_http
from services.gateway.calling import REQUEST_ID, request_id
from services.gateway.endpoints import Gateway
from services.gateway.gateway_file import read_gateway_file
from services.gateway.local_models import Known, read_known, write_known
from services.gateway.on_bus import BusLink
from services.gateway.settings import GatewaySettings
from services.gateway.shipping import keep_shipping, keep_synced, ship_all
from services.gateway.spool import Spool
from services.gateway.upstream import Target
from services.gateway.wire import BadRequest, error

log = logging.getLogger(__name__)

SYNC_S = 1.0
"""How often the disk is made to hold what was captured: what a power cut may cost."""
LAST_SHIPPING_S = 4.0
LEAVING_S = 8.0
"""Answers under way may take so long to end when the gateway is told to stop."""


@web.middleware
async def _bad_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except BadRequest as problem:
        return error(problem.status, str(problem), code=problem.code, param=problem.param)


async def _name_request(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.setdefault(REQUEST_ID, request_id(request))


def make_app(gateway: Gateway, max_body_bytes: int, keys: KeyFile | None = None) -> web.Application:
    """The server as an aiohttp application. With `keys` only callers who show one of them are let in."""
    routes = [
        web.post("/v1/chat/completions", gateway.chat),
        web.post("/v1/embeddings", gateway.embeddings),
        web.get("/v1/models", gateway.models),
        web.get("/v1/models/{name:.+}", gateway.model),
        web.post("/v1/responses", gateway.responses),
        # Azure's clients name the model in the path, the older ones as a deployment.
        web.post("/openai/deployments/{deployment}/chat/completions", gateway.chat),
        web.post("/openai/deployments/{deployment}/embeddings", gateway.embeddings),
        web.post("/openai/v1/chat/completions", gateway.chat),
        web.post("/openai/v1/embeddings", gateway.embeddings),
        web.post("/openai/responses", gateway.responses),
        web.post("/openai/v1/responses", gateway.responses),
    ]
    app = guarded(routes, largest_body=max_body_bytes, keys=keys, further=[_bad_requests])
    app.on_response_prepare.append(_name_request)
    app.cleanup_ctx.append(lambda _: _session(gateway))
    return app


async def _session(gateway: Gateway) -> AsyncIterator[None]:
    # As many connections as there are callers: the limit of a caller's own is elsewhere.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        gateway.session = session
        yield


async def listen(
    app: web.Application, host: str, port: int, port_file: Path | None, tls: ssl.SSLContext | None = None
) -> web.AppRunner:
    """Start to listen; the port that was taken (a free one for 0) is written to `port_file`."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=LEAVING_S, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, host, port, ssl_context=tls).start()
    if port_file is not None:
        temp = port_file.with_suffix(".tmp")
        temp.write_text(str(runner.addresses[0][1]))
        temp.replace(port_file)
    return runner


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Answer until told to stop. UserInputError where the gateway's file cannot be used."""
    # Of our own inference: the key that it asks for, and who signed its certificate.
    key = key_to_show(os.environ)
    believed = calling(settings.http_ca) if settings.http_ca else None
    kept = settings.state_dir / "gateway" / "aliases.json"
    known = read_known(kept)

    def approved(alias: str) -> list[Target]:
        model = known.get(alias)
        addresses = model.addresses if model else []
        return [Target("local", url, model.name, key, connect_s=1.0, tls=believed) for url in addresses if model]

    def changed(now: Known) -> None:
        nonlocal known
        if now == known:
            return
        known = now
        try:
            write_known(kept, now)
        except OSError as error:
            log.warning("what aliases mean cannot be kept: %s", error)

    file = read_gateway_file(settings.gateway_file)
    spool = Spool(
        settings.state_dir / "gateway" / "spool",
        max_bytes=settings.gateway_spool_max_bytes,
        segment_bytes=settings.gateway_segment_bytes,
        segment_s=settings.gateway_segment_s,
    )
    gateway = Gateway(file, os.environ, approved, spool)
    keys = KeyFile(settings.gateway_keys_file) if settings.gateway_keys_file else None
    app = make_app(gateway, settings.gateway_max_body_bytes, keys)
    link = BusLink(settings, changed)
    # The bus need not be there: without it, answers go on.
    health = health_app("gateway", settings.replica, lambda: [])
    tls = for_http(settings)
    runners = [
        await listen(app, settings.gateway_host, settings.gateway_port, settings.gateway_port_file, tls),
        await listen(health, settings.http_host, settings.http_port, settings.port_file, tls),
    ]
    source = f"gateway/{settings.replica}"
    background = [asyncio.create_task(keep_synced(spool, SYNC_S), name="spool")]
    if settings.gateway_on_bus:
        shipping = keep_shipping(spool.folder, lambda: link.bus, source, SYNC_S)
        background += [asyncio.create_task(link.stay(), name="bus"), asyncio.create_task(shipping, name="shipping")]
    try:
        await stop.wait()
    finally:
        for runner in runners:
            await runner.cleanup()
        await _ship_the_last(spool, link.bus, source)
        for task in background:
            await ended(task)


async def _ship_the_last(spool: Spool, bus: Bus | None, source: str) -> None:
    """What cannot be shipped in a few seconds is shipped by the next gateway of this folder."""
    try:
        await asyncio.to_thread(spool.close)
        async with asyncio.timeout(LAST_SHIPPING_S):
            if bus is not None and bus.client.is_connected:
                await ship_all(spool.folder, bus, source)
    except Exception as error:
        log.warning("captured rows stay on disk for now: %s", describe(error))


def run(settings: GatewaySettings) -> None:
    """Run until SIGTERM or SIGINT."""
    set_up_logging("gateway", settings.log_level)

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(settings, stop)

    asyncio.run(main())
