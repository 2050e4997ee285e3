"""Whether training and serving a base model fit into a machine's memory, roughly."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from llamaduo.migrations.spec import MigrationSpec
from llamaduo.planning.machine import GIB, Machine
from llamaduo.planning.sizes import Sizes

# Measured with 135 million weights on a CPU: 3.4 GB for training at 8 rows of some 115 tokens, 3.4 GB for vLLM with
# 1 GiB of cache. How the working memory grows with the model nobody measured: the square root of its size is a guess.
LIBRARIES_GIB = 1.0
WORKING_GIB_A_1000_TOKENS = 2.5
MEASURED_WEIGHTS = 135e6
VLLM_GIB, CACHE_GIB = 2.15, 1.0
BYTES_A_WEIGHT = {"auto": 2.0, "bf16": 2.0, "fp32": 4.0}
BYTES_NF4 = 0.6
USABLE = 0.95


class Memory(BaseModel):
    """GiB that training and serving take, and that there are; None where unknown."""

    model_config = ConfigDict(frozen=True)
    weights: int | None = Field(description="weights of the base model")
    training_gib: float | None = None
    serving_gib: float | None = None
    have_gib: float | None = None
    where: str = "memory"

    @property
    def fits(self) -> bool | None:
        """Whether both fit at once, as they run side by side; None where nobody can tell."""
        if self.training_gib is None or self.serving_gib is None or self.have_gib is None:
            return None
        return self.training_gib + self.serving_gib <= USABLE * self.have_gib


def memory_of(spec: MigrationSpec, sizes: Sizes, machine: Machine, weights: int | None) -> Memory:
    """What this recipe takes with so many weights."""
    where = machine.gpus[0].name if machine.gpus else "memory"
    have = machine.gpus[0].memory_gib if machine.gpus else machine.memory_gib
    if weights is None:
        return Memory(weights=None, have_gib=have, where=where)
    recipe = spec.recipe
    a_weight = BYTES_NF4 if recipe.quantization == "nf4" else BYTES_A_WEIGHT[recipe.precision]
    at_once = recipe.batch_size * min(recipe.max_length, sizes.longest_row)
    working = WORKING_GIB_A_1000_TOKENS * at_once / 1000 * max(1.0, weights / MEASURED_WEIGHTS) ** 0.5
    return Memory(
        weights=weights,
        training_gib=LIBRARIES_GIB + weights * a_weight / GIB + working,
        serving_gib=VLLM_GIB + CACHE_GIB + weights * BYTES_A_WEIGHT["bf16"] / GIB,
        have_gib=have,
        where=where,
    )
