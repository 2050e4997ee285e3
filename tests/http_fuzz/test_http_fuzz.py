"""Requests nobody would send: no API of ours falls over, fails with 500, or tells of its inside.

A seeded share of what `make fuzz-http` sends.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from aiohttp import web

from deploy.http_contract import FOLDER, documents, render
from llamaduo.health_api import health_app
from services.emulator.app import make_app
from services.emulator.ledger import Ledger
from services.emulator.settings import EmulatorSettings
from tests.http_fuzz.__main__ import APIS, run

REQUESTS = 300


@pytest.mark.timeout(300)
def test_no_request_makes_an_api_fail_or_tell_of_its_inside(tmp_path: Path) -> None:
    tally = run(REQUESTS, 1, tmp_path)
    assert tally.problems == []
    assert tally.total >= REQUESTS
    for api in ("emulator", "inference"):
        # It is no use if nothing gets past the first check, or nothing is refused.
        assert tally.statuses(api, "sound").get(200, 0) >= 10, tally.sent
        assert tally.statuses(api, "broken").get(400, 0) >= 10, tally.sent
    assert tally.of("health", "stray") >= 20


def test_the_documents_are_what_the_code_says() -> None:
    wanted = {name: render(made) for name, made in documents().items()}
    assert {path.name: path.read_text("utf-8") for path in FOLDER.glob("*")} == wanted, "run `make docs`"
    assert set(wanted) == {f"{name}.json" for name in APIS}


def routes(app: web.Application) -> set[tuple[str, str]]:
    return {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method not in ("HEAD", "*")
    }


def documented(name: str) -> set[tuple[str, str]]:
    paths = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))["paths"]
    return {(method.upper(), path) for path, operations in paths.items() for method in operations}


def test_every_route_is_documented() -> None:
    assert routes(health_app("x", "y", lambda: [])) == documented("health")
    assert routes(make_app(EmulatorSettings(), Ledger())) == documented("emulator")
    source = (FOLDER.parents[2] / "services" / "inference" / "endpoint.py").read_text("utf-8")
    assert {path for _, path in documented("inference")} <= {
        path for path in ("/health", "/v1/models", "/v1/chat/completions", "/v1/completions") if f'"{path}"' in source
    }
