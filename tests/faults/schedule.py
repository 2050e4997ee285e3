"""Which fault strikes whom when: drawn from a seed, so that a failing run can be played again."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

SERVICES = ("verdict", "synthesizer", "trainer", "inference", "exact-match", "llm-judge")
NATS = "nats"
SPAN = 6.0
"""Seconds from a run's beginning in which faults strike: about what a run without any takes."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault: how often it is drawn beside the others, whom it strikes, how many seconds it lasts.

    `size` is the range of what else there is to draw: seconds of delay, of offset; how many, if it is `counted`.
    """

    weight: float
    victims: tuple[str, ...]
    lasts: tuple[float, float]
    size: tuple[float, float] = (0.0, 0.0)
    ways: tuple[str, ...] = ("",)
    counted: bool = False


KINDS: dict[str, Kind] = {
    "kill": Kind(3, SERVICES, (0.05, 0.6)),
    # The lease of the `faults` profile is 2.5 s.
    "freeze": Kind(1.5, SERVICES, (2.7, 3.6)),
    "leave": Kind(1, SERVICES, (0.05, 0.3)),
    "server-kill": Kind(1.5, (NATS,), (0.1, 1.5)),
    "server-freeze": Kind(1, (NATS,), (0.5, 3.5)),
    "cut": Kind(1.5, SERVICES, (0.0, 1.5), size=(1, 4), counted=True),
    "blackhole": Kind(1.5, SERVICES, (0.5, 4.0), ways=("goes on", "is cut")),
    "latency": Kind(1, SERVICES, (1.0, 4.0), size=(0.02, 0.3)),
    "duplicate": Kind(1.5, (NATS,), (0.0, 0.0), size=(10, 40), ways=("same id", "no id", "both"), counted=True),
    "second-copy": Kind(1.5, SERVICES, (1.5, 4.0), ways=("is killed", "leaves", "stays")),
    "clock": Kind(1, SERVICES, (0.05, 0.3), size=(-2.0, 2.0)),
    "disk-slow": Kind(1, (NATS,), (1.0, 3.0), size=(0.05, 0.4)),
    "disk-full": Kind(1, (NATS,), (0.5, 2.0)),
    "stream-full": Kind(1, (NATS,), (0.5, 4.0)),
}


@dataclass(frozen=True)
class Fault:
    """`kind` strikes `victim` `after` seconds into the run, for `lasts` seconds; see `Kind` for the rest."""

    after: float
    kind: str
    victim: str
    lasts: float
    size: float = 0.0
    way: str = ""

    def __str__(self) -> str:
        size = f" ({self.size:g})" if self.size else ""
        way = f", {self.way}" if self.way else ""
        return f"{self.kind}{size} of {self.victim} at {self.after:g} for {self.lasts:g} s{way}"


def schedule(seed: int, span: float, kinds: Collection[str] = tuple(KINDS)) -> list[Fault]:
    """Three to six faults of the first `span` seconds, of these kinds, in order of time.

    What a machine cannot do is drawn all the same and left out by who plays it: a seed is the same everywhere.
    """
    chance = random.Random(f"faults {seed}")
    names = [name for name in KINDS if name in kinds]
    faults = []
    for name in chance.choices(names, [KINDS[name].weight for name in names], k=chance.randint(3, 6)):
        kind = KINDS[name]
        fault = Fault(
            after=round(chance.uniform(0.2, span), 2),
            kind=name,
            victim=chance.choice(kind.victims),
            lasts=round(chance.uniform(*kind.lasts), 2),
            size=round(chance.uniform(*kind.size), 0 if kind.counted else 2),
            way=chance.choice(kind.ways),
        )
        faults.append(fault)
    return sorted(faults, key=lambda fault: fault.after)
