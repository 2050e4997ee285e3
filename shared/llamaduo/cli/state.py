"""The state folder: where `llamaduo up` keeps its data, logs and the note (`up.json`) that says how to reach it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llamaduo.errors import UserInputError

STATE_VARIABLE = "LLAMADUO_STATE_DIR"
NATS_VARIABLE = "LLAMADUO_NATS_URL"
LOCK_TRIES = 10
DEFAULT_NATS_URL = "nats://127.0.0.1:4222"


@dataclass(frozen=True)
class ChildNote:
    """A child process of `up`."""

    name: str
    pid: int | None
    port: int | None
    restarts: int
    log: str
    started: float = 0.0
    """When its process was last started, in seconds since 1970."""


@dataclass(frozen=True)
class UpNote:
    """What a running `llamaduo up` tells other commands; holds no secrets, only names of variables."""

    pid: int
    nats_url: str
    started: str
    children: list[ChildNote] = field(default_factory=list)
    emulator_url: str | None = None
    key_names: list[str] = field(default_factory=list)
    """Names of the environment variables with keys that the services were started with."""


def state_dir() -> Path:
    """The state folder of this command, absolute: `--state`, LLAMADUO_STATE_DIR, or `.llamaduo` here.

    UserInputError where a file stands in its place.
    """
    state = Path(os.environ.get(STATE_VARIABLE) or ".llamaduo").absolute()
    if next(folder for folder in (state, *state.parents) if folder.exists()).is_dir():
        return state
    raise UserInputError(
        "the state folder cannot be here: a file is in the way",
        file=str(state),
        hint="name a folder with --state or LLAMADUO_STATE_DIR",
    )


def write_note(state: Path, note: UpNote) -> None:
    """Write `up.json` at once, so that no reader sees half of it."""
    fresh = state / f".up.json.{os.getpid()}"
    fresh.write_text(json.dumps(asdict(note), indent=2) + "\n", "utf-8")
    fresh.replace(state / "up.json")


def read_note(state: Path) -> UpNote | None:
    """The note of a running `up`, or None if none runs on this folder."""
    if not is_locked(state):
        return None
    try:
        raw: dict[str, Any] = json.loads((state / "up.json").read_text("utf-8"))
        children = [ChildNote(**child) for child in raw.pop("children", [])]
        return UpNote(**raw, children=children)
    except (OSError, ValueError, TypeError):
        return None


def remove_note(state: Path) -> None:
    """Take `up.json` away."""
    (state / "up.json").unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(state: Path) -> Iterator[None]:
    """Hold the state folder for one `up`; the system lets go when the process dies, however it dies.

    UserInputError if another `up` holds it.
    """
    state.mkdir(parents=True, exist_ok=True)
    with (state / "up.lock").open("w") as lock:
        for attempt in range(LOCK_TRIES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:  # perhaps only another command that looks whether we run
                if attempt == LOCK_TRIES - 1:
                    raise UserInputError(
                        f"another `llamaduo up` is running on {state}", hint="`llamaduo down` stops it"
                    ) from error
                time.sleep(0.05)
        yield


def is_locked(state: Path) -> bool:
    """Whether an `up` runs on this folder now."""
    try:
        with (state / "up.lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def nats_url(state: Path) -> str:
    """Where the bus is: LLAMADUO_NATS_URL, else what a running `up` says, else the default address."""
    if given := os.environ.get(NATS_VARIABLE):
        return given
    note = read_note(state)
    return note.nats_url if note else DEFAULT_NATS_URL
