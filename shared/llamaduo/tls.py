"""TLS by configuration: contexts for those who listen and those who call, from files of PEM.

Files that cannot be used are a UserInputError that names the setting, at the start and not at the first connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from llamaduo.errors import UserInputError
from llamaduo.settings import BusSettings, ServiceSettings, read_settings

GREETING_S = 3.0


def listening(cert: Path | None, key: Path | None, *, prefix: str = "LLAMADUO_HTTP_") -> ssl.SSLContext | None:
    """For a server with this certificate (its chain behind it) and key; None, and no TLS, without them."""
    if cert is None and key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, cert, key, prefix)
    return context


def calling(
    ca: Path | None, cert: Path | None = None, key: Path | None = None, *, prefix: str = "LLAMADUO_HTTP_"
) -> ssl.SSLContext:
    """For a client: who answers must have a certificate of this CA (None: of one that the machine trusts) and the
    name it was called by. `cert` and `key` are shown to a server that asks for them."""
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise UserInputError(
            f"no certificates can be read: {_why(error)}", file=str(ca), field=f"{prefix}CA"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert is not None or key is not None:
        _load(context, cert, key, prefix)
    return context


def for_http(settings: ServiceSettings) -> ssl.SSLContext | None:
    """For a service's own HTTP servers."""
    return listening(settings.http_cert, settings.http_key)


def for_bus(settings: BusSettings) -> ssl.SSLContext | None:
    """For the connection to the bus; None where nothing asks for TLS."""
    asked = any(url.strip().startswith("tls://") for url in settings.nats_url.split(","))
    if not asked and settings.nats_ca is None and settings.nats_cert is None and settings.nats_key is None:
        return None
    return calling(settings.nats_ca, settings.nats_cert, settings.nats_key, prefix="LLAMADUO_NATS_")


async def greet(urls: str, context: ssl.SSLContext | None, *, wait: bool) -> None:
    """Shake hands with the bus once, before the client does; with `wait`, as soon as somebody is there.

    The client of nats-py waits for ever where its first handshake fails. UserInputError where whoever answers has no
    certificate of our CA, or no TLS at the beginning of a connection; or wants TLS, and nothing here asks for it.
    """
    if context is None:
        return await _greet_in_the_clear(urls)
    while True:
        refused: ssl.SSLError | None = None
        for url in urls.split(","):
            address = urlsplit(url.strip())
            try:
                async with asyncio.timeout(GREETING_S):
                    _, writer = await asyncio.open_connection(address.hostname, address.port or 4222, ssl=context)
                writer.transport.abort()
                return
            except ssl.SSLError as error:
                refused = error
            except (OSError, TimeoutError):
                continue
        if refused is not None:
            raise UserInputError(
                f"{urls.rpartition('@')[2]} does not answer as LLAMADUO_NATS_CA wants it: {_why(refused)}",
                field="LLAMADUO_NATS_URL",
            ) from refused
        if not wait:
            return
        await asyncio.sleep(1)


async def _greet_in_the_clear(urls: str) -> None:
    for url in urls.split(","):
        address = urlsplit(url.strip())
        with contextlib.suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(GREETING_S):
                reader, writer = await asyncio.open_connection(address.hostname, address.port or 4222)
                greeting = await reader.readline()
            writer.transport.abort()
            if json.loads(greeting.partition(b" ")[2] or b"{}").get("tls_required"):
                raise UserInputError(
                    "the bus wants TLS", field="LLAMADUO_NATS_CA", hint="or tls:// in LLAMADUO_NATS_URL"
                )


def http_session(**options: Any) -> aiohttp.ClientSession:
    """A session that believes the CA of LLAMADUO_HTTP_CA, where that is set, and else those the machine trusts."""
    ca = read_settings(BusSettings).http_ca
    connector = None if ca is None else aiohttp.TCPConnector(ssl=calling(ca))
    return aiohttp.ClientSession(connector=connector, **options)


def _load(context: ssl.SSLContext, cert: Path | None, key: Path | None, prefix: str) -> None:
    if cert is None or key is None:
        missing, there = ("CERT", "KEY") if cert is None else ("KEY", "CERT")
        raise UserInputError(f"must be set where {prefix}{there} is", field=f"{prefix}{missing}")
    for path, name in ((cert, "CERT"), (key, "KEY")):
        try:
            path.read_bytes()
        except OSError as error:
            raise UserInputError(f"cannot be read: {_why(error)}", file=str(path), field=prefix + name) from error
    try:
        # A key with a passphrase would be asked for on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (ssl.SSLError, ValueError) as error:
        why = f"is no key for the certificate {cert}, or has a passphrase: {_why(error)}"
        raise UserInputError(why, file=str(key), field=f"{prefix}KEY") from error


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "not PEM"
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
