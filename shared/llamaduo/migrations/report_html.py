"""The report as one self-contained HTML page: no script, no outside asset, light and dark, any width.

Everything that came from data, models or people is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files

from llamaduo.event_parts import Interval, Marks
from llamaduo.migrations.filters import FILTERS
from llamaduo.migrations.report import Report, RoundPart
from llamaduo.migrations.report_chart import HEIGHT, WIDTH, Point, bar, marks_chart
from llamaduo.migrations.report_confusion_html import confusion_section
from llamaduo.migrations.report_serving import serving_section
from llamaduo.migrations.report_tables import table as _table
from llamaduo.migrations.report_tables import text as _text
from llamaduo.migrations.report_trust_html import trust_section
from llamaduo.migrations.seconds import Seconds

STAGES = ("training", "generation", "service_llm", "marking", "other")
STAGE_NAMES = {
    "training": "training",
    "generation": "local answers",
    "service_llm": "service LLM",
    "marking": "marking",
    "other": "other",
}


@dataclass(frozen=True)
class SideBySide:
    """One prompt, its reference, and what each candidate answered (label, answer, mark)."""

    prompt: str
    reference: str
    answers: list[tuple[str, str, str]] = field(default_factory=list)


def report_html(report: Report, answers: Sequence[SideBySide] = ()) -> str:
    """The page. `answers` are shown side by side if given."""
    body = "".join(
        [
            _head(report),
            _warnings(report.warnings),
            _cards(report),
            _marks(report),
            trust_section(report),
            serving_section(report.serving),
            confusion_section(report),
            _data(report),
            _training(report),
            _seconds(report),
            _answers(answers),
            _calls(report),
            _fine_print(report),
        ]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.name or report.migration)}: {report.status}</title><style>{_css()}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _css() -> str:
    return files("llamaduo.migrations").joinpath("report.css").read_text("utf-8")


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return (
        f'{interval.mean:.3g} <span class="soft">({interval.low:.3g} to {interval.high:.3g}, n={interval.n})</span>'
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _head(report: Report) -> str:
    end = {
        "completed": f"Round {report.passed_round} passed the gate",
        "stopped": f"Stopped by the rule “{report.stopped_rule}”",
        "cancelled": "Cancelled by an operator",
        "running": f"Running: {report.stage}",
    }[report.status]
    # A completed migration's reason only says again that a round passed.
    because = f": {report.ended_because}" if report.ended_because and report.status != "completed" else ""
    advice = f"<p><b>What to do:</b> {escape(report.what_to_do)}</p>" if report.what_to_do else ""
    when = f"{report.requested_at:%Y-%m-%d %H:%M} UTC, " if report.requested_at else ""
    return (
        f'<h1>{_text(report.name or report.migration)} <span class="badge {report.status}">{report.status}</span>'
        f"</h1><p>{escape(end + because)}</p>{advice}<p class='soft'>{escape(report.migration)} · {when}"
        f"{escape(_duration(report.seconds.wall))} by the clock</p>"
    )


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    return '<ul class="warn">' + "".join(f"<li>{escape(text)}</li>" for text in warnings) + "</ul>"


def _metrics(report: Report) -> list[tuple[str, str]]:
    """All (evaluator, metric) pairs; those of required evaluators first."""
    every = [
        report.base_model.marks,
        report.nearest_row,
        report.service_llm.marks,
        report.holdout,
        *(r.marks for r in report.rounds),
    ]
    pairs = {(evaluator, metric) for marks in every for evaluator, metrics in marks.items() for metric in metrics}
    required = {part.name for part in report.evaluators if part.role == "required"}
    return sorted(pairs, key=lambda pair: (pair[0] not in required, pair))


def _candidates(report: Report) -> list[tuple[str, str, Marks]]:
    """(label, kind, marks) in the order of the chart."""
    return [
        ("base model", "base", report.base_model.marks),
        ("nearest row", "nearest", report.nearest_row),
        *((f"round {part.number}", "round", part.marks) for part in report.rounds),
        ("holdout", "holdout", report.holdout),
        ("service LLM", "service", report.service_llm.marks),
    ]


def _cards(report: Report) -> str:
    pairs = _metrics(report)
    if not pairs:
        return ""
    evaluator, metric = pairs[0]
    cards = []
    shown = {report.rounds[-1].number} if report.rounds else set()
    for label, kind, marks in _candidates(report):
        interval = marks.get(evaluator, {}).get(metric)
        if interval is None or (kind == "round" and label not in {f"round {n}" for n in shown}):
            continue
        cards.append(
            f'<div class="card"><span class="soft">{escape(label)}</span><b>{interval.mean:.3g}</b>'
            f'<span class="soft">{interval.low:.3g} to {interval.high:.3g}, {interval.n} prompts</span></div>'
        )
    return f"<p class='soft'>{escape(evaluator)}.{escape(metric)}</p><div class='cards'>{''.join(cards)}</div>"


def _chart(report: Report, evaluator: str, metric: str) -> str:
    points = [
        Point(label, kind, marks[evaluator][metric])
        for label, kind, marks in _candidates(report)
        if metric in marks.get(evaluator, {})
    ]
    scales = {(part.name, name): ends for part in report.evaluators for name, ends in part.metrics.items()}
    name = f"{evaluator}.{metric}"
    gate = (report.gate.get("absolute") or {}).get(name)
    return marks_chart(name, points, scales.get((evaluator, metric), (0.0, 1.0)), gate)


def report_picture(report: Report) -> str:
    """The chart of the first metric that decides, as an SVG file of its own. ValueError if nothing was marked."""
    pairs = _metrics(report)
    if not pairs:
        raise ValueError("nothing has been marked yet")
    style = f"<style>{_css()}svg.chart {{ background: var(--card); }}</style>"
    opening, _, rest = _chart(report, *pairs[0]).partition(">")
    return f'{opening} xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}">{style}{rest}\n'


def _marks(report: Report) -> str:
    pairs = _metrics(report)
    if not pairs:
        return "<h2>Marks</h2><p>Nothing has been marked yet.</p>"
    thresholds = report.gate.get("absolute") or {}
    charts = [f"<h3>{escape(f'{pair[0]}.{pair[1]}')}</h3>{_chart(report, *pair)}" for pair in pairs]
    rows = [
        [escape(label), *(_interval(marks.get(evaluator, {}).get(metric)) for evaluator, metric in pairs)]
        for label, _, marks in _candidates(report)
        if marks
    ]
    head = ["", *(escape(f"{evaluator}.{metric}") for evaluator, metric in pairs)]
    parity = report.gate.get("parity")
    gate = [f"{name} at least {value:g}" for name, value in thresholds.items()]
    gate += [f"not worse than the service LLM by more than {parity['margin']:g} points"] if parity else []
    serving = report.gate.get("serving") or {}
    gate += [f"95 of 100 requests within {limit:g} s"] if (limit := serving.get("latency_p95_s")) else []
    gate += [f"{rate:g} requests/s"] if (rate := serving.get("requests_per_second")) else []
    confidence = 100 * float(report.gate.get("confidence", 0.95))
    return (
        f"<h2>Marks</h2><p class='soft'>Gate: {escape('; '.join(gate) or 'none')}. Means with {confidence:g} % "
        "intervals over prompts: the rounds' by the verdict, valid at every look; the others Wilson's, for one "
        f"look.</p>{''.join(charts)}{_table(head, rows)}"
    )


def _data(report: Report) -> str:
    if not report.rounds:
        return ""
    most = max(part.rows for part in report.rounds)
    rows = [
        [
            str(part.number),
            f'<span class="{part.verdict or "running"}">{part.verdict or "under way"}</span>',
            f"{part.rows}{bar(part.rows, most, 'rows')}",
            f"+{part.added}",
            escape(_counts(part.removed) or "none"),
            str(part.failing),
        ]
        for part in report.rounds
    ]
    head = ["round", "verdict", "training rows", "new", "dropped by the filters", "failing rows handed on"]
    dropped = {name for part in report.rounds for name, count in part.removed.items() if count}
    words = "; ".join(f"<i>{escape(name)}</i>: {escape(what)}" for name, what in FILTERS.items() if name in dropped)
    explained = f"<p class='soft'>Dropped as {words}.</p>" if words else ""
    return "<h2>Data</h2>" + _table(head, rows, (0, 3, 5)) + explained + _several(report)


def _not_told(part: RoundPart) -> str:
    return "not looked at" if part.verdict else "under way"


def _several(report: Report) -> str:
    """What became of each base model in each round, where there are several."""
    rows = [
        [
            str(part.number),
            _text(base.model),
            f'<span class="{base.verdict or "running"}">{base.verdict or _not_told(part)}</span>',
            str(base.marked),
            _text(base.steps),
            _text(base.validation_loss and f"{base.validation_loss:.4g}"),
            escape(base.note),
        ]
        for part in report.rounds
        for base in part.bases
    ]
    if not rows:
        return ""
    head = ["round", "base model", "verdict", "prompts marked", "steps", "validation loss", ""]
    why = "<p class='soft'>Smallest first. A larger one is marked only once all smaller ones have failed.</p>"
    return "<h2>Base models</h2>" + why + _table(head, rows, (0, 3, 4, 5))


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count)


def _training(report: Report) -> str:
    trained = [part for part in report.rounds if part.steps is not None]
    if not trained:
        return ""
    number_of = {part.adapter_digest: part.number for part in trained}
    rows = [
        [
            str(part.number),
            "base model" if part.continued_from is None else f"round {number_of.get(part.continued_from, '?')}",
            str(part.steps),
            _text(part.best_step),
            "–" if part.validation_loss is None else f"{part.validation_loss:.4g}",
            _text(part.rows_kept),
            _text(part.rows_cut),
            _text(part.label_tokens),
        ]
        for part in trained
    ]
    head = ["round", "began with", "steps", "best step", "validation loss", "rows kept", "rows cut", "label tokens"]
    table = _table(head, rows, (0, *range(2, 8)))
    return "<h2>Training</h2>" + table + "".join(_preference(part) for part in trained)


def _preference(part: RoundPart) -> str:
    found = part.preference
    if found is None:
        return ""
    words = f"Round {part.number}, DPO on own failures: {found.pairs} of {found.asked} train rows answered wrongly"
    if found.validated:
        words += (
            f"; validation answers right word for word {found.exact_before} before and {found.exact_after} after, "
            f"of {found.validated}: {'kept' if found.kept else 'not kept'}"
        )
    return f"<p class='soft'>{words}.</p>"


def _seconds(report: Report) -> str:
    windows: list[tuple[str, Seconds]] = [(f"round {part.number}", part.seconds) for part in report.rounds]
    if report.closing_seconds.wall:
        windows.append(("after the last decision", report.closing_seconds))
    windows.append(("in all", report.seconds))
    rows = []
    for label, seconds in windows:
        cells = [
            f"{_duration(getattr(seconds, stage))}{bar(getattr(seconds, stage), seconds.wall, stage)}"
            for stage in STAGES
        ]
        rows.append([escape(label), _duration(seconds.wall), *cells, f"{100 * seconds.other_share:.1f} %"])
    head = ["", "by the clock", *(STAGE_NAMES[stage] for stage in STAGES), "other, share"]
    return (
        "<h2>Time</h2><p class='soft'>A stage counts the moments in which any of its work ran; stages overlap. "
        "“Other” is what no work of any service covers; its share leaves out what came before the first work."
        f"</p>{_table(head, rows)}"
    )


def _answers(answers: Sequence[SideBySide]) -> str:
    if not answers:
        return ""
    blocks = []
    for row in answers:
        cells = [("reference", row.reference, ""), *row.answers]
        inner = "".join(
            f'<div><span class="soft">{escape(label)} {escape(mark)}</span><pre>{escape(text)}</pre></div>'
            for label, text, mark in cells
        )
        blocks.append(f'<details><summary>{escape(row.prompt)}</summary><div class="answers">{inner}</div></details>')
    return "<h2>Answers side by side</h2>" + "".join(blocks)


def _calls(report: Report) -> str:
    calls, llm = report.calls, report.service_llm
    names = [("service LLM", llm.model), ("at", llm.base_url), ("teacher", llm.teacher), ("judge", llm.judge)]
    figures = [
        ("calls made", calls.made),
        ("of these in batches, at their lower price", calls.batched or None),
        ("answered from the ledger", calls.from_ledger),
        ("may have been paid twice", calls.rebought),
        ("tries without an answer", calls.failed),
        ("of these told to wait (429)", calls.limited),
        ("refused for good", calls.refused),
        ("answers cut off", calls.cut),
        ("answers without text", calls.empty),
        ("answers not as asked, but read", calls.odd),
        ("answers of no use", calls.unreadable),
        ("tokens in", calls.input_tokens),
        ("tokens out", calls.output_tokens),
        ("service LLM, US$", f"{calls.money:.4f}"),
        ("own machine, US$", f"{calls.machine_money:.4f}"),
    ]
    rows = [[escape(name), _text(value)] for name, value in (*names, *figures) if value is not None]
    return "<h2>Service LLM and money</h2>" + _table(["", ""], rows)


def _fine_print(report: Report) -> str:
    rows = [["base model", _text(report.base_model.model)], ["its digest", _text(report.base_model.digest)]]
    if report.served is not None:
        served = report.served
        rows.append(["served as", f"<code>{escape(served.alias)}</code>, {escape(served.name)}"])
        rows.append(["adapter", f"<code>{escape(served.digest)}</code>"])
    rows += [[f"data of round {p.number}", f"<code>{_text(p.dataset_digest)}</code>"] for p in report.rounds]
    rows += [
        [
            f"evaluator {escape(part.name)}",
            escape(f"version {', '.join(part.versions) or '–'}, {part.role}, {part.abstained} marks withheld"),
        ]
        for part in report.evaluators
    ]
    rows += [[escape(name), escape(version)] for name, version in sorted(report.versions.items())]
    rows.append(["llamaduo", f"{escape(report.llamaduo)}, report made {report.made_at:%Y-%m-%d %H:%M:%S} UTC"])
    return "<h2>What exactly this was</h2>" + _table(["", ""], rows)
