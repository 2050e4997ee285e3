"""Who answers a request: a pure function of the alias, of who is well, and of the key in the request."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from services.gateway.gateway_file import Alias, Mode

Place = Literal["service", "local"]
RECORDING: tuple[Mode, ...] = ("capture", "shadow", "canary")


@dataclass(frozen=True)
class Route:
    """Who is asked, in this order until one answers; whether it is recorded and the local model asked beside."""

    order: tuple[Place, ...]
    record: bool = False
    shadow: bool = False


def share_of(alias: str, key: str) -> float:
    """Where a key stands in [0, 1): always the same for an alias, and evenly spread over keys."""
    digest = hashlib.sha256(f"canary\n{alias}\n{key}".encode("utf-8", "surrogatepass")).hexdigest()
    return float(int(digest[:13], 16) / 16**13)


def route(name: str, alias: Alias, *, key: str, service: bool, local: bool, service_open: bool) -> Route:
    """The route of one request to alias `name`.

    `service`, `local`: whether there is such a one at all; a local model must have been approved.
    `service_open`: the circuit of the service LLM lets nothing through now.
    """
    canary = alias.canary is not None and share_of(name, key) * 100 < alias.canary.percent
    local_first = alias.mode == "local" or (alias.mode == "canary" and canary)
    may_be_local = local and (local_first or alias.fail_over)
    if not service:
        order: tuple[Place, ...] = ("local",) if local else ()
    elif not may_be_local:
        # Nobody else could answer, so an open circuit would only make one error of another.
        order = ("service",)
    else:
        order = ("local", "service") if local_first or service_open else ("service", "local")
    record = alias.mode in RECORDING
    return Route(order, record, alias.mode == "shadow" and local and order[:1] == ("service",))
