"""The stage of a fault run: every service as a process of its own, a real nats-server, the emulator."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.disk import Disk
from tests.faults.schedule import NATS
from tests.faults.ways import Ways
from tests.support import NatsServer, environment

FAKE_TIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
"""What gives a process a clock of its own (Debian: `faketime`)."""

SERVICES: dict[str, tuple[list[str], dict[str, str]]] = {
    "verdict": (["services.verdict"], {}),
    "synthesizer": (["services.synthesizer"], {}),
    "trainer": (["services.trainer"], {"LLAMADUO_TRAINING_ENGINE": "fake", "LLAMADUO_FAKE_SECONDS": "0.6"}),
    "inference": (["services.inference"], {"LLAMADUO_INFERENCE_ENGINE": "fake", "LLAMADUO_FAKE_DELAY_S": "0.004"}),
    "exact-match": (["services.judge", "--evaluator", "exact-match"], {}),
    "llm-judge": (["services.judge", "--evaluator", "llm-judge"], {}),
}


@dataclass
class Stage:
    """What runs; killed and started again by name (`nats` is the server)."""

    folder: Path
    server: NatsServer
    emulator_url: str
    ways: Ways
    disk: Disk | None = None
    extra: dict[str, dict[str, str]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    clocks: dict[str, float] = field(default_factory=dict)
    """Seconds by which a service's clock is off from its next start on."""

    def start(self, name: str) -> None:
        """Start a service, under the same replica name each time."""
        service = name.split("/", maxsplit=1)[0]
        module, own = SERVICES[service]
        env = environment(
            LLAMADUO_NATS_URL=f"nats://127.0.0.1:{self.ways.port(name)}",
            LLAMADUO_PROFILE="faults",
            LLAMADUO_STATE_DIR=str(self.folder / name),
            LLAMADUO_REPLICA=name,
            LLAMADUO_LOG_LEVEL="INFO",
            LLAMADUO_PORT_FILE=str(self.folder / name / "port"),
            OPENAI_API_KEY="sk-emulated",
            PYTHONFAULTHANDLER="1",
            **{**own, **self.extra.get(name, {}), **_clock(self.clocks.get(name))},
        )
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        with (self.folder / name / "log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *module], env=env, stdout=log, stderr=log, start_new_session=True
            )

    def send(self, name: str, number: int) -> None:
        """A signal to a service or the server; waits for the end where the signal ends it."""
        if name == NATS:
            self.server.send(number)
            return
        process = self.processes[name]
        process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            process.wait(25)

    def dismiss(self, name: str, number: int) -> None:
        """End a service for good."""
        self.send(name, number)
        del self.processes[name]

    def revive(self, name: str) -> None:
        """Start what was killed."""
        if name == NATS:
            self.server.start()
        else:
            self.start(name)

    def ended_by_themselves(self) -> list[str]:
        """Services that run no more though nobody killed them."""
        return [
            f"{name} ({process.poll()})" for name, process in self.processes.items() if process.poll() is not None
        ]

    def ask_where(self) -> None:
        """End every service in such a way that it writes down what each of its threads was doing."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGABRT)
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)

    def logs(self) -> str:
        """The last lines everybody wrote, for a failure's message."""
        parts = []
        for name in self.processes:
            lines = (self.folder / name / "log").read_text("utf-8", errors="replace").splitlines()[-40:]
            parts.append(f"--- {name}\n" + "\n".join(line[:400] for line in lines))
        return "\n".join(parts)

    def stop(self) -> None:
        """End everything that was started here."""
        for process in self.processes.values():
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)
                    process.kill()
        for process in self.processes.values():
            process.wait(20)


def _clock(off: float | None) -> dict[str, str]:
    """Variables for a process whose wall clock, and nothing else of its time, is so many seconds off."""
    if off is None:
        return {}
    return {"LD_PRELOAD": str(FAKE_TIME), "FAKETIME": f"{off:+g}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@contextmanager
def staged(
    folder: Path, emulator_port: int, *, own_disk: bool = False, extra: dict[str, dict[str, str]] | None = None
) -> Iterator[Stage]:
    """A server (on a small disk of its own if wished), an emulator with a ledger on disk, and no service yet.

    The emulator's port is given: its URL is in the spec, and with it in every id and sampling seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    server = NatsServer(folder / "nats")
    with contextlib.ExitStack() as closing:
        disk = None
        if own_disk:
            disk = Disk(folder / "disk.image", folder / "nats" / "store")
            closing.callback(disk.close)
        closing.callback(server.stop)
        if disk is not None:
            closing.callback(disk.go_on)
        server.start()
        ways = Ways(server.port)
        closing.callback(ways.close)
        stage = Stage(folder, server, _emulator(folder, emulator_port, closing), ways, disk, dict(extra or {}))
        closing.callback(stage.stop)
        yield stage


def _emulator(folder: Path, port: int, closing: contextlib.ExitStack) -> str:
    """Start the emulator; its URL."""
    port_file = folder / "emulator.port"
    with (folder / "emulator.log").open("ab") as log:
        emulator = subprocess.Popen(
            [
                sys.executable, "-m", "services.emulator", "--latency-ms", "15",
                "--port", str(port), "--port-file", str(port_file),
                "--ledger-file", str(folder / "emulator.ledger"),
            ],
            env=environment(), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    closing.callback(emulator.wait, 20)
    closing.callback(emulator.kill)
    deadline = time.monotonic() + 30
    while not port_file.exists() or not port_file.read_text().strip():
        assert time.monotonic() < deadline and emulator.poll() is None, (folder / "emulator.log").read_text()
        time.sleep(0.02)
    return f"http://127.0.0.1:{port_file.read_text().strip()}"
