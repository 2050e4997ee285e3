"""Inline SVG pictures of the report: marks by candidate with intervals and the gate, and bars."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from llamaduo.event_parts import Interval

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 38, 10, 14, 32


@dataclass(frozen=True)
class Point:
    """A candidate's mean with its interval; `kind` picks the colour: base, round, holdout or service."""

    label: str
    kind: str
    interval: Interval


def marks_chart(title: str, points: list[Point], scale: tuple[float, float], gate: float | None) -> str:
    """One metric over all candidates, with whiskers for the intervals and a dashed line for the gate."""
    low, high = scale
    span = (high - low) or 1.0

    def y(value: float) -> float:
        share = min(1.0, max(0.0, (value - low) / span))
        return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)

    def x(index: int) -> float:
        return LEFT + (index + 0.5) * (WIDTH - LEFT - RIGHT) / max(1, len(points))

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">',
        f"<title>{escape(title)}</title>",
    ]
    for step in range(5):
        value = low + span * step / 4
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    if gate is not None:
        parts.append(
            f'<line class="gate" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(gate):.1f}" y2="{y(gate):.1f}"/>'
            f'<text class="gate-label" x="{WIDTH - RIGHT}" y="{y(gate) - 5:.1f}" text-anchor="end">'
            f"gate {gate:.3g}</text>"
        )
    rounds = [(x(i), y(p.interval.mean)) for i, p in enumerate(points) if p.kind == "round"]
    if len(rounds) > 1:
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in rounds)
        parts.append(f'<polyline class="trend" points="{path}"/>')
    for index, point in enumerate(points):
        parts.append(_whisker(x(index), y, point))
    parts.append("</svg>")
    return "".join(parts)


def _whisker(x: float, y: Callable[[float], float], point: Point) -> str:
    i = point.interval
    top, bottom = y(i.high), y(i.low)
    detail = f"{point.label}: {i.mean:.3g} ({i.low:.3g} to {i.high:.3g}), {i.n} prompts"
    return (
        f'<g class="point {escape(point.kind, quote=True)}"><title>{escape(detail)}</title>'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'
        f'<line x1="{x - 5:.1f}" x2="{x + 5:.1f}" y1="{top:.1f}" y2="{top:.1f}"/>'
        f'<line x1="{x - 5:.1f}" x2="{x + 5:.1f}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{y(i.mean):.1f}" r="4"/>'
        f'<text class="value" x="{x + 7:.1f}" y="{y(i.mean) + 4:.1f}">{i.mean:.3g}</text>'
        f'<text class="label" x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(point.label)}</text></g>'
    )


def bar(value: float, largest: float, kind: str) -> str:
    """A horizontal bar for a table cell, as long as `value` is of `largest`."""
    share = 100 * value / largest if largest > 0 else 0.0
    return (
        f'<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="{escape(kind, quote=True)}" width="{min(100.0, share):.2f}" height="6" rx="1"/></svg>'
    )
