"""What the gateway answers on each path, and who is asked for it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import aiohttp
from aiohttp import web

from services.gateway.calling import Ask, Circuits, call, request_id, shadow
from services.gateway.capture import CaptureRules, Recorder, sampled
from services.gateway.gateway_file import Alias, Capture, GatewayFile, Upstream, key_of
from services.gateway.metrics import CAPTURED
from services.gateway.redaction import rules as redaction_rules
from services.gateway.routing import Place, Route, route
from services.gateway.spool import Spool
from services.gateway.upstream import Target, Unanswered, asking, headers_to
from services.gateway.wire import BadRequest, asked, error

log = logging.getLogger(__name__)

CHAT, EMBEDDINGS, MODELS = "chat/completions", "embeddings", "models"
MOST_SHADOWS = 8
"""Answers of the local model beside those of the service LLM at one time."""
Approved = Callable[[str], Sequence[Target]]
"""The local model that was approved for an alias, at each address where it is served; empty where there is none."""


class Gateway:
    """The handlers and what they share. Captured rows go to `spool`. UserInputError where a key is missing."""

    def __init__(self, file: GatewayFile, environment: Mapping[str, str], approved: Approved, spool: Spool) -> None:
        self._file, self._approved, self._spool = file, approved, spool
        self._rules = {name: _capture_rules(alias.capture) for name, alias in file.aliases.items()}
        self._shadows: set[asyncio.Task[None]] = set()
        self._keys = {upstream: key_of(upstream, environment) for upstream in _upstreams(file)}
        self.circuits = Circuits()
        self.session: aiohttp.ClientSession | None = None

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body, said = await asked(request)
        name = said["model"]
        alias = self._file.aliases.get(name)
        ask = _ask(request, CHAT, name if alias else "", body, said)
        if alias is None:
            return await call(self._open, request, ask, self._default(name), self.circuits)
        targets, way = self._targets(name, alias, _key(alias, request, said))
        rules = self._rules[name]
        if not way.record or not sampled(ask.request_id, rules.sample):
            return await call(self._open, request, ask, targets, self.circuits)
        recorder = Recorder(self._spool, rules, name, ask.request_id, said)
        response = await call(self._open, request, ask, targets, self.circuits, recorder)
        if way.shadow and response.status == 200:
            self._shadow(ask, said, recorder, [target for target in targets if target.place == "local"])
        return response

    def _shadow(self, ask: Ask, said: dict[str, Any], recorder: Recorder, local: Sequence[Target]) -> None:
        """Have the local model answer too, after the caller has its answer. What is too much at once is left out."""
        if len(self._shadows) >= MOST_SHADOWS:
            CAPTURED.labels(recorder.alias, "shadow_left_out").inc()
            return
        beside = replace(recorder, request_id=f"{recorder.request_id}-shadow", shadow_of=recorder.request_id)
        whole = {key: value for key, value in said.items() if key not in ("stream", "stream_options")}
        task = asyncio.create_task(shadow(self._open, ask, whole, local, self.circuits, beside))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        body, said = await asked(request)
        alias = self._file.aliases.get(said["model"])
        ask = _ask(request, EMBEDDINGS, said["model"] if alias else "", body, said)
        service = alias.service if alias is not None else None
        # An embedding of another model is of no use, so nobody steps in.
        targets = [self._target("service", service)] if service else self._default(said["model"])
        return await call(self._open, request, ask, targets, self.circuits)

    async def models(self, request: web.Request) -> web.StreamResponse:
        listed: list[Any] = [_model(name) for name in self._file.aliases]
        if self._file.service is not None:
            target = self._target("service", self._file.service)
            headers = headers_to(target, request.headers, request_id(request))
            try:
                async with asking(self._open, target, MODELS, None, headers, method="GET") as opened:
                    if opened.status == 200:
                        listed += [one for one in json.loads(opened.first)["data"] if one not in listed]
            except (Unanswered, ValueError, KeyError, TypeError) as problem:
                log.warning("the service LLM's list of models cannot be had: %s", problem)
        return web.json_response({"object": "list", "data": listed})

    async def model(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name in self._file.aliases:
            return web.json_response(_model(name))
        ask = Ask(request_id(request), f"{MODELS}/{name}", "", lambda _: None, "GET")
        return await call(self._open, request, ask, self._default(name), self.circuits)

    async def responses(self, _: web.Request) -> web.StreamResponse:
        message = "The Responses API is not served here. Use POST /v1/chat/completions."
        return error(501, message, code="not_implemented")

    @property
    def _open(self) -> aiohttp.ClientSession:
        assert self.session is not None
        return self.session

    def _default(self, name: str) -> list[Target]:
        if self._file.service is None:
            there = ", ".join(self._file.aliases)
            message = f"The model `{name}` does not exist here. There are: {there}."
            raise BadRequest(message, "model", status=404, code="model_not_found")
        return [self._target("service", self._file.service, of_caller=True)]

    def _targets(self, name: str, alias: Alias, key: str) -> tuple[list[Target], Route]:
        """Who is asked for an alias, in this order."""
        upstream = alias.service or self._file.service
        service = [self._target("service", upstream)] if upstream else []
        local = [self._target("local", alias.local)] if alias.local else list(self._approved(name))
        way = route(
            name,
            alias,
            key=key,
            service=bool(service),
            local=bool(local),
            service_open=any(self.circuits.is_open(target) for target in service),
        )
        asked_in_order = {"service": service, "local": local}
        return [target for place in way.order for target in asked_in_order[place]], way

    def _target(self, place: Place, upstream: Upstream, *, of_caller: bool = False) -> Target:
        return Target(
            place,
            upstream.base_url,
            None if of_caller else upstream.model,
            self._keys[upstream],
            upstream.pass_authorization,
            upstream.azure_api_version,
            upstream.timeout_s,
            upstream.connect_s,
        )


def _capture_rules(given: Capture) -> CaptureRules:
    return CaptureRules(given.sample, redaction_rules(given.redact, given.patterns), given.most_bytes)


def _upstreams(file: GatewayFile) -> list[Upstream]:
    found = [file.service, *(up for alias in file.aliases.values() for up in (alias.service, alias.local))]
    return [upstream for upstream in found if upstream is not None]


def _ask(request: web.Request, path: str, alias: str, body: bytes, said: dict[str, Any]) -> Ask:
    """The request as it goes out: byte for byte as it came, unless the model has another name there."""

    def body_for(model: str | None) -> bytes:
        if "deployment" not in request.match_info and model in (None, said["model"]):
            return body
        return json.dumps({**said, "model": model or said["model"]}, ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )

    return Ask(request_id(request), path, alias, body_for)


def _key(alias: Alias, request: web.Request, said: dict[str, Any]) -> str:
    """What a canary's choice hangs on; the request itself where the caller gives no key."""
    if alias.canary is None:
        return ""
    kind, _, header = alias.canary.key.partition(":")
    key = said.get("user") if kind == "user" else request.headers.get(header)
    return key if isinstance(key, str) and key else str(request_id(request))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "llamaduo"}
