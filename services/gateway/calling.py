"""Asks one after the other of those who may answer, and passes the answer of the first that does to the caller."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from llamaduo.telemetry import GATEWAY_CIRCUIT, GATEWAY_FAIL_OVERS, GATEWAY_REQUESTS
from services.gateway.circuit import Circuit, CircuitRules, Leave, failed, leave, probing, succeeded, untold
from services.gateway.routing import Place
from services.gateway.upstream import BrokeOff, Opened, Target, Unanswered, asking, headers_to
from services.gateway.wire import error, error_event

log = logging.getLogger(__name__)

SERVED_BY = "x-llamaduo-served-by"
SERVED_MODEL = "x-llamaduo-model"
REQUEST_ID = "x-request-id"
REQUEST = web.RequestKey("request", str)
"""The id that was given to a request."""
DONE = b"data: [DONE]"
RULES: dict[Place, CircuitRules] = {"service": CircuitRules(), "local": CircuitRules(failures=1)}
"""A replica that does not answer once is passed over for a second: there may be another one."""


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
            GATEWAY_CIRCUIT.labels(target.base_url).set(after.opened_at is not None)
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


@dataclass
class Said:
    """What was answered, gathered on its way; `parts` is None where it is not wanted or was too much."""

    target: Target
    streamed: bool
    parts: list[bytes] | None
    size: int = 0

    def add(self, part: bytes, most: int) -> None:
        """One more part."""
        self.size += len(part)
        if self.parts is not None and self.size <= most:
            self.parts.append(part)
        else:
            self.parts = None


Recorder = Callable[[Said], "asyncio.Future[None] | None"]
"""Takes a whole answer of status 200 before its end is passed on; may give something to wait for."""


@dataclass(frozen=True)
class Recording:
    """Who takes answers, and up to how many bytes."""

    take: Recorder
    most_bytes: int


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
                    GATEWAY_FAIL_OVERS.labels(ask.alias, target.place).inc()
                response = _response(opened, ask, target)
                GATEWAY_REQUESTS.labels(ask.alias, target.place, str(opened.status)).inc()
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
    GATEWAY_REQUESTS.labels(ask.alias, "nobody", str(problem.status if problem else None)).inc()
    return _refusal(problem)


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
    wanted = recording is not None and opened.status == 200
    said = Said(target, opened.streamed, [] if wanted else None)
    most = recording.most_bytes if recording is not None else 0
    said.add(opened.first, most)
    recorded = not wanted

    async def record() -> None:
        nonlocal recorded
        recorded = True
        if recording is not None and (waiting := recording.take(said)) is not None:
            await waiting

    if not opened.streamed:
        if not recorded:
            await record()
        return
    await response.prepare(request)
    tail = opened.first
    if not recorded and DONE in tail:
        await record()
    await response.write(opened.first)
    try:
        async for chunk in opened.rest():
            said.add(chunk, most)
            # The mark of the end may be cut in two by the network.
            tail = tail[-len(DONE) :] + chunk
            if not recorded and DONE in tail:
                await record()
            await response.write(chunk)
    except BrokeOff as broke_off:
        await response.write(error_event(f"The answer broke off: {broke_off}"))
        await response.write_eof()
        raise
    if not recorded:
        await record()
    await response.write_eof()


def _refusal(problem: Unanswered | None) -> web.Response:
    if problem is None:
        return error(503, "Nobody who could answer is in reach.", "server_error", code="nobody_answers")
    if problem.status is not None:
        return web.Response(status=problem.status, body=problem.body, headers=problem.headers)
    if problem.timed_out:
        return error(504, "The model did not answer in time.", "server_error", code="upstream_timeout")
    return error(502, "The model could not be reached.", "server_error", code="upstream_unreachable")
