"""A vLLM server as a child process: its command line, its start, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from llamaduo.errors import UserInputError
from llamaduo.vllm_environment import Device
from services.inference.adapter_check import SERVABLE_RANKS
from services.inference.engine import EngineNotReady
from services.inference.vllm_client import VllmClient, until_silent

_GUARD = Path(__file__).with_name("vllm_guard.py")
_LARGEST_LOG = 20 * 1024 * 1024
_REAPED_WITHIN_S = 5.0
# What vLLM may see of this service's environment: no key or token of anybody.
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "XDG_CACHE_HOME", "USER")
_PASSED_ON_PREFIXES = ("VLLM_", "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "MKL_", "KMP_", "TORCH")


@dataclass(frozen=True)
class VllmOptions:
    """How vLLM is started.

    `python` is the interpreter of vLLM's own environment, `device` what its vLLM was built for, `model` the base
    model's folder, `model_name` the name the untrained base is served under. `max_adapters` are loaded at once, of
    rank `max_rank` at most; `max_length` counts the tokens of prompt and answer. `dtype` is
    vLLM's (`float32`, `bfloat16` …); `auto` is the model's own, but float32 on a CPU that has no instructions for
    products of bfloat16 matrices and is slower with them.
    `kv_cache_gib` and `threads` are for the CPU, `gpu_memory` (a share) for CUDA.
    """

    python: Path
    model: Path
    model_name: str
    log: Path
    device: Device = "cpu"
    dtype: str = "auto"
    max_length: int = 2048
    max_adapters: int = 4
    max_rank: int = 64
    max_sequences: int = 32
    kv_cache_gib: int = 1
    threads: str = "auto"
    gpu_memory: float = 0.9
    start_timeout_s: float = 300.0
    request_timeout_s: float = 300.0
    extra_arguments: tuple[str, ...] = ()


def command_line(options: VllmOptions, socket: Path) -> list[str]:
    """The server's command. It listens on a Unix socket: no port to collide, and no way past our own endpoint."""
    rank = next((r for r in SERVABLE_RANKS if r >= options.max_rank), None)
    if rank is None:
        raise UserInputError(f"max_rank {options.max_rank} is more than vLLM serves ({SERVABLE_RANKS[-1]})")
    # One slot more than adapters: with every slot filled, the CPU kernels mix base requests up (see PhaseGate).
    slots = options.max_adapters + 1
    arguments = {
        "--model": options.model,
        "--served-model-name": options.model_name,
        "--uds": socket,
        "--dtype": _dtype(options),
        "--max-model-len": options.max_length,
        "--max-num-seqs": options.max_sequences,
        "--max-loras": slots,
        "--max-cpu-loras": slots,
        "--max-lora-rank": rank,
        # Sampling as asked, not as the model's folder suggests.
        "--generation-config": "vllm",
        "--seed": 0,
        "--uvicorn-log-level": "warning",
    }
    flags = ["--enable-lora", "--disable-uvicorn-access-log"]
    if options.device == "cpu":
        flags.append("--enforce-eager")
    else:
        arguments["--gpu-memory-utilization"] = options.gpu_memory
    command = [str(options.python), "-m", "vllm.entrypoints.openai.api_server"]
    for key, value in arguments.items():
        command += [key, str(value)]
    return [*command, *flags, *options.extra_arguments]


def environment(options: VllmOptions) -> dict[str, str]:
    """The server's environment variables."""
    passed = {k: v for k, v in os.environ.items() if k in _PASSED_ON or k.startswith(_PASSED_ON_PREFIXES)}
    ours = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if options.device == "cpu":
        ours |= {
            "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": options.threads,
            # Threads that spin while they wait stall each other where cores are shared.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    return passed | ours


def _dtype(options: VllmOptions) -> str:
    if options.dtype != "auto" or options.device != "cpu":
        return options.dtype
    cpu = Path("/proc/cpuinfo")
    return "auto" if cpu.exists() and "amx_bf16" in cpu.read_text() else "float32"


async def _until_gone(group: int) -> None:
    """Kills a process group and waits until nobody is in it; gives up where its dead are never reaped."""
    deadline = time.monotonic() + _REAPED_WITHIN_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, signal.SIGKILL)
            await asyncio.sleep(0.02)


class VllmProcess:
    """One vLLM server at a time, with its guard."""

    def __init__(self, options: VllmOptions) -> None:
        self._options = options
        self._guard: asyncio.subprocess.Process | None = None
        self._folder: Path | None = None

    async def start(self) -> VllmClient:
        """A client of a server that is up. EngineNotReady, with the end of the log, where it is not in time."""
        await self.stop()
        if not self._options.python.exists():
            raise EngineNotReady(f"there is no vLLM environment at {self._options.python}: make setup", delay=60)
        self._options.log.parent.mkdir(parents=True, exist_ok=True)
        if self._options.log.exists() and self._options.log.stat().st_size > _LARGEST_LOG:
            self._options.log.replace(self._options.log.with_suffix(".1.log"))
        # Paths of Unix sockets must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="llamaduo-"))
        socket = self._folder / "vllm.sock"
        with self._options.log.open("ab") as log:
            self._guard = await asyncio.create_subprocess_exec(
                sys.executable, "-I", str(_GUARD), *command_line(self._options, socket),
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log,
                env=environment(self._options), start_new_session=True,
            )  # fmt: skip
        client = VllmClient("http://vllm", socket=socket, timeout_s=self._options.request_timeout_s)
        try:
            await self._until_up(client, self._guard)
        except BaseException:
            await client.close()
            await self.stop()
            raise
        return client

    async def _until_up(self, client: VllmClient, guard: asyncio.subprocess.Process) -> None:
        started = time.monotonic()
        while not await client.is_up():
            if guard.returncode is not None:
                raise EngineNotReady(self._account("vLLM ended while it was starting"))
            if time.monotonic() - started > self._options.start_timeout_s:
                limit = f"{self._options.start_timeout_s:.0f} s"
                raise EngineNotReady(self._account(f"vLLM was not ready after {limit}"))
            await asyncio.sleep(0.25)

    async def ended(self, client: VllmClient) -> str:
        """Waits until the server has ended or no longer says that it is well; says so, with the end of its log."""
        if self._guard is None:
            return "vLLM was stopped"
        gone = asyncio.ensure_future(self._guard.wait())
        silent = asyncio.ensure_future(until_silent(client))
        try:
            await asyncio.wait((gone, silent), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            silent.cancel()
        return self._account("vLLM ended" if gone.done() and not gone.cancelled() else "vLLM hangs")

    async def stop(self) -> None:
        """All of vLLM's processes are gone on return."""
        guard, self._guard = self._guard, None
        if guard is not None:
            if guard.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    guard.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(guard.wait(), 12)
            # A guard that ended by itself has left nothing. One that was killed, or stuck, leads a group that may
            # still be there.
            await _until_gone(guard.pid)
            await guard.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _account(self, what: str) -> str:
        lines: list[str] = []
        with contextlib.suppress(OSError), self._options.log.open("rb") as log:
            log.seek(max(0, self._options.log.stat().st_size - 16_384))
            lines = log.read().decode(errors="replace").strip().splitlines()[-15:]
        return "\n".join([f"{what}; the end of {self._options.log}:", *("  " + line for line in lines)])
