"""What a reader of the report must know before trusting it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from urllib.parse import urlsplit

from llamaduo.event_parts import Marks, MetricRange
from llamaduo.events import AdapterTrained, DatasetReady, EvalScored, ResponsesGenerated
from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.intervals import mean_by_row
from llamaduo.migrations.report_trust import TrustPart
from llamaduo.migrations.spec import MigrationSpec

WIDE = 0.10
"""Half an interval, as a share of the scale, beyond which a test set is called small."""
NEARLY_ALL = 0.95
LITTLE_AGREEMENT = 0.4
"""Below it two evaluators mark different things; Krippendorff asks for 0.67 before tentative conclusions."""


def warnings_of(view: MigrationView, marks_by_round: Mapping[int, Marks], trust: TrustPart) -> list[str]:
    """Warnings in the order a reader should see them; `marks_by_round` holds each round's test marks."""
    return [
        *_who_the_service_llm_was(view.spec),
        *_small_test_set(view, marks_by_round, trust),
        *_vetoed_on_holdout(view),
        *_no_better_than_copying(view, marks_by_round),
        *_aimed_too_narrowly(trust),
        *_disagreeing(trust),
        *_weak_parts(trust),
        *_silent(view),
        *_abstained(view),
        *_changed_evaluators(view),
        *_continued(view),
        *_cut_rows(view),
        *_cut_answers(view),
        *_rebought(view),
        *_refused(view),
    ]


def _who_the_service_llm_was(spec: MigrationSpec | None) -> list[str]:
    if spec is None:
        return []
    addresses = {
        llm.base_url: llm.model for llm in (spec.service_llm, spec.teacher_llm, spec.judge_llm) if llm.base_url
    }
    local = sorted(
        f"{model} ran at {urlsplit(url).hostname}:{urlsplit(url).port or ''}".rstrip(":")
        for url, model in addresses.items()
        if urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    )
    return [f"{text}, a server on this machine: not the provider of that name" for text in local]


def _scales(view: MigrationView) -> dict[tuple[str, str], MetricRange]:
    return {
        (event.evaluator, metric): scale
        for event in view.of_type(EvalScored)
        for metric, scale in event.metrics.items()
    }


def _small_test_set(view: MigrationView, marks_by_round: Mapping[int, Marks], trust: TrustPart) -> list[str]:
    decided = [number for number in marks_by_round if view.decision(number) is not None]
    spec = view.spec
    if not decided or spec is None:
        return []
    last, found = max(decided), []
    verdict, data = view.decision(last), view.dataset(last)
    undecided = verdict is not None and verdict.verdict == "undecided"
    # A verdict that was sure before all prompts were marked says nothing about the size of the test set.
    if not undecided and verdict and data and verdict.rows < NEARLY_ALL * data.rows.get("test", 0):
        return []
    for evaluator, metrics in sorted(marks_by_round[last].items()):
        for metric, interval in sorted(metrics.items()):
            scale = _scales(view).get((evaluator, metric), MetricRange())
            width = scale.high - scale.low
            half = (interval.high - interval.low) / 2
            if evaluator not in spec.required or width <= 0 or half <= WIDE * width:
                continue
            text = (
                f"{evaluator}.{metric} of round {last} is known to ±{half:.3g} only, from {interval.n} "
                "prompts: a difference below that cannot be told"
            )
            found.append(text)
    if undecided:
        found += [
            f"round {last} is undecided on {part.name}: {part.prompts} prompts tell a distance of "
            f"{part.smallest_gap:.3g} from the gate; about {part.prompts_to_decide} prompts would decide it"
            for part in trust.resolution
            if part.prompts_to_decide is not None and part.prompts_to_decide > part.prompts
        ]
    return found


def _vetoed_on_holdout(view: MigrationView) -> list[str]:
    """The holdout changes no verdict, so a violation there is seen by nobody else."""
    if view.spec is None or view.passed is None:
        return []
    found = []
    for name in view.spec.vetoes:
        marked: set[str] = set()
        broken: set[str] = set()
        for event in (e for shard in view.scored(view.passed.candidate.key, "holdout", name).values() for e in shard):
            for mark in event.marks:
                scale = event.metrics.get(mark.metric)
                if scale is None or mark.value is None:
                    continue
                marked.add(mark.row)
                if mark.value != (scale.high if scale.higher_is_better else scale.low):
                    broken.add(mark.row)
        if broken:
            found.append(
                f"{name} would have vetoed on the holdout: {len(broken)} of {len(marked)} prompts violate it"
            )
    return found


def _no_better_than_copying(view: MigrationView, marks_by_round: Mapping[int, Marks]) -> list[str]:
    decided = [number for number in marks_by_round if view.decision(number) is not None]
    if not decided or view.spec is None:
        return []
    last, found = max(decided), []
    for evaluator in view.spec.required:
        scored = [event for shard in view.scored("nearest", "test", evaluator).values() for event in shard]
        for metric, rows in sorted(mean_by_row(scored)[0].items()):
            trained, copied = marks_by_round[last].get(evaluator, {}).get(metric), fmean(rows.values())
            scale = _scales(view).get((evaluator, metric), MetricRange())
            better = trained is not None and (
                trained.mean > copied if scale.higher_is_better else trained.mean < copied
            )
            if trained is None or better:
                continue
            found.append(
                f"{evaluator}.{metric} of round {last} is {trained.mean:.3g}; copying the nearest train row's answer "
                f"gives {copied:.3g}: training has added nothing that this shows"
            )
    return found


def _aimed_too_narrowly(trust: TrustPart) -> list[str]:
    return [
        f"{part.name} is {part.test:.3g} on test rows and {part.holdout:.3g} on the holdout: more than chance; later "
        "rounds were aimed at test failures, so trust the holdout"
        for part in trust.holdout
        if (part.low > 0 if part.higher_is_better else part.high < 0)
    ]


def _weak_parts(trust: TrustPart) -> list[str]:
    return [
        f"{part.name} is {part.mean:.3g} ({part.low:.3g} to {part.high:.3g}, n={part.n}) where {part.column} is "
        f"{part.value!r}: below the floor of {part.floor:.3g}"
        for part in trust.slices
        if part.state == "below"
    ]


def _disagreeing(trust: TrustPart) -> list[str]:
    return [
        f"{part.one} and {part.other} hardly agree on {part.prompts} prompts (alpha {part.alpha:.2f})"
        for part in trust.agreement
        if part.alpha is not None and part.alpha < LITTLE_AGREEMENT and part.prompts >= 20
    ]


def _silent(view: MigrationView) -> list[str]:
    answered = any(not event.skipped for event in view.of_type(ResponsesGenerated))
    if view.spec is None or not answered:
        return []
    return [
        f"{choice.name} ({choice.role}) has marked nothing"
        for choice in view.spec.evaluators
        if choice.name not in view.evaluators_seen
    ]


def _abstained(view: MigrationView) -> list[str]:
    counts: dict[tuple[str, str], list[int]] = {}
    for event in view.of_type(EvalScored):
        for mark in event.marks:
            held, total = counts.setdefault((event.evaluator, mark.metric), [0, 0])
            counts[event.evaluator, mark.metric] = [held + (mark.value is None), total + 1]
    return [
        f"{evaluator}.{metric} withheld {held} of {total} marks; these prompts are not in its mean"
        for (evaluator, metric), (held, total) in sorted(counts.items())
        if held
    ]


def _changed_evaluators(view: MigrationView) -> list[str]:
    versions: dict[str, set[str]] = {}
    for event in view.of_type(EvalScored):
        versions.setdefault(event.evaluator, set()).add(event.version)
    return [
        f"{name} changed its version under way ({', '.join(sorted(seen))}): its marks are not all alike"
        for name, seen in sorted(versions.items())
        if len(seen) > 1
    ]


def _continued(view: MigrationView) -> list[str]:
    went_on = [str(n) for n in view.rounds if (trained := view.adapter(n)) and trained.continued_from]
    if not went_on:
        return []
    rounds = f"round {went_on[0]}" if len(went_on) == 1 else f"rounds {', '.join(went_on)}"
    return [f"{rounds} went on from the adapter before: better marks may be due to longer training, not to new rows"]


def _cut_rows(view: MigrationView) -> list[str]:
    found = []
    for trained in sorted(view.of_type(AdapterTrained), key=lambda e: (e.round, e.base)):
        if trained.rows_cut:
            of = f" of {trained.adapter.base_model}" if trained.base else ""
            found.append(
                f"round {trained.round}{of}: {trained.rows_cut} of {trained.rows_given} training rows were longer "
                "than the recipe's max_length and lost their end or were left out"
            )
    return found


def _cut_answers(view: MigrationView) -> list[str]:
    """Too long prompts first: nobody marked them. Shards of test and holdout count together."""
    too_long: Counter[str] = Counter()
    cut: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for event in view.of_type(ResponsesGenerated):
        key = event.candidate.key
        too_long[key] += event.too_long
        cut[key] += event.cut
        rows[key] += event.rows
    unanswered = [
        f"{key}: {count} of {rows[key]} prompts did not fit the model's window and have no answer: "
        "raise LLAMADUO_MAX_LENGTH of inference, if the model can, or shorten them"
        for key, count in sorted(too_long.items())
        if count
    ]
    ended = [
        f"{key}: {count} answers to {rows[key]} prompts were cut at generation.max_tokens"
        for key, count in sorted(cut.items())
        if count
    ]
    return [*unanswered, *ended]


def _rebought(view: MigrationView) -> list[str]:
    lines = []
    for event in view.of_type(DatasetReady):
        if event.calls.rebought:
            lines.append((event.calls.rebought, f"the data of round {event.round}"))
    for answers in view.of_type(ResponsesGenerated):
        if answers.calls.rebought:
            lines.append((answers.calls.rebought, f"answers of {answers.candidate.key}, shard {answers.shard}"))
    for scored in view.of_type(EvalScored):
        if scored.calls.rebought:
            where = f"{scored.candidate.key}, {scored.split} shard {scored.shard}"
            lines.append((scored.calls.rebought, f"marks of {scored.evaluator} for {where}"))
    return [f"{count} calls in flight at a kill may have been paid twice: {what}" for count, what in lines]


def _refused(view: MigrationView) -> list[str]:
    dead = [
        f"a dead letter: {event.consumer} gave up on {event.subject} after {event.attempts} tries: "
        f"{event.error[:300]} (llamaduo dlq show {event.dead_letter or 'ID'})"
        for event in view.failures
    ]
    budget = [
        f"the budget of {event.limit:g} {event.what} refused a call at {event.spent:g} spent or reserved"
        for event in view.refusals
    ]
    return [*dead, *budget]
