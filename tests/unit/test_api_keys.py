"""Who may call our HTTP APIs: keys in a file of digests, refusals, bounds, and what an error tells."""

from __future__ import annotations

import gzip
import hmac
import logging
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from llamaduo.api_keys import PREFIX, KeyFile, drop_key, key_to_show, new_key, read_keys
from llamaduo.cli.main import call
from llamaduo.errors import UserInputError
from llamaduo.http_api import guarded, json_object
from services.inference.adapter_store import AdapterStore
from services.inference.vllm_engine import BaseModel, EngineLimits, VllmEngine
from tests.unit.test_emulator_server import emulator
from tests.unit.vllm_stand_in import VllmStandIn

LARGEST = 2000
INSIDE = "password of the database"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "api-keys"


async def echo(request: web.Request) -> web.Response:
    return web.json_response(await json_object(request))


async def fail(_: web.Request) -> web.Response:
    raise KeyError(INSIDE)


async def fail_half_way(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    await answer.write(b"half")
    raise KeyError(INSIDE)


@asynccontextmanager
async def api(keys: Path | None = None) -> AsyncIterator[Callable[..., aiohttp.client._RequestContextManager]]:
    """Our middlewares around plain handlers; yields a way to send requests."""
    routes = [
        web.post("/echo", echo),
        web.get("/healthz", well),
        web.get("/fail", fail),
        web.get("/half", fail_half_way),
    ]
    app = guarded(routes, largest_body=LARGEST, keys=KeyFile(keys) if keys else None)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    root = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession() as session:
            yield lambda method, path, **more: session.request(method, root + path, **more)
    finally:
        await runner.cleanup()


async def well(_: web.Request) -> web.Response:
    return web.json_response({})


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# --- the file


def test_a_key_is_shown_once_and_kept_as_a_digest_that_its_owner_alone_can_read(file: Path) -> None:
    key = new_key(file, "ci")
    assert key.startswith(PREFIX) and len(key) >= 40
    assert key not in file.read_text() and key.removeprefix(PREFIX) not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [one.name for one in read_keys(file)] == ["ci"]
    assert KeyFile(file).owner_of(key) == "ci"


def test_no_two_keys_are_alike(file: Path) -> None:
    assert len({new_key(file, f"n{number}") for number in range(20)}) == 20


@pytest.mark.parametrize(
    "change", [lambda key: key[:-1], lambda key: key + "x", str.upper, lambda _: "", lambda _: "\udcff"]
)
def test_what_is_not_a_key_opens_nothing(file: Path, change: Callable[[str], str]) -> None:
    key = new_key(file, "ci")
    assert KeyFile(file).owner_of(change(key)) is None


def test_every_key_is_compared_in_constant_time_also_after_a_match(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new_key(file, "first")
    new_key(file, "second")
    compared: list[str] = []
    honest = hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append(one)
        return honest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert KeyFile(file).owner_of(first) == "first"
    assert len(compared) == 2


def test_a_dropped_key_opens_nothing_at_once_and_a_new_one_does(file: Path) -> None:
    old = new_key(file, "old")
    keys = KeyFile(file)
    assert keys.owner_of(old) == "old"
    fresh = new_key(file, "fresh")
    assert (keys.owner_of(old), keys.owner_of(fresh)) == ("old", "fresh")
    drop_key(file, "old")
    assert (keys.owner_of(old), keys.owner_of(fresh)) == (None, "fresh")


def test_a_file_that_others_can_read_or_that_is_gone_lets_nobody_in(file: Path) -> None:
    key = new_key(file, "ci")
    keys = KeyFile(file)
    file.chmod(0o640)
    assert keys.owner_of(key) is None
    with pytest.raises(UserInputError, match="others can read"):
        KeyFile(file)
    file.chmod(0o600)
    assert keys.owner_of(key) == "ci"
    file.unlink()
    assert keys.owner_of(key) is None
    with pytest.raises(UserInputError, match="cannot be read"):
        KeyFile(file)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a\nb", "x" * 65])
def test_a_name_that_would_break_the_file_is_refused(file: Path, name: str) -> None:
    with pytest.raises(UserInputError, match="cannot be a key's name"):
        new_key(file, name)


def test_a_line_that_is_no_key_is_named(file: Path) -> None:
    new_key(file, "ci")
    file.write_text(file.read_text() + "ld-a-key-in-the-clear\n")
    with pytest.raises(UserInputError, match=r"api-keys:2: this is no line"):
        read_keys(file)


def test_the_commands_make_list_and_drop_keys(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["keys", "new", "ci", "--file", str(file)]) == 0
    key = capsys.readouterr().out.strip()
    assert KeyFile(file).owner_of(key) == "ci"
    assert call(["keys", "list", "--file", str(file)]) == 0
    assert capsys.readouterr().out.split()[-1] == "ci"
    assert call(["keys", "new", "ci", "--file", str(file)]) == 2
    assert call(["keys", "drop", "nobody", "--file", str(file)]) == 2
    assert call(["keys", "drop", "ci", "--file", str(file)]) == 0
    assert KeyFile(file).owner_of(key) is None


def test_the_command_line_finds_its_key_in_the_environment_or_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("ld-in-a-file\n")
    assert key_to_show({}) is None
    assert key_to_show({"LLAMADUO_API_KEY_FILE": str(tmp_path / "key")}) == "ld-in-a-file"
    assert key_to_show({"LLAMADUO_API_KEY": "ld-x", "LLAMADUO_API_KEY_FILE": str(tmp_path / "no")}) == "ld-x"
    with pytest.raises(UserInputError, match="LLAMADUO_API_KEY_FILE"):
        key_to_show({"LLAMADUO_API_KEY_FILE": str(tmp_path / "no")})


# --- over HTTP


async def test_without_a_key_there_is_401_in_openais_form_and_health_is_open(file: Path) -> None:
    key = new_key(file, "ci")
    async with api(file) as send:
        shown: list[dict[str, str]] = [{}, bearer("wrong"), {"Authorization": key}, {"Authorization": f"Basic {key}"}]
        for headers in shown:
            async with send("POST", "/echo", json={}, headers=headers) as answer:
                assert answer.status == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
                error = (await answer.json())["error"]
                assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
                assert key not in str(error)
        async with send("POST", "/echo", json={"a": 1}, headers=bearer(key)) as answer:
            assert (answer.status, await answer.json()) == (200, {"a": 1})
        async with send("GET", "/healthz") as answer:
            assert answer.status == 200
        async with send("GET", "/nowhere") as answer:
            assert answer.status == 401, "who has no key is not told what there is"


async def test_bytes_that_are_no_text_as_a_key_are_a_wrong_key(file: Path) -> None:
    new_key(file, "ci")
    async with api(file) as send, send("POST", "/echo", headers={"Authorization": "Bearer \udcff\udcfe"}) as answer:
        assert answer.status == 401


@pytest.mark.parametrize(("compressed", "size"), [(False, 10_000), (True, 30_000_000)])
async def test_a_body_above_the_limit_is_refused_also_one_that_unpacks_to_that(compressed: bool, size: int) -> None:
    body = b'{"a": "' + b" " * size + b'"}'
    headers = {"Content-Encoding": "gzip"} if compressed else {}
    async with api() as send:
        sent = gzip.compress(body) if compressed else body
        async with send("POST", "/echo", data=sent, headers=headers) as answer:
            assert answer.status == 413
            error = (await answer.json())["error"]
            assert error["code"] == "body_too_large" and str(LARGEST) in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"a": NaN}', b'{"a": "\\ud800"}',
        b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", b'{"a": ' + b"9" * 1900 + b"e999999}",
    ],
)  # fmt: skip
async def test_a_body_that_is_no_sound_object_of_json_is_refused(body: bytes) -> None:
    async with api() as send, send("POST", "/echo", data=body) as answer:
        assert answer.status == 400 and (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_what_nobody_expected_is_logged_under_an_id_and_told_as_that_id_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with api() as send:
        with caplog.at_level(logging.ERROR):
            async with send("GET", "/fail") as answer:
                text = await answer.text()
                number = answer.headers["X-Request-ID"]
        assert answer.status == 500 and answer.content_type == "application/json"
        assert number in text and INSIDE not in text and "Traceback" not in text and "KeyError" not in text
        assert number in caplog.text and INSIDE in caplog.text

        with caplog.at_level(logging.ERROR, logger="aiohttp.server"), pytest.raises(aiohttp.ClientError):
            async with send("GET", "/half") as answer:
                await answer.read()
        assert not [record for record in caplog.records if record.name == "aiohttp.server"]


async def test_paths_and_methods_that_are_not_there_are_refused_as_json() -> None:
    async with api() as send:
        for method, path, status in (("GET", "/nowhere", 404), ("DELETE", "/echo", 405)):
            async with send(method, path) as answer:
                assert answer.status == status and "error" in await answer.json()
        assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize("path", ["/echo", "/nowhere"])
@pytest.mark.parametrize(("expects", "more"), [("100-continue", ""), ("a miracle", ""), ("\udce9", "")])
async def test_whatever_a_client_expects_the_server_does_not_fail(path: str, expects: str, more: str) -> None:
    async with api() as send, send("POST", path, data=b"{}", headers={"Expect": expects}) as answer:
        assert answer.status == (200 if path == "/echo" else 404)


# --- our APIs


async def test_the_endpoint_of_the_served_models_asks_for_a_key(file: Path, tmp_path: Path) -> None:
    key = new_key(file, "ci")
    server = VllmStandIn()
    server.root = "/home/somebody/models/base"
    limits = EngineLimits(keys=KeyFile(file), largest_body=LARGEST)
    engine = VllmEngine(server, BaseModel("base", None, None), AdapterStore(tmp_path / "store"), limits)
    await engine.start()
    try:
        body = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "seed": 1}
        async with aiohttp.ClientSession() as session:
            for headers, status in (({}, 401), (bearer(key), 200)):
                async with session.get(f"{engine.base_url}/models", headers=headers) as answer:
                    assert answer.status == status and "/home/" not in await answer.text()
                async with session.post(f"{engine.base_url}/chat/completions", json=body, headers=headers) as answer:
                    assert answer.status == status
            async with session.get(engine.base_url.removesuffix("/v1") + "/health") as answer:
                assert answer.status == 200
            long = {**body, "messages": [{"role": "user", "content": "x" * LARGEST}]}
            async with session.post(f"{engine.base_url}/chat/completions", json=long, headers=bearer(key)) as answer:
                assert answer.status == 413
            for greedy in ({"n": 17}, {"n": True}, {"n": 0}, {"best_of": 1000}, {"prompt": ["x"] * 65}):
                async with session.post(
                    f"{engine.base_url}/completions", json={**body, **greedy}, headers=bearer(key)
                ) as answer:
                    assert answer.status == 400, greedy
    finally:
        await engine.stop()


async def test_what_vllm_says_when_it_fails_stays_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = VllmStandIn()
    engine = VllmEngine(server, BaseModel("base", None, None), AdapterStore(tmp_path / "store"))
    await engine.start()
    try:
        server.breaks_at = 1
        body = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "seed": 1}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{engine.base_url}/chat/completions", json=body) as answer,
        ):
            assert answer.status == 502 and "EngineCore" not in await answer.text()
            assert answer.headers["X-Request-ID"] in caplog.text and "EngineCore" in caplog.text
    finally:
        await engine.stop()


async def test_the_emulator_takes_keys_from_a_file(file: Path) -> None:
    key = new_key(file, "ci")
    async with emulator(api_keys_file=file, api_key="the-other") as server:
        for shown, status in (("x", 401), (key, 200), ("the-other", 200)):
            assert (await server.get("/v1/models", **bearer(shown)))[0] == status
        assert (await server.get("/healthz"))[0] == 200
