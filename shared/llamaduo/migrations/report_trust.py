"""What the report says about its own marks: how fine a difference they tell, who agrees, what marking took."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from statistics import NormalDist, fmean, variance
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llamaduo.event_parts import MarkedSplit, MetricRange
from llamaduo.events import EvalScored
from llamaduo.migrations.agreement import krippendorff_alpha, noise_of, repeated_marks
from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.intervals import mean_by_row, scales_of, wilson
from llamaduo.migrations.resolution import alpha_of_look, prompts_for, smallest_gap, spread_of
from llamaduo.migrations.spec import MigrationSpec

PAPER_ANSWERS, PAPER_MARKS = 4, 10
"""What the paper takes for every prompt of every round: K answers, each marked M times."""

Rows = dict[str, float]
"""row -> mean mark"""


class Part(BaseModel):
    """A part of the report."""

    model_config = ConfigDict(frozen=True)


class ResolutionPart(Part):
    """What this test set can tell about one thing the gate asks, and what it cannot."""

    name: str = Field(description="`evaluator.metric`, or `parity of evaluator.metric`")
    prompts: int = Field(description="test prompts there are, marked or not")
    spread: float = Field(description="standard deviation over prompts, on the metric's own scale")
    smallest_gap: float = Field(description="smallest distance from the gate told in nine of ten cases, own scale")
    prompts_for_5_points: int | None = Field(description="prompts that would tell a distance of 5 % of the scale")
    prompts_to_decide: int | None = Field(description="prompts for the distance that was seen; None: there is none")


class AgreementPart(Part):
    """How far two metrics of two evaluators agree on the same answers."""

    one: str
    other: str
    prompts: int
    alpha: float | None = Field(description="Krippendorff's, interval data; None: their marks do not vary")


class NoisePart(Part):
    """How far one evaluator agrees with itself on one and the same answer."""

    evaluator: str
    metric: str
    answers: int = Field(description="answers that it marked more than once")
    sd: float = Field(description="standard deviation of its marks for one answer, own scale")


class EffortPart(Part):
    """What marking the rounds took."""

    marked: int = Field(0, description="answers of the rounds that the required evaluators marked once")
    repeats: int = Field(0, description="answers that they marked again")
    saved: int = Field(0, description="repeats of noisy evaluators that the spec allowed and that were not needed")
    fixed: int = Field(0, description="marks at the paper's fixed 4 answers a prompt and 10 marks an answer")


class HoldoutPart(Part):
    """Test marks beside holdout marks: well above them, the rounds were aimed too narrowly at the test rows."""

    name: str
    test: float
    holdout: float
    low: float = Field(description="of the interval of test minus holdout, at the gate's confidence")
    high: float
    higher_is_better: bool = True


class SlicePart(Part):
    """The rows that share a value of one `meta` column, where the gate has a floor for that column."""

    column: str
    value: str
    name: str = Field(description="`evaluator.metric`")
    n: int
    mean: float
    low: float = Field(description="of Wilson's interval at the gate's confidence, for this part alone and one look")
    high: float
    floor: float
    state: Literal["above", "below", "too_few"] = Field(description="of its mean; below need not be for sure")
    decides: bool = Field(description="whether it can keep the round from passing")


class TrustPart(Part):
    """How far the marks can be trusted. Of the last round that has marks."""

    resolution: list[ResolutionPart] = Field(default_factory=list)
    agreement: list[AgreementPart] = Field(default_factory=list)
    noise: list[NoisePart] = Field(default_factory=list)
    slices: list[SlicePart] = Field(default_factory=list, description="worst first")
    effort: EffortPart = EffortPart()
    holdout: list[HoldoutPart] = Field(default_factory=list)


def trust_of(view: MigrationView) -> TrustPart:
    """Everything this part can say; empty where nothing was marked."""
    spec = view.spec
    if spec is None:
        return TrustPart()
    marked = [n for n in view.rounds if any(view.scored(view.shown(n), "test", e.name) for e in spec.evaluators)]
    return TrustPart(
        resolution=_resolution(view, spec, marked[-1]) if marked else [],
        agreement=_agreement(view, marked[-1]) if marked else [],
        noise=_noise(view),
        slices=_slices(view, spec, marked[-1]) if marked else [],
        effort=_effort(view, spec),
        holdout=_holdout(view, spec),
    )


def _events(view: MigrationView, candidate: str, split: MarkedSplit, evaluator: str) -> list[EvalScored]:
    return [event for shard in view.scored(candidate, split, evaluator).values() for event in shard]


def _by_row(view: MigrationView, candidate: str, split: MarkedSplit, evaluator: str) -> dict[str, Rows]:
    return mean_by_row(_events(view, candidate, split, evaluator))[0]


def _scales(view: MigrationView, evaluator: str) -> Mapping[str, MetricRange]:
    every = scales_of(event for event in view.of_type(EvalScored) if event.evaluator == evaluator)
    return {metric: scale for metric, scale in every.items() if scale.high > scale.low}


def _resolution(view: MigrationView, spec: MigrationSpec, number: int) -> list[ResolutionPart]:
    data = view.dataset(number)
    prompts = data.rows.get("test", 0) if data else 0
    alpha = alpha_of_look(spec, number, {event.evaluator for event in view.of_type(EvalScored) if event.noisy})
    parts = []
    for evaluator in spec.required:
        own, service = (_by_row(view, key, "test", evaluator) for key in (view.shown(number), "service"))
        for metric, scale in sorted(_scales(view, evaluator).items()):
            width, rows = scale.high - scale.low, own.get(metric, {})
            name = f"{evaluator}.{metric}"
            asked: list[tuple[str, list[float], float]] = []
            if name in spec.gate.absolute:
                gap = fmean(rows.values()) - spec.gate.absolute[name] if rows else 0.0
                asked.append((name, [(value - scale.low) / width for value in rows.values()], gap / width))
            if spec.gate.parity is not None:
                bar = service.get(metric, {})
                sign = 1 if scale.higher_is_better else -1
                pairs = [sign * (value - bar[row]) / width for row, value in rows.items() if row in bar]
                # A difference lies within twice the scale: on [0, 1] it is half as wide, and so is the gap.
                gap = (fmean(pairs) + spec.gate.parity.margin / 100) / 2 if pairs else 0.0
                asked.append((f"parity of {name}", [(pair + 1) / 2 for pair in pairs], gap))
            for what, shares, gap in asked:
                if not shares or not prompts:
                    continue
                own_scale = width * (2 if what != name else 1)
                spread = spread_of(shares)
                parts.append(
                    ResolutionPart(
                        name=what,
                        prompts=prompts,
                        spread=round(spread * own_scale, 4),
                        smallest_gap=round(smallest_gap(spread, prompts, alpha) * own_scale, 4),
                        prompts_for_5_points=prompts_for(spread, 0.05 * width / own_scale, alpha),
                        prompts_to_decide=prompts_for(spread, abs(gap), alpha),
                    )
                )
    return parts


def _agreement(view: MigrationView, number: int) -> list[AgreementPart]:
    shares: dict[tuple[str, str], Rows] = {}
    for evaluator in view.evaluators_seen:
        scales = _scales(view, evaluator)
        for metric, rows in _by_row(view, view.shown(number), "test", evaluator).items():
            if metric not in scales:
                continue
            scale = scales[metric]
            unit = {row: (value - scale.low) / (scale.high - scale.low) for row, value in rows.items()}
            shares[evaluator, metric] = (
                unit if scale.higher_is_better else {row: 1 - value for row, value in unit.items()}
            )
    parts = []
    for one, other in combinations(sorted(shares), 2):
        both = sorted(shares[one].keys() & shares[other].keys())
        if one[0] == other[0] or not both:
            continue
        alpha = krippendorff_alpha([shares[one][row], shares[other][row]] for row in both)
        parts.append(
            AgreementPart(
                one=".".join(one),
                other=".".join(other),
                prompts=len(both),
                alpha=None if alpha is None else round(alpha, 3),
            )
        )
    return parts


def _slices(view: MigrationView, spec: MigrationSpec, number: int) -> list[SlicePart]:
    parts: list[tuple[float, SlicePart]] = []
    for column, rule in sorted(spec.gate.slices.items()):
        evaluator, metric = spec.gate.metric_of(column).split(".")
        events = _events(view, view.shown(number), "test", evaluator)
        scale = _scales(view, evaluator).get(metric)
        if scale is None:
            continue
        where = {row: value for event in events for row, value in event.slices.get(column, {}).items()}
        by_value: dict[str, list[float]] = {}
        for row, mark in mean_by_row(events)[0].get(metric, {}).items():
            if row in where:
                by_value.setdefault(where[row], []).append(mark)
        for value, marks in sorted(by_value.items()):
            told = wilson(marks, scale, spec.gate.confidence)
            short = told.mean < rule.floor if scale.higher_is_better else told.mean > rule.floor
            part = SlicePart(
                column=column,
                value=value,
                name=f"{evaluator}.{metric}",
                n=told.n,
                mean=round(told.mean, 4),
                low=round(told.low, 4),
                high=round(told.high, 4),
                floor=rule.floor,
                state="too_few" if told.n < rule.min_rows else "below" if short else "above",
                decides=rule.decides,
            )
            share = (told.mean - scale.low) / (scale.high - scale.low)
            parts.append((share if scale.higher_is_better else 1 - share, part))
    # By shares of each scale: metrics of several columns differ in scale, and in which end is good.
    return [part for _, part in sorted(parts, key=lambda one: one[0])]


def _noise(view: MigrationView) -> list[NoisePart]:
    parts = []
    for evaluator in view.evaluators_seen:
        mine = [event for event in view.of_type(EvalScored) if event.evaluator == evaluator]
        for metric, answers in sorted(repeated_marks(mine).items()):
            noise = noise_of(answers.values())
            if noise is not None:
                parts.append(NoisePart(evaluator=evaluator, metric=metric, answers=noise[1], sd=round(noise[0], 4)))
    return parts


def _effort(view: MigrationView, spec: MigrationSpec) -> EffortPart:
    mine = [
        event
        for event in view.of_type(EvalScored)
        if event.candidate.kind == "adapter" and event.split == "test" and event.evaluator in spec.required
    ]

    def answers(event: EvalScored) -> int:
        return len({(mark.row, mark.sample) for mark in event.marks})

    decided = [view.dataset(n) for n in view.rounds if view.decision(n) is not None]
    prompts = sum(data.rows.get("test", 0) for data in decided if data is not None)
    repeats = sum(answers(event) for event in mine if event.repeat > 0)
    allowed = spec.marking.repeats * sum(answers(event) for event in mine if event.repeat == 0 and event.noisy)
    return EffortPart(
        marked=sum(answers(event) for event in mine if event.repeat == 0),
        repeats=repeats,
        saved=max(0, allowed - repeats),
        fixed=prompts * PAPER_ANSWERS * PAPER_MARKS * len(spec.required),
    )


def _holdout(view: MigrationView, spec: MigrationSpec) -> list[HoldoutPart]:
    passed = view.passed
    if passed is None:
        return []
    z = NormalDist().inv_cdf(0.5 + spec.gate.confidence / 2)
    parts = []
    for evaluator in spec.required:
        test, holdout = (_by_row(view, passed.candidate.key, split, evaluator) for split in ("test", "holdout"))
        scales = _scales(view, evaluator)
        for metric in sorted(test.keys() & holdout.keys()):
            one, other = list(test[metric].values()), list(holdout[metric].values())
            if len(one) < 2 or len(other) < 2:
                continue
            difference = fmean(one) - fmean(other)
            half = z * math.sqrt(variance(one) / len(one) + variance(other) / len(other))
            parts.append(
                HoldoutPart(
                    name=f"{evaluator}.{metric}",
                    test=round(fmean(one), 4),
                    holdout=round(fmean(other), 4),
                    low=round(difference - half, 4),
                    high=round(difference + half, 4),
                    higher_is_better=scales.get(metric, MetricRange()).higher_is_better,
                )
            )
    return parts
