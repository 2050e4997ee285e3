"""Sending made-up requests, and what must hold for each answer.

Kinds of requests: `sound` and `broken` by the document, `stray` (any method, path, header and body), and `raw`
(bytes that need not be HTTP at all).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.http_fuzz.running import Api

Kind = Literal["sound", "broken", "stray", "raw"]
MODES: dict[Kind, GenerationMode] = {"sound": GenerationMode.POSITIVE, "broken": GenerationMode.NEGATIVE}
LEAK = re.compile(rb"Traceback|File \"|site-packages|\.py\b|line \d+, in |[a-z]Error\b(?!\")")
"""What no answer may hold: a trace, a path of ours, the name of an exception."""
TIMEOUT_S = 30.0
QUIET_S = 0.3
"""After so long without an answer a server waits for more of what was no request yet."""


@dataclass
class Tally:
    """What was sent, how it was answered, and what was wrong."""

    sent: Counter[tuple[str, Kind, int]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.sent.values())

    def of(self, api: str, *kinds: Kind) -> int:
        """Requests of these kinds that one API got."""
        return sum(count for (name, kind, _), count in self.sent.items() if name == api and kind in kinds)

    def statuses(self, api: str, kind: Kind) -> dict[int, int]:
        """Status -> how often; 0 where the connection was closed without an answer."""
        found = {status: count for (name, k, status), count in self.sent.items() if (name, k) == (api, kind)}
        return dict(sorted(found.items()))


def fuzz(api: Api, document: dict[str, Any], count: int, number: int, tally: Tally) -> None:
    """Send about this many requests to an API, by this seed. Nothing is raised: what is wrong is in the tally."""
    load_all_checks()
    session = requests.Session()
    parts = _parts(api, document, session, tally)
    began, wanted = tally.total, count * OF_DOCUMENT
    for turn in range(20):
        weights = sum(part.weight for part in parts if not part.exhausted)
        left = wanted - (tally.total - began)
        if left <= 0 or not weights:
            break
        for place, part in enumerate(parts):
            if not part.exhausted:
                share = max(1, int(left * part.weight / weights))
                part.exhausted = part.send(share, number * 1000 + turn * 50 + place) < share
    paths = sorted(document["paths"])
    _raw(api, paths, tally)(max(3, count // 20), number)
    if (still := count - (tally.total - began)) > 0:
        _stray(api, paths, tally)(still, number)
    _lives(api, tally)


@dataclass
class _Part:
    """Requests of one kind to one operation: how to send so many by a seed, which tells how many it could send."""

    send: Callable[[int, int], int]
    weight: float
    exhausted: bool = False


OF_DOCUMENT = 0.75
"""The share of requests that is made up from the document, where it has so many different ones."""
SLOW = {"/v1/chat/completions": 0.15}
"""Weights of operations whose requests take long to make up."""


def _parts(api: Api, document: dict[str, Any], session: requests.Session, tally: Tally) -> list[_Part]:
    schema = schemathesis.openapi.from_dict(document)
    found: list[_Part] = []
    for one in schema.get_all_operations():
        operation: APIOperation[Any, Any, Any, Any] = one.ok()  # type: ignore[union-attr]
        # Of a plain text in a path there is no broken one.
        kinds: list[Kind] = ["sound", "broken"] if operation.body else ["sound"]
        for kind in kinds:
            send = _by_document(api, operation, kind, session, tally)
            found.append(_Part(send, SLOW.get(operation.path, 1.0)))
    return found


def _by_document(
    api: Api, operation: APIOperation[Any, Any, Any, Any], kind: Kind, session: requests.Session, tally: Tally
) -> Callable[[int, int], int]:
    checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
    cases = operation.as_strategy(generation_mode=MODES[kind])

    def send(count: int, number: int) -> int:
        sent = 0

        @_drawn(count, number)
        @given(cases)
        def one(case: Case[Any]) -> None:
            nonlocal sent
            sent += 1
            try:
                answer = case.call(base_url=api.url, session=session, timeout=TIMEOUT_S, allow_redirects=False)
            except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeError):
                return  # such a request cannot be put into HTTP: nothing was sent
            except requests.exceptions.RequestException as error:
                _note(tally, api, kind, 0, f"{operation.label}: no answer: {type(error).__name__}")
                return
            problem = _problem(answer.status_code, answer.content)
            try:
                case.validate_response(answer, checks=checks)
            except FailureGroup as group:
                problem = problem or "; ".join(f"{failure.title}" for failure in group.exceptions)
            # It may be that a broken request is sound all the same, as one with a key too many.
            where = f"{operation.label} ({kind}) {answer.status_code}: "
            _note(tally, api, kind, answer.status_code, problem and f"{where}{problem}: {answer.content[:300]!r}")

        # Few operations have endless requests: one without parameters has a single one.
        with contextlib.suppress(Unsatisfiable):
            one()
        return sent

    return send


# Not CONNECT: with an `Expect` that is no UTF-8, aiohttp answers it with a bare 500 before anything of ours is asked.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "X")
PRINTABLE = "".join(map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x100)]))
HEADERS = (
    "Authorization",
    "Content-Type",
    "Content-Encoding",
    "Idempotency-Key",
    "Accept",
    "Cookie",
    "Expect",
    "Range",
)
VALUES = (
    "Bearer x",
    "application/json",
    "multipart/form-data",
    "multipart/form-data; boundary=b",
    "gzip",
    "deflate",
    "br",
    "bytes=0-1",
)
BODIES = (
    b"",
    b"{}",
    b"null",
    b"[" * 5000,
    b'{"a":' * 3000,
    b"\x1f\x8b\x08\x00",
    b"--b\r\n",
    b'{"model":"base","messages":[]}',
    b'{"model":"\\ud800"}',
)


def _stray(api: Api, paths: list[str], tally: Tally) -> Callable[[int, int], None]:
    odd = st.text(alphabet=PRINTABLE.replace(" ", ""), max_size=20).map(lambda tail: "/" + tail)
    path = st.one_of(
        st.sampled_from(paths), st.builds(lambda one, tail: one + tail, st.sampled_from(paths), odd), odd
    )
    value = st.one_of(st.sampled_from(VALUES), st.text(alphabet=PRINTABLE, max_size=30))
    headers = st.dictionaries(st.sampled_from(HEADERS), value, max_size=4)
    body = st.one_of(st.sampled_from(BODIES), st.binary(max_size=300))
    address = api.url.removeprefix("http://")

    def send(count: int, number: int) -> None:
        @_drawn(count, number)
        @given(st.sampled_from(METHODS), path, headers, body)
        def one(method: str, target: str, more: dict[str, str], content: bytes) -> None:
            connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
            try:
                connection.putrequest(
                    method, target.encode("latin-1").decode("latin-1").translate(_QUOTED), skip_accept_encoding=True
                )
                for name, said in more.items():
                    connection.putheader(name, said.encode("latin-1"))
                connection.putheader("Content-Length", str(len(content)))
                connection.endheaders(content)
                answer = connection.getresponse()
                status, told = answer.status, answer.read()
            except (OSError, http.client.HTTPException):
                # The server may close on what is no HTTP; whether it still lives is asked at the end.
                status, told = 0, b""
            finally:
                connection.close()
            problem = _problem(status, told)
            _note(tally, api, "stray", status, problem and f"{method} {target!r} {status}: {problem}: {told[:300]!r}")

        one()

    return send


_QUOTED = {code: f"%{code:02X}" for code in [*range(0x80, 0x100), 0x20, 0x23, 0x7F]}


def _raw(api: Api, paths: list[str], tally: Tally) -> Callable[[int, int], None]:
    host, port = api.url.removeprefix("http://").split(":")
    opening = st.sampled_from(
        [
            b"",
            b"GET / HTTP/1.1\r\n",
            *(f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode() for path in paths[:3]),
            b"GET /healthz HTTP/9.9\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000,
        ]
    )

    def send(count: int, number: int) -> None:
        @_drawn(count, number)
        @given(opening, st.binary(max_size=200))
        def one(first: bytes, rest: bytes) -> None:
            told = b""
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as line:
                line.settimeout(QUIET_S)
                line.sendall(first + rest + b"\r\n\r\n")
                while part := line.recv(65536):
                    told += part
            found = re.match(rb"HTTP/1\.[01] (\d{3})", told)
            status = int(found[1]) if found else 0
            problem = _problem(status, told)
            _note(tally, api, "raw", status, problem and f"{first + rest!r}: {problem}: {told[:300]!r}")

        one()

    return send


def _problem(status: int, content: bytes) -> str:
    """What is wrong with an answer, whatever the API's document says."""
    if status >= 500 and status != 503:
        return "the server failed"
    if found := LEAK.search(content):
        return f"tells of its inside ({found[0].decode()!r})"
    if status >= 400 and content[:1] == b"{":
        with contextlib.suppress(ValueError):
            if "error" not in (told := json.loads(content)) and "problems" not in told:
                return "an error in another form"
    return ""


def _note(tally: Tally, api: Api, kind: Kind, status: int, problem: str) -> None:
    tally.sent[api.name, kind, status] += 1
    if problem:
        tally.problems.append(f"{api.name} {problem}")


def _lives(api: Api, tally: Tally) -> None:
    """It answers after all that, and has logged no error nobody expected."""
    answer = requests.get(api.url + api.health, timeout=TIMEOUT_S)
    if answer.status_code != 200:
        tally.problems.append(f"{api.name}: {api.health} says {answer.status_code} at the end")
    logged = api.log.read_text("utf-8", "replace") if api.log.exists() else ""
    if "Traceback" in logged or "Error handling request" in logged:
        place = logged.find("Traceback")
        tally.problems.append(f"{api.name} logged: {logged[max(0, place - 300) : place + 1500]}")


def _drawn(count: int, number: int) -> Callable[[Any], Any]:
    """So many examples, the same for the same seed, none kept and none tried to be made smaller."""

    def around(test: Any) -> Any:
        bounds = settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        return seed(number)(bounds(test))

    return around
