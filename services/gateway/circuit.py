"""When a server that fails is left alone, and when it is tried again: a state and what happens to it, no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class CircuitRules:
    """`failures` in a row open it, for `pause_s` seconds, doubled by each probe that fails, up to `longest_s`."""

    failures: int = 5
    pause_s: float = 1.0
    longest_s: float = 5.0
    probe_s: float = 150.0
    """A probe of which nothing was heard for so long is taken for lost, and another one may go."""


@dataclass(frozen=True)
class Circuit:
    """Closed as it is made. Times are seconds of one clock that only goes forward."""

    failed: int = 0
    opened_at: float | None = None
    pause_s: float = 0.0
    probed_at: float | None = None


Leave = Literal["send", "probe", "no"]
"""What a request may do; what became of a `probe` must be told as such."""


def leave(circuit: Circuit, rules: CircuitRules, now: float) -> Leave:
    """Whether a request may be sent now. Who takes a `probe` must say so by `probing`."""
    if circuit.opened_at is None:
        return "send"
    if now < circuit.opened_at + circuit.pause_s:
        return "no"
    if circuit.probed_at is not None and now < circuit.probed_at + rules.probe_s:
        return "no"
    return "probe"


def probing(circuit: Circuit, now: float) -> Circuit:
    """One request is on its way to find out; others wait for what becomes of it."""
    return replace(circuit, probed_at=now)


def succeeded(circuit: Circuit, taken: Leave) -> Circuit:
    """An answer came. Of one that was sent before the circuit opened nothing is learned."""
    return Circuit() if circuit.opened_at is None or taken == "probe" else circuit


def failed(circuit: Circuit, rules: CircuitRules, taken: Leave, now: float) -> Circuit:
    """No answer came, or an error."""
    if circuit.opened_at is not None:
        if taken != "probe":
            return circuit
        return Circuit(circuit.failed, now, min(rules.longest_s, 2 * circuit.pause_s))
    count = circuit.failed + 1
    return Circuit(count, now, rules.pause_s) if count >= rules.failures else Circuit(count)


def untold(circuit: Circuit, taken: Leave) -> Circuit:
    """The request was given up by its caller before anything was learned."""
    return replace(circuit, probed_at=None) if taken == "probe" else circuit
