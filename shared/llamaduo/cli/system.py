"""The whole system on one machine: which programs, in what order they start and stop, and whether they are well."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from llamaduo.built_in_evaluators import ON_WISH
from llamaduo.cli.nats_server import PREFERRED_PORT, answers, free_port, nats_program
from llamaduo.cli.processes import Child, Program, Supervisor, tail
from llamaduo.cli.server_room import restart_when_there_is_room
from llamaduo.cli.state import ChildNote, UpNote, exclusive, remove_note, write_note
from llamaduo.errors import LlamaDuoError, UserInputError

SERVICES: dict[str, tuple[str, ...]] = {
    "synthesizer": ("services.synthesizer",),
    "trainer": ("services.trainer",),
    "inference": ("services.inference",),
    "judge-exact-match": ("services.judge", "--evaluator", "exact-match"),
    "judge-llm-judge": ("services.judge", "--evaluator", "llm-judge"),
    "verdict": ("services.verdict",),
}
GATEWAY = {"gateway": ("services.gateway",)}
GATEWAY_VARIABLE = "LLAMADUO_GATEWAY_FILE"
"""Only where it is set there are aliases for a gateway to answer."""
CALL_A_PROVIDER = ("synthesizer", "judge-llm-judge", "judge-pairwise", "gateway")
"""The only services that are given the environment's API keys."""
ENGINE_KEYS = ("LLAMADUO_ENGINE_API_KEY", "LLAMADUO_ENGINE_API_KEY_FILE")
"""For inference alone."""
OUR_OWN_KEYS = ("LLAMADUO_API_KEY", "LLAMADUO_API_KEY_FILE")
"""What the command line shows to our own endpoints: no service has use for it."""
VLLM_VARIABLE = "LLAMADUO_VLLM_PYTHON"
NO_HEALTH = ("nats-server", "emulator")
STARTING_S = 30.0
"""A service this young that does not answer is still loading its libraries."""
SERVER_TIMEOUT_S = 20.0
EMULATOR_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Plan:
    """What `up` is to run. `emulator` adds a stand-in for a service LLM, with these further arguments."""

    state: Path
    nats_port: int = PREFERRED_PORT
    emulator: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    evaluators: tuple[str, ...] = ()
    say: Callable[[str], None] = print
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self) -> None:
        strange = sorted(set(self.evaluators) - set(ON_WISH))
        if strange:
            raise UserInputError(
                f"`up` cannot run evaluator {strange[0]!r}",
                hint=f"it can run {', '.join(ON_WISH)}; one of your own: `llamaduo evaluator run`",
            )
        unknown = sorted(set(self.without) - set(SERVICES))
        if unknown:
            raise UserInputError(f"there is no service {unknown[0]!r}", hint=f"there are {', '.join(SERVICES)}")

    @property
    def services(self) -> dict[str, tuple[str, ...]]:
        """Module and arguments of each service to run, in the order in which they start."""
        wanted = {name: module for name, module in SERVICES.items() if name not in self.without}
        if self.environment.get(GATEWAY_VARIABLE):
            wanted |= GATEWAY
        return wanted | {f"judge-{name}": ("services.judge", "--evaluator", name) for name in self.evaluators}


@dataclass
class System:
    """A running system."""

    plan: Plan
    nats_url: str
    supervisor: Supervisor
    emulator_url: str | None = None

    def child_notes(self) -> list[ChildNote]:
        """All children as `up.json` names them."""
        return [
            ChildNote(name, child.pid, child.port, child.restarts, str(child.program.log), child.started)
            for name, child in self.supervisor.children.items()
        ]

    def failing(self, deaths: int = 3) -> Child | None:
        """A child that died this often soon after its start, if there is one."""
        return next((c for c in self.supervisor.children.values() if c.quick_deaths >= deaths), None)


def is_key_name(name: str) -> bool:
    """Whether an environment variable of this name holds a credential of a provider, or names the file of one."""
    return name.removesuffix("_FILE").endswith(("_KEY", "_SECRET", "_TOKEN")) and name != "HF_TOKEN"


def child_environment(plan: Plan, service: str, url: str) -> dict[str, str]:
    """A service's environment: ours, without the keys that it has no use for, and what it must know."""
    kept = {name: value for name, value in plan.environment.items() if not is_key_name(name) or _needs(service, name)}
    return kept | {
        "LLAMADUO_STATE_DIR": str(plan.state),
        "LLAMADUO_NATS_URL": url,
        "LLAMADUO_HTTP_PORT": "0",
        "LLAMADUO_PORT_FILE": str(port_file(plan.state, service)),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        **({VLLM_VARIABLE: str(vllm)} if (vllm := find_vllm_python(kept, Path.cwd())) else {}),
    }


def _needs(service: str, key: str) -> bool:
    if key in OUR_OWN_KEYS:
        return False
    return service == "inference" if key in ENGINE_KEYS else service in CALL_A_PROVIDER


def find_vllm_python(environment: Mapping[str, str], root: Path) -> Path | None:
    """The interpreter of vLLM's own environment: by variable, beside this one's environment, or under `root`."""
    if given := environment.get(VLLM_VARIABLE):
        return Path(given).absolute()
    for home in (Path(sys.prefix).parent, root):
        python = home / ".venv-vllm" / "bin" / "python"
        if python.exists():
            return python.absolute()
    return None


def port_file(state: Path, service: str) -> Path:
    """Where a service writes the port of its health and metrics endpoints."""
    return state / "run" / f"{service}.port"


def service_program(plan: Plan, service: str, url: str) -> Program:
    """A service as a child process."""
    return Program(
        name=service,
        argv=[sys.executable, "-m", *plan.services[service]],
        env=child_environment(plan, service, url),
        log=plan.state / "logs" / f"{service}.log",
        port_file=port_file(plan.state, service),
    )


def emulator_program(plan: Plan) -> Program:
    """The stand-in for a service LLM; its record of what was asked lives in the state folder."""
    file = port_file(plan.state, "emulator")
    ledger = plan.state / "emulator-ledger.jsonl"
    return Program(
        name="emulator",
        argv=[
            *(sys.executable, "-m", "services.emulator"),
            *("--port-file", str(file), "--ledger-file", str(ledger)),
            *(plan.emulator or ()),
        ],
        env=dict(plan.environment),
        log=plan.state / "logs" / "emulator.log",
        port_file=file,
        grace_s=2.0,
    )


@contextlib.asynccontextmanager
async def running(plan: Plan) -> AsyncIterator[System]:
    """Start nats-server, set the bus up, start the services; stop all of it in order on the way out.

    UserInputError if another `up` holds the state folder; LlamaDuoError if the server does not come up.
    """
    with exclusive(plan.state):
        started = datetime.now(UTC).isoformat(timespec="seconds")
        port = free_port(plan.nats_port)
        system = System(plan, f"nats://127.0.0.1:{port}", Supervisor())
        keys = sorted(name for name, value in plan.environment.items() if value and is_key_name(name))

        guard: asyncio.Task[None] | None = None

        def note() -> None:
            children, emulator = system.child_notes(), system.emulator_url
            with contextlib.suppress(OSError):  # on a full disk the children are looked after all the same
                write_note(plan.state, UpNote(os.getpid(), system.nats_url, started, children, emulator, keys))

        system.supervisor = Supervisor(changed=note)
        try:
            server = await system.supervisor.start(nats_program(plan.state, port))
            guard = asyncio.create_task(restart_when_there_is_room(server, plan.say), name="room")
            await _until_server_answers(system, server)
            await set_bus_up(system)
            if plan.emulator is not None:
                emulator = await system.supervisor.start(emulator_program(plan))
                system.emulator_url = await _emulator_url(emulator)
            for service in plan.services:
                await system.supervisor.start(service_program(plan, service, system.nats_url))
            yield system
        finally:
            if guard is not None:
                guard.cancel()
            await _stop(system)
            remove_note(plan.state)


@contextlib.asynccontextmanager
async def own_server(state: Path) -> AsyncIterator[str]:
    """The state folder's nats-server alone, for a command that needs its data; its URL. The caller holds the folder.

    LlamaDuoError if it does not come up.
    """
    port = free_port()
    system = System(Plan(state), f"nats://127.0.0.1:{port}", Supervisor())
    try:
        await _until_server_answers(system, await system.supervisor.start(nats_program(state, port)))
        yield system.nats_url
    finally:
        await _stop(system)


async def _stop(system: System) -> None:
    """Services first, while the bus still takes what they hand back; then the emulator; the server last."""
    last = ("emulator", "nats-server")
    await system.supervisor.stop([name for name in system.supervisor.children if name not in last])
    for name in last:
        await system.supervisor.stop([name])


async def _until_server_answers(system: System, server: Child) -> None:
    deadline = asyncio.get_running_loop().time() + SERVER_TIMEOUT_S
    while not await answers(system.nats_url, timeout=1.0):
        if server.quick_deaths or asyncio.get_running_loop().time() > deadline:
            raise LlamaDuoError(f"nats-server does not start:\n{tail(server.program.log)}")
        await asyncio.sleep(0.05)


async def set_bus_up(system: System) -> None:
    """Create or update streams, durables and buckets."""
    from llamaduo.bus import topology
    from llamaduo.bus.connection import Bus
    from llamaduo.settings import BusSettings, read_settings

    bus = await Bus.connect(read_settings(BusSettings, nats_url=system.nats_url), "operator")
    try:
        profile = system.plan.environment.get("LLAMADUO_PROFILE", "default")
        await topology.bootstrap(bus.js, profile=profile)
        for name in system.plan.evaluators:
            await topology.add_evaluator(bus.js, name, profile=profile)
    finally:
        await bus.close()


async def _emulator_url(emulator: Child) -> str:
    deadline = asyncio.get_running_loop().time() + EMULATOR_TIMEOUT_S
    while (port := emulator.port) is None:
        if emulator.quick_deaths >= 2 or asyncio.get_running_loop().time() > deadline:
            raise LlamaDuoError(f"the emulator does not start:\n{tail(emulator.program.log)}")
        await asyncio.sleep(0.05)
    return f"http://127.0.0.1:{port}/v1"


async def state_of(name: str, pid: int | None, port: int | None, started: float) -> str:
    """What a child of `up` is doing, in a few words."""
    if pid is None:
        return "died, is being started again"
    if name in NO_HEALTH:
        return "runs"
    problems = await problems_of(port)
    if problems is None:
        return "starting" if time.time() - started < STARTING_S else "does not answer"
    return "; ".join(problems) or "ready"


async def problems_of(port: int | None) -> list[str] | None:
    """What a service says is missing ([] when it is ready); None if it does not answer."""
    if port is None:
        return None
    import aiohttp

    from llamaduo.tls import http_session

    # A service of ours has our environment, and so TLS where that says so.
    scheme = "https" if os.environ.get("LLAMADUO_HTTP_CERT") else "http"
    try:
        timeout = aiohttp.ClientTimeout(total=2)
        async with (
            http_session(timeout=timeout) as session,
            session.get(f"{scheme}://127.0.0.1:{port}/readyz") as response,
        ):
            body = await response.json()
            return [str(problem) for problem in body.get("problems", [])] if response.status != 200 else []
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
