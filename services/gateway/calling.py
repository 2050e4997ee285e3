"""Asks one after the other of those who may answer, and passes the answer of the first that does to the caller."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from services.gateway.circuit import Circuit, CircuitRules, Leave, failed, leave, probing, succeeded, untold
from services.gateway.metrics import CIRCUIT, FAIL_OVERS, REQUESTS
from services.gateway.routing import Place
from services.gateway.upstream import BrokeOff, Opened, Target, Unanswered, asking, headers_to
from services.gateway.wire import error, error_event

log = logging.getLogger(__name__)

SERVED_BY = "x-llamaduo-served-by"
SERVED_MODEL = "x-llamaduo-model"
REQUEST_ID = "x-request-id"
_REQUEST = web.RequestKey("request", str)
DONE = b"data: [DONE]"
RULES: dict[Place, CircuitRules] = {"service": CircuitRules(), "local": CircuitRules(failures=1)}
"""A replica that does not answer once is passed over for a second: there may be another one."""


def request_id(request: web.Request) -> str:
    """The id of a request, given to it when it is first asked for."""
    if (known := request.get(_REQUEST)) is None:
        known = request[_REQUEST] = f"req_{uuid.uuid4().hex}"
    return known


@dataclass
class Circuits:
    """One for each server. `clock` gives seconds and only ever goes forward."""

    clock: Callable[[], float] = time.monotonic
    states: dict[str, Circuit] = field(default_factory=dict)

    def is_open(self, target: Target) -> bool:
        """Whether nothing may be sent to this server now."""
        return leave(self.states.get(target.base_url, Circuit()), RULES[target.place], self.clock()) == "no"

    def take(self, target: Target, *, always: bool) -> Leave:
        """Leave to send; with `always` also through an open circuit."""
        state = self.states.get(target.base_url, Circuit())
        now = self.clock()
        given = leave(state, RULES[target.place], now)
        if given == "probe" or (given == "no" and always):
            # Who asks in any case finds out as well.
            self.states[target.base_url] = probing(state, now)
            return "probe"
        return given

    def tell(self, target: Target, taken: Leave, went_well: bool | None) -> None:
        """What became of it; None: nothing was learned."""
        state = self.states.get(target.base_url, Circuit())
        if went_well is None:
            after = untold(state, taken)
        elif went_well:
            after = succeeded(state, taken)
        else:
            after = failed(state, RULES[target.place], taken, self.clock())
        self.states[target.base_url] = after
        if target.place == "service" and (after.opened_at is None) != (state.opened_at is None):
            CIRCUIT.labels(target.base_url).set(after.opened_at is not None)
            log.warning(
                "%s %s", target.base_url, "does not answer" if after.opened_at is not None else "answers again"
            )


@dataclass(frozen=True)
class Ask:
    """A request as it goes out: `body_for` gives it with the model's name that a target is asked by."""

    request_id: str
    path: str
    alias: str
    body_for: Callable[[str | None], bytes | None]
    method: str = "POST"


class Sink(Protocol):
    """Takes one answer on its way."""

    def add(self, part: bytes) -> None:
        """The next bytes of it."""
        ...

    def finish(self) -> Awaitable[None] | None:
        """It is whole, and its end is passed on after this; may give something to wait for first."""
        ...


class Recording(Protocol):
    """Who records answers of status 200."""

    def begin(self, target: Target, *, streamed: bool) -> Sink:
        """An answer begins to come."""
        ...


async def call(
    session: aiohttp.ClientSession,
    request: web.Request,
    ask: Ask,
    targets: Sequence[Target],
    circuits: Circuits,
    recording: Recording | None = None,
) -> web.StreamResponse:
    """The answer of the first of `targets` that gives one, or the last one's refusal in OpenAI's form."""
    problem: Unanswered | None = None
    first = targets[0].place if targets else None
    for number, target in enumerate(targets):
        last = number == len(targets) - 1
        taken = circuits.take(target, always=last)
        if taken == "no":
            continue
        went_well: bool | None = None
        headers = headers_to(target, request.headers, ask.request_id)
        try:
            async with asking(
                session, target, ask.path, ask.body_for(target.model), headers, method=ask.method
            ) as opened:
                went_well = True
                if target.place != first or problem is not None:
                    FAIL_OVERS.labels(ask.alias, target.place).inc()
                response = _response(opened, ask, target)
                REQUESTS.labels(ask.alias, target.place, str(opened.status)).inc()
                await _pass_on(request, response, opened, target, recording)
                return response
        except Unanswered as unanswered:
            went_well = not unanswered.broken
            # What the service LLM says, as when to try again, is of more use to the caller.
            problem = unanswered if problem is None or target.place == "service" else problem
            log.info("%s: %s", ask.request_id, unanswered)
        except BrokeOff as broke_off:
            went_well = False
            log.warning("%s: %s broke off a stream: %s", ask.request_id, target.place, broke_off)
            return response
        finally:
            circuits.tell(target, taken, went_well)
    REQUESTS.labels(ask.alias, "nobody", str(problem.status if problem else None)).inc()
    return _refusal(problem)


async def shadow(
    session: aiohttp.ClientSession,
    ask: Ask,
    said: dict[str, Any],
    targets: Sequence[Target],
    circuits: Circuits,
    recording: Recording,
) -> None:
    """The answer of the first of `targets` that gives one, for the record alone."""
    for target in targets:
        taken = circuits.take(target, always=False)
        if taken == "no":
            continue
        went_well: bool | None = None
        body = json.dumps({**said, "model": target.model or said["model"]}).encode()
        headers = headers_to(target, {"Content-Type": "application/json"}, ask.request_id)
        try:
            async with asking(session, target, ask.path, body, headers) as opened:
                went_well = True
                if opened.status == 200:
                    sink = recording.begin(target, streamed=False)
                    sink.add(opened.first)
                    await _finish(sink)
                return
        except Unanswered as unanswered:
            went_well = not unanswered.broken
            log.info("%s in the shadow: %s", ask.request_id, unanswered)
        finally:
            circuits.tell(target, taken, went_well)


def _response(opened: Opened, ask: Ask, target: Target) -> web.StreamResponse:
    headers = {**opened.headers, REQUEST_ID: ask.request_id, SERVED_BY: target.place}
    if target.model is not None:
        headers[SERVED_MODEL] = target.model
    if opened.streamed:
        return web.StreamResponse(status=opened.status, headers=headers)
    return web.Response(status=opened.status, headers=headers, body=opened.first)


async def _pass_on(
    request: web.Request, response: web.StreamResponse, opened: Opened, target: Target, recording: Recording | None
) -> None:
    """Each chunk as it comes. What records has taken the whole answer before the caller can know of its end."""
    sink = recording.begin(target, streamed=opened.streamed) if recording and opened.status == 200 else None
    if not opened.streamed:
        if sink is not None:
            sink.add(opened.first)
            await _finish(sink)
        return
    await response.prepare(request)
    tail = b""
    try:
        async for chunk in opened.chunks():
            # The mark of the end may be cut in two by the network.
            tail = tail[1 - len(DONE) :] + chunk
            if sink is not None and DONE in tail:
                sink.add(chunk)
                await _finish(sink)
                sink = None
            await response.write(chunk)
            if sink is not None:
                sink.add(chunk)
    except BrokeOff as broke_off:
        await response.write(error_event(f"The answer broke off: {broke_off}"))
        await response.write_eof()
        raise
    if sink is not None:
        await _finish(sink)
    await response.write_eof()


async def _finish(sink: Sink) -> None:
    if (waiting := sink.finish()) is not None:
        await waiting


def _refusal(problem: Unanswered | None) -> web.Response:
    if problem is None:
        return error(503, "Nobody who could answer is in reach.", "server_error", code="nobody_answers")
    if problem.status is not None:
        return web.Response(status=problem.status, body=problem.body, headers=problem.headers)
    if problem.timed_out:
        return error(504, "The model did not answer in time.", "server_error", code="upstream_timeout")
    return error(502, "The model could not be reached.", "server_error", code="upstream_unreachable")
