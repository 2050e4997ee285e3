"""Which process is hurt when: drawn from a seed, so that a failing run can be played again."""

from __future__ import annotations

import random
from dataclasses import dataclass

VICTIMS = ("verdict", "synthesizer", "trainer", "inference", "exact-match", "llm-judge", "nats")


@dataclass(frozen=True)
class Fault:
    """Kill `victim` `after` seconds into the run and start it again `down` seconds later."""

    after: float
    victim: str
    down: float


def schedule(seed: int, span: float) -> list[Fault]:
    """Each victim once, at a random moment of the first `span` seconds, in order of time."""
    chance = random.Random(f"faults {seed}")
    faults = [
        Fault(round(chance.uniform(0.2, span), 2), victim, round(chance.uniform(0.05, 0.6), 2)) for victim in VICTIMS
    ]
    return sorted(faults, key=lambda fault: fault.after)
