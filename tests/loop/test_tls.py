"""TLS by configuration, with throw-away certificates: who is refused, and what is said of files that are no use."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import nats.errors
import pytest

from llamaduo import tls
from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.errors import UserInputError
from llamaduo.settings import BusSettings, ServiceSettings
from services.emulator.app import make_app, start
from services.emulator.ledger import Ledger
from services.emulator.settings import EmulatorSettings
from services.inference.endpoint import Endpoint
from tests.certificates import Authority
from tests.loop.test_settling import dataset
from tests.support import ROOT, NatsServer, environment, until


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def others(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "others")


def guarded(folder: Path, authority: Authority, *, ask_clients: bool = False) -> NatsServer:
    """A server over TLS, by the file that is there for it."""
    text, pair = (ROOT / "deploy" / "nats" / "tls.conf").read_text(), authority.pair("nats")
    for place, file in (("nats_cert", pair.cert), ("nats_key", pair.key), ("nats_ca", authority.ca)):
        text = text.replace(f"/run/secrets/{place}", str(file))
    if ask_clients:
        text = text.replace("# ca_file", "ca_file").replace("# verify", "verify")
    return NatsServer(folder / "nats", more=text)


@contextlib.contextmanager
def running(server: NatsServer) -> Iterator[NatsServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@asynccontextmanager
async def bus_over(server: NatsServer, **settings: Any) -> AsyncIterator[Bus]:
    given = {"nats_url": server.url, "profile": "faults", **settings}
    bus = await Bus.connect(BusSettings(**given), "test", wait=False)
    try:
        yield bus
    finally:
        await bus.close()


async def is_refused(server: NatsServer, **settings: Any) -> bool:
    try:
        async with bus_over(server, **settings):
            return False
    except (UserInputError, OSError, nats.errors.Error):
        return True


async def test_a_service_talks_over_tls_and_says_so_over_tls(tmp_path: Path, ours: Authority) -> None:
    """The bus and its own health endpoints; a caller in the clear and one with another CA get nothing."""
    pair = ours.pair("judge")
    with running(guarded(tmp_path, ours)) as server:
        async with bus_over(server, nats_ca=ours.ca) as bus:
            await topology.bootstrap(bus.js, profile="faults")
            assert await bus.publish(dataset())
        env = environment(
            LLAMADUO_NATS_URL=server.url, LLAMADUO_NATS_CA=str(ours.ca), LLAMADUO_PROFILE="faults",
            LLAMADUO_STATE_DIR=str(tmp_path), LLAMADUO_PORT_FILE=str(tmp_path / "port"),
            LLAMADUO_HTTP_CERT=str(pair.cert), LLAMADUO_HTTP_KEY=str(pair.key),
        )  # fmt: skip
        command = [sys.executable, "-m", "services.judge", "--evaluator", "exact-match"]
        process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
        try:

            async def port() -> str | None:
                return (tmp_path / "port").read_text() if (tmp_path / "port").exists() else None

            there = f"://127.0.0.1:{await until(port)}/readyz"
            known = tls.calling(ours.ca)

            async def ready() -> bool:
                async with aiohttp.ClientSession() as http, http.get("https" + there, ssl=known) as answer:
                    return answer.status == 200

            await until(ready, what="a service that is ready over TLS")
            async with aiohttp.ClientSession() as http:
                with pytest.raises(aiohttp.ClientError):
                    await http.get("http" + there)
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await http.get("https" + there)
        finally:
            process.terminate()
            assert process.wait(20) == 0


async def test_a_bus_over_tls_takes_nobody_in_the_clear_and_is_taken_from_no_other_ca(
    tmp_path: Path, ours: Authority, others: Authority
) -> None:
    with running(guarded(tmp_path, ours)) as server:
        assert await is_refused(server, nats_ca=others.ca)
        assert await is_refused(server), "it wants TLS"
        assert await is_refused(server, nats_url=server.url.replace("nats:", "tls:")), "no CA the machine trusts"
        assert not await is_refused(server, nats_ca=ours.ca)
        # In the clear, by hand: no client of ours would.
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
        assert b"PONG" not in await asyncio.wait_for(reader.read(), 10)
        writer.close()


async def test_a_bus_may_ask_for_a_clients_certificate(tmp_path: Path, ours: Authority, others: Authority) -> None:
    mine, theirs = ours.pair("client"), others.pair("stranger")
    with running(guarded(tmp_path, ours, ask_clients=True)) as server:
        assert await is_refused(server, nats_ca=ours.ca)
        assert await is_refused(server, nats_ca=ours.ca, nats_cert=theirs.cert, nats_key=theirs.key)
        assert not await is_refused(server, nats_ca=ours.ca, nats_cert=mine.cert, nats_key=mine.key)


async def test_a_password_is_not_sent_to_who_says_it_has_no_tls(tmp_path: Path, ours: Authority) -> None:
    """Whoever sits between could say so."""
    heard = b""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        hello = {"server_id": "x", "version": "2.12.0", "max_payload": 1048576, "auth_required": True, "proto": 1}
        writer.write(f"INFO {json.dumps(hello)}\r\n".encode())
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                heard += data
                writer.write(b"PONG\r\n")

    liar = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = liar.sockets[0].getsockname()[1]
    for url in ("nats", "tls"):
        settings = BusSettings(
            nats_url=f"{url}://127.0.0.1:{port}", nats_user="u", nats_password="p-secret", nats_ca=ours.ca
        )
        with pytest.raises(UserInputError, match="does not answer as LLAMADUO_NATS_CA wants it"):
            await Bus.connect(settings, "test")
    liar.close()
    assert heard and b"p-secret" not in heard and b"CONNECT" not in heard


async def test_the_endpoint_and_the_emulator_go_over_tls(tmp_path: Path, ours: Authority) -> None:
    pair = ours.pair("http")
    context = tls.for_http(ServiceSettings(http_cert=pair.cert, http_key=pair.key))
    endpoint = Endpoint(_NoEngine(), "127.0.0.1", 0, tls=context)
    await endpoint.start()
    runner, port = await start(make_app(EmulatorSettings(), Ledger()), "127.0.0.1", 0, context)
    try:
        assert endpoint.base_url.startswith("https://")
        async with aiohttp.ClientSession() as http:
            for place in (endpoint.base_url.removesuffix("/v1") + "/health", f"https://127.0.0.1:{port}/healthz"):
                async with http.get(place, ssl=tls.calling(ours.ca)) as answer:
                    assert answer.status == 200
                with pytest.raises(aiohttp.ClientConnectorCertificateError):
                    await http.get(place)
                with pytest.raises(aiohttp.ClientError):
                    await http.get(place.replace("https", "http"))
    finally:
        await runner.cleanup()
        await endpoint.stop()


async def test_the_command_line_believes_the_ca_it_is_given(
    tmp_path: Path, ours: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = ours.pair("http")
    runner, port = await start(
        make_app(EmulatorSettings(), Ledger()), "127.0.0.1", 0, tls.listening(pair.cert, pair.key)
    )
    monkeypatch.setenv("LLAMADUO_HTTP_CA", str(ours.ca))
    try:
        async with tls.http_session() as http, http.get(f"https://127.0.0.1:{port}/healthz") as answer:
            assert answer.status == 200
    finally:
        await runner.cleanup()


class _NoEngine:
    def healthy(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not asked for")


@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        ("none.crt", "one.key", "none.crt: LLAMADUO_HTTP_CERT: cannot be read: No such file"),
        ("one.crt", "none.key", "none.key: LLAMADUO_HTTP_KEY: cannot be read: No such file"),
        ("one.crt", "two.key", "two.key: LLAMADUO_HTTP_KEY: is no key for the certificate .*one.crt"),
        ("ours.pem", "one.key", "one.key: LLAMADUO_HTTP_KEY: is no key for the certificate .*ours.pem"),
        ("one.crt", "empty", "empty: LLAMADUO_HTTP_KEY: is no key"),
        ("one.crt", None, "LLAMADUO_HTTP_KEY: must be set where LLAMADUO_HTTP_CERT is"),
        (None, "one.key", "LLAMADUO_HTTP_CERT: must be set where LLAMADUO_HTTP_KEY is"),
    ],
)
def test_bad_files_end_a_service_at_its_start_with_one_line(
    tmp_path: Path, ours: Authority, cert: str | None, key: str | None, said: str
) -> None:
    ours.pair("one"), ours.pair("two")
    (tmp_path / "empty").touch()
    given = {"LLAMADUO_HTTP_CERT": cert, "LLAMADUO_HTTP_KEY": key}
    env = environment(**{name: str(tmp_path / file) for name, file in given.items() if file is not None})
    command = [sys.executable, "-m", "services.verdict"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    (line,) = (ended.stdout + ended.stderr).splitlines()
    assert re.search(said, json.loads(line)["message"]), line


def test_a_bad_ca_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("not a certificate")
    for file in ("no.pem", "none.pem"):
        with pytest.raises(UserInputError, match=f"{file}: LLAMADUO_NATS_CA: no certificates can be read"):
            tls.for_bus(BusSettings(nats_ca=tmp_path / file))
    assert tls.for_bus(BusSettings()) is None and tls.for_bus(BusSettings(nats_url="tls://127.0.0.1:4222"))
