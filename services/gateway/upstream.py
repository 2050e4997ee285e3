"""One request to one server: asked, and its answer passed on as it comes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from multidict import CIMultiDictProxy

from services.gateway.routing import Place
from services.gateway.wire import is_stream

PASSED_ON = ("Accept", "Content-Type", "Idempotency-Key", "traceparent", "tracestate", "OpenAI-Beta")
"""Of the caller's headers. Never its cookies, its key or its address."""
PASSED_BACK = ("Content-Type", "Content-Encoding", "Cache-Control", "Retry-After")
PASSED_BACK_BEGINS = ("x-ratelimit-", "openai-", "x-ms-")


@dataclass(frozen=True)
class Target:
    """Who is asked: `model` is the name it is asked by, None for the caller's own."""

    place: Place
    base_url: str
    model: str | None = None
    key: str | None = None
    pass_authorization: bool = False
    azure_api_version: str | None = None
    timeout_s: float = 120.0
    connect_s: float = 3.0
    tls: ssl.SSLContext | None = None
    """Whose certificates are believed; None: those that the machine trusts."""


class Unanswered(Exception):
    """This server gave no answer that is of use; another one may.

    `status` and `body` are its own refusal, to be given back where nobody else can answer; None where none came.
    `broken`: it counts against the server, as a refusal or a 429 does not.
    """

    def __init__(
        self,
        why: str,
        *,
        broken: bool,
        timed_out: bool = False,
        status: int | None = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(why)
        self.broken, self.timed_out, self.status, self.body = broken, timed_out, status, body
        self.headers = dict(headers or {})


class BrokeOff(Exception):
    """The server broke off in the midst of a stream, when part of it was passed on already."""


@dataclass
class Opened:
    """An answer of which the first bytes are here; all of it where it is no stream."""

    status: int
    headers: dict[str, str]
    first: bytes
    streamed: bool
    _response: aiohttp.ClientResponse

    async def chunks(self) -> AsyncIterator[bytes]:
        """A stream, as it comes. BrokeOff where its end does not come."""
        yield self.first
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise BrokeOff(type(error).__name__) from error


def address(target: Target, path: str) -> str:
    """Where `path` (as `chat/completions`) is at this server."""
    query = f"?api-version={target.azure_api_version}" if target.azure_api_version else ""
    return f"{target.base_url}/{path}{query}"


def headers_to(target: Target, given: Mapping[str, str], request_id: str) -> dict[str, str]:
    """What is sent along: of the caller's headers only those that say what is asked, and the server's own key."""
    sent = {name: given[name] for name in PASSED_ON if name in given}
    # What is passed on as it comes must not be packed; and clients of ours never asked for it.
    sent |= {"Accept-Encoding": "identity", "X-Request-Id": request_id}
    if target.pass_authorization:
        sent |= {name: given[name] for name in ("Authorization", "api-key") if name in given}
    elif target.key is not None:
        sent |= {"api-key": target.key} if target.azure_api_version else {"Authorization": f"Bearer {target.key}"}
    return sent


def headers_back(answered: CIMultiDictProxy[str]) -> dict[str, str]:
    """Of the server's headers those that the caller can use."""
    back = {name: answered[name] for name in PASSED_BACK if name in answered}
    for name, value in answered.items():
        if name.lower().startswith(PASSED_BACK_BEGINS):
            back[name] = value
    if "x-request-id" in answered:
        back["x-upstream-request-id"] = answered["x-request-id"]
    return back


def _is_of_no_use(target: Target, status: int) -> bool:
    """A caller's own mistake is answered by whoever sees it first; but a local model may have narrower limits."""
    return status >= 500 or status in (408, 429) or (target.place == "local" and status >= 400)


@asynccontextmanager
async def asking(
    session: aiohttp.ClientSession,
    target: Target,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str],
    *,
    method: str = "POST",
) -> AsyncIterator[Opened]:
    """The server's answer, once its first bytes are here. Unanswered says why there is none.

    What is raised within is passed through; leaving early ends the server's work, too.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=target.connect_s, sock_read=target.timeout_s)
    try:
        response = await session.request(
            method,
            address(target, path),
            data=body,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
            ssl=target.tls or True,
        )
    except (aiohttp.ClientError, OSError) as error:
        raise _no_answer(target, error) from error
    try:
        opened = await _first_bytes(target, response)
        yield opened
    finally:
        # A stream that was not read to its end closes its connection; one that was gives it back.
        response.close() if not response.content.at_eof() else response.release()


async def _first_bytes(target: Target, response: aiohttp.ClientResponse) -> Opened:
    headers = headers_back(response.headers)
    streamed = response.status == 200 and is_stream(response.headers.get("Content-Type", ""))
    try:
        first = await response.content.readany() if streamed else await response.read()
    except (aiohttp.ClientError, OSError) as error:
        raise _no_answer(target, error) from error
    if _is_of_no_use(target, response.status):
        raise Unanswered(
            f"{target.place}: status {response.status}",
            broken=response.status >= 500
            or response.status == 408
            or (target.place == "local" and response.status == 404),
            status=response.status,
            body=first,
            headers=headers,
        )
    if streamed and not first:
        raise Unanswered(f"{target.place}: an empty stream", broken=True)
    return Opened(response.status, headers, first, streamed, response)


def _no_answer(target: Target, error: Exception) -> Unanswered:
    timed_out = isinstance(error, (TimeoutError, asyncio.TimeoutError))
    return Unanswered(f"{target.place}: {type(error).__name__}", broken=True, timed_out=timed_out)
