"""The HTTP API that every service has: whether it lives, whether it is ready, its metrics. Open to all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from llamaduo.http_api import guarded

LARGEST_BODY = 1024
"""Bytes; nothing here reads one."""


def health_app(name: str, replica: str, problems: Callable[[], Sequence[str]]) -> web.Application:
    """`problems` is what keeps the service from being ready now; empty when it is."""

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"alive": True, "service": name, "replica": replica})

    async def readyz(_: web.Request) -> web.Response:
        found = list(problems())
        return web.json_response({"ready": not found, "problems": found}, status=503 if found else 200)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    routes = [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)]
    return guarded(routes, largest_body=LARGEST_BODY)
