"""A container engine for the compose lane: one that answers, or one installed and started for the lane alone.

The lane's own engine keeps its state in a folder outside the checkout. It builds in the machine's network and runs
in a network namespace of its own, from which no packet leaves; published ports are on that namespace's loopback.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("install.sh", "base-image.sh", "dockerd-start.sh", "dockerd-stop.sh")
NAMESPACE = "dk"
PROGRAMS = ("dockerd", "containerd", "mmdebstrap", "ip", "iptables", "nsenter")


class NoEngine(Exception):
    """There is no engine here and none can be started; the message says why."""


@dataclass(frozen=True)
class Engine:
    """What a caller needs to speak to the engine. `offline`: no image registry is in reach."""

    environment: dict[str, str]
    offline: bool
    inside: list[str] = field(default_factory=list)
    """Put before a command that is to reach the published ports."""
    scripts: Path | None = None

    def enter_build(self) -> None:
        """The engine as it builds; nothing to do for an engine that was there."""
        if self.scripts is not None:
            self._script("dockerd-stop.sh")
            self._script("dockerd-start.sh", "build")
            self._script("base-image.sh")

    def enter_run(self) -> None:
        """The engine as it runs containers; images built before stay."""
        if self.scripts is not None:
            self._script("dockerd-stop.sh")
            self._script("dockerd-start.sh", "run")

    def stop(self) -> None:
        """Stop the lane's own engine and take its namespace away."""
        if self.scripts is not None:
            self._script("dockerd-stop.sh")
            subprocess.run(["ip", "netns", "del", NAMESPACE], check=False, stderr=subprocess.DEVNULL)

    def _script(self, name: str, *arguments: str) -> None:
        assert self.scripts is not None
        subprocess.run(["bash", str(self.scripts / name), *arguments], check=True, env=self.environment)


def _works(*command: str, environment: dict[str, str] | None = None) -> bool:
    try:
        result = subprocess.run(command, capture_output=True, timeout=30, check=False, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0


def _is_debian() -> bool:
    with contextlib.suppress(OSError):
        return "ID=debian" in Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    return False


def _scripts() -> Path | None:
    """The folder with the four scripts: named by LLAMADUO_ENGINE_SCRIPTS, or `shared` beside the checkout."""
    named = os.environ.get("LLAMADUO_ENGINE_SCRIPTS")
    folder = Path(named) if named else ROOT.parent / "shared" / "tools" / "container-engine"
    return folder if all((folder / name).is_file() for name in SCRIPTS) else None


def _installed() -> bool:
    programs = all(shutil.which(name) for name in PROGRAMS)
    return programs and _works("docker", "compose", "version") and _works("docker", "buildx", "version")


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """The engine to use; the lane's own is stopped afterwards. NoEngine says why there is none."""
    if _works("docker", "version", "--format", "{{.Server.Version}}"):
        if not _works("docker", "compose", "version"):
            raise NoEngine("a docker engine answers, but `docker compose` is not installed")
        yield Engine(dict(os.environ), offline=os.environ.get("LLAMADUO_COMPOSE_OFFLINE") == "1")
        return
    scripts = _scripts()
    if os.geteuid() != 0 or not _is_debian() or scripts is None:
        raise NoEngine(
            "no docker engine answers, and one is only installed here as root on Debian with the scripts that "
            "LLAMADUO_ENGINE_SCRIPTS names; start docker and run this again"
        )
    state = Path(os.environ.get("LLAMADUO_ENGINE_STATE", "/var/tmp/llamaduo-dk"))
    state.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "DK": str(state), "DOCKER_HOST": f"unix://{state}/docker.sock"}
    inside = ["nsenter", f"--net=/run/netns/{NAMESPACE}"]
    with (state / "lane.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _installed():
            subprocess.run(["bash", str(scripts / "install.sh")], check=True, env=environment)
        own = Engine(environment, offline=True, inside=inside, scripts=scripts)
        try:
            yield own
        finally:
            own.stop()
