"""Base models that suit a first try, what their licences ask, and how large a model is."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from llamaduo.planning.machine import Machine

_LONGEST_HEADER = 100_000_000
_SIZE_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([MB])(?![A-Za-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class KnownModel:
    """A chat model by Hub id, and from which machine on it is a sensible first try."""

    hub_id: str
    licence: str
    cores: int
    memory_gib: int
    gpu_gib: int | None = None
    """Memory of a GPU on which it is the first choice; None: it is one for CPUs."""


FIRST_TRIES = (
    # Rows from small to large; of those that a machine can take the last one is chosen.
    KnownModel("HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0", 1, 0),
    KnownModel("HuggingFaceTB/SmolLM2-360M-Instruct", "Apache-2.0", 4, 14),
    KnownModel("Qwen/Qwen3-0.6B", "Apache-2.0", 16, 30, gpu_gib=6),
    KnownModel("HuggingFaceTB/SmolLM2-1.7B-Instruct", "Apache-2.0", 32, 60, gpu_gib=14),
    KnownModel("Qwen/Qwen3-4B-Instruct-2507", "Apache-2.0", 64, 120, gpu_gib=38),
)
RESTRICTED = (
    (r"(^|/)(code|med|pali|shield)?gemma-", "Gemma Terms of Use: restrictions on use, to be passed on"),
    (r"(^|/)(meta-)?(code)?llama-?\d", "Llama Community License: restrictions on use, naming and size of company"),
    (r"(^|/)ministral-8b|(^|/)mistral-(small|large)-24", "Mistral Research License: no commercial use"),
    (r"(^|/)qwen2\.5-3b", "Qwen Research License: no commercial use"),
)
GATED = r"^(google/(\w*gemma)|meta-llama/|mistralai/ministral)"


def first_try(machine: Machine) -> KnownModel:
    """The base model to begin with on this machine: small enough to train and serve there in hours, not days."""
    if machine.gpus:
        memory = min(gpu.memory_gib or 0 for gpu in machine.gpus)
        fitting = [model for model in FIRST_TRIES if model.gpu_gib is not None and model.gpu_gib <= memory]
        return fitting[-1] if fitting else FIRST_TRIES[0]
    memory = machine.memory_gib or 0
    fitting = [model for model in FIRST_TRIES if model.cores <= machine.cores and model.memory_gib <= memory]
    return fitting[-1] if fitting else FIRST_TRIES[0]


def licence_note(base_model: str) -> str | None:
    """What a known licence restricts, and whether the Hub asks for an account; None where nothing is known."""
    name = base_model.lower()
    terms = next((words for pattern, words in RESTRICTED if re.search(pattern, name)), None)
    if terms is None:
        return None
    gated = re.search(GATED, name) and not Path(base_model).exists()
    return terms + ("; the Hub gives it only to accounts that accepted them: set HF_TOKEN" if gated else "")


def licence_of(hub_id: str) -> str | None:
    """The licence of a model on the Hub, or what it restricts, as far as it is known here."""
    return next((model.licence for model in FIRST_TRIES if model.hub_id == hub_id), None) or licence_note(hub_id)


def parameters_of(base_model: str) -> int | None:
    """How many weights it has: from its safetensors where it is a folder, else by its name; None where unknown."""
    folder = Path(base_model)
    if folder.is_dir() and (parts := sorted(folder.glob("*.safetensors"))):
        try:
            return sum(_weights_in(part) for part in parts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return _by_name(folder.name)
    return _by_name(base_model.rpartition("/")[2].partition("@")[0])


def _weights_in(file: Path) -> int:
    """Weights of one safetensors file, from its header: eight bytes of length, then JSON with every shape."""
    with file.open("rb") as body:
        length = int.from_bytes(body.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError("no safetensors header")
        header = json.loads(body.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def _by_name(name: str) -> int | None:
    found = _SIZE_IN_NAME.search(name)
    if found is None:
        return None
    return round(float(found[1]) * (1e6 if found[2].upper() == "M" else 1e9))
