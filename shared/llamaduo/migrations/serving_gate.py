"""How fast an adapter answers where it is served: what a measured burst says, and whether it meets `gate.serving`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llamaduo.events import ServingMeasured
    from llamaduo.migrations.spec import Gate, Serving

SLOWEST_SHARE = 0.05
"""The share of requests that may be slower than a limit on the 95th percentile."""
FULL_TURNS = 4
"""Requests measured for each one in flight, below which the rate is mostly that of the burst's beginning and end."""
FEWEST_FOR_RATE = 20

Verdict = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True)
class ServingVerdict:
    """Whether the adapter is fast enough, and in words what was measured and what is missing."""

    verdict: Verdict
    told: str


def fewest_for_p95(confidence: float) -> int:
    """Requests with which a 95th percentile can be shown to be below a limit, where not one was slower."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - SLOWEST_SHARE))


def fewest_for_rate(concurrency: int) -> int:
    """Requests with which a rate is measured, with so many in flight."""
    return max(FEWEST_FOR_RATE, FULL_TURNS * concurrency)


def fewest_requests(serving: Serving, confidence: float) -> int:
    """Requests that all that `serving` asks takes; what only wants to know the rate needs as many as for the rate."""
    rate = fewest_for_rate(serving.concurrency)
    return rate if serving.latency_p95_s is None else max(rate, fewest_for_p95(confidence))


def percentile(seconds: Sequence[float], share: float) -> float:
    """The smallest measured time within which `share` of the requests were answered. ValueError without any."""
    if not seconds:
        raise ValueError("nothing was measured")
    return sorted(seconds)[max(0, math.ceil(share * len(seconds) - 1e-9) - 1)]


def at_most(slower: int, requests: int, share: float = SLOWEST_SHARE) -> float:
    """Chance that at most `slower` of so many requests are slow, where `share` of all requests are."""
    if slower < 0:
        return 0.0
    if slower >= requests:
        return 1.0
    logs = (
        math.lgamma(requests + 1)
        - math.lgamma(k + 1)
        - math.lgamma(requests - k + 1)
        + k * math.log(share)
        + (requests - k) * math.log1p(-share)
        for k in range(slower + 1)
    )
    return min(1.0, math.fsum(math.exp(one) for one in logs))


def judge_serving(gate: Gate, measured: ServingMeasured) -> ServingVerdict:
    """`gate.serving` against one burst; without limits there it has passed.

    The percentile is decided where it is certain at the gate's confidence, whatever shape the times have; between is
    undecided. The rate is one figure without an interval. Too few measured requests are undecided for both.
    """
    serving = gate.serving
    if serving is None or not serving.limits:
        return ServingVerdict("passed", carries(measured))
    taken, fewest = len(measured.seconds), fewest_requests(serving, gate.confidence)
    if taken < fewest:
        short = f"only {taken} requests could be measured, {fewest} are needed to hold gate.serving"
        return ServingVerdict("undecided", "; ".join(part for part in (carries(measured), short) if part))
    parts: list[tuple[Verdict, str]] = []
    if serving.latency_p95_s is not None:
        parts.append(_latency(measured.seconds, serving.latency_p95_s, 1 - gate.confidence))
    if serving.requests_per_second is not None:
        enough = rate_of(measured) >= serving.requests_per_second
        parts.append(("passed" if enough else "failed", f"at least {serving.requests_per_second:g} requests/s asked"))
    verdicts = {verdict for verdict, _ in parts}
    verdict: Verdict = "failed" if "failed" in verdicts else "undecided" if "undecided" in verdicts else "passed"
    return ServingVerdict(verdict, "; ".join([carries(measured), *(told for _, told in parts)]))


def _latency(seconds: Sequence[float], limit: float, alpha: float) -> tuple[Verdict, str]:
    slower = sum(one > limit for one in seconds)
    told = f"{slower} of {len(seconds)} were slower than the {limit:g} s asked of 95 in 100"
    if at_most(slower, len(seconds)) <= alpha:
        return "passed", told
    if 1 - at_most(slower - 1, len(seconds)) <= alpha:
        return "failed", told
    return "undecided", f"{told}, which is too near to tell"


def rate_of(measured: ServingMeasured) -> float:
    """Whole answers a second over the burst, its beginning and end included; 0 where nothing was measured."""
    return len(measured.seconds) / measured.wall_s if measured.wall_s > 0 else 0.0


def carries(measured: ServingMeasured) -> str:
    """What this box carries, and how that was measured; "" where nothing was."""
    if not measured.seconds:
        return ""
    half, most = (_figure(percentile(measured.seconds, share)) for share in (0.5, 0.95))
    return (
        f"this box carries {_figure(rate_of(measured))} requests/s: {len(measured.seconds)} test prompts to the "
        f"adapter as served, {measured.concurrency} in flight, in {_figure(measured.wall_s)} s; half were answered "
        f"within {half} s, 95 of 100 within {most} s"
    )


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
