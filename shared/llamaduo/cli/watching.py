"""What `watch` says: a line for each event that matters, and the live picture. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llamaduo.event_parts import Interval, Marks
from llamaduo.events import (
    AdapterLoaded,
    AdapterPromoted,
    AdapterRolledBack,
    AdapterTrained,
    AnyEvent,
    BudgetRefused,
    CancelRequested,
    DatasetReady,
    EvalFailed,
    EvalPassed,
    MigrationCancelled,
    MigrationCompleted,
    MigrationRequested,
    MigrationStopped,
    PauseRequested,
    ResumeRequested,
    ServingMeasured,
    ServingRequested,
    WorkFailed,
)
from llamaduo.migrations.serving_gate import carries
from llamaduo.migrations.spec import MigrationSpec
from llamaduo.migrations.stop_advice import what_to_do

if TYPE_CHECKING:
    from rich.console import RenderableType

    from llamaduo.bus.progress import Progress
    from llamaduo.migrations.report import Report


def show_interval(interval: Interval) -> str:
    """`0.425 (0.359 to 0.494, n=200)`"""
    return f"{interval.mean:.3g} ({interval.low:.3g} to {interval.high:.3g}, n={interval.n})"


def show_marks(marks: Marks, thresholds: Mapping[str, float] | None = None, between: str = "; ") -> str:
    """All marks, each beside its threshold where it has one."""
    parts = []
    for evaluator, metrics in sorted(marks.items()):
        for metric, interval in sorted(metrics.items()):
            name = f"{evaluator}.{metric}"
            gate = (thresholds or {}).get(name)
            parts.append(f"{name} {show_interval(interval)}" + (f", gate {gate:g}" if gate is not None else ""))
    return between.join(parts) or "no marks"


def line_of(event: AnyEvent) -> str | None:
    """One line on an event; None for those that only progress shows (shards asked, answered, marked)."""
    about = _about_round(event) or _about_alias(event) or _about_end(event)
    return about or _about_trouble(event)


def _about_round(event: AnyEvent) -> str | None:
    match event:
        case MigrationRequested():
            spec = MigrationSpec.model_validate(event.spec)
            bases = " or ".join(spec.bases)
            return f"submitted: {spec.name}, {bases} is to learn it from {spec.service_llm.model}"
        case DatasetReady():
            rows = ", ".join(f"{count} {split}" for split, count in event.rows.items())
            dropped = ", ".join(f"{count} {name}" for name, count in sorted(event.removed.items()) if count)
            new = f"; {event.added} new" if event.added else ""
            return f"round {event.round}: data is ready: {rows}{new}" + (f"; dropped {dropped}" if dropped else "")
        case AdapterTrained():
            loss = f", validation loss {event.validation_loss:.4g}" if event.validation_loss is not None else ""
            of = f" {event.adapter.base_model}" if event.base else ""
            began = f" from round {event.round - 1}'s adapter on" if event.continued_from else ""
            return f"round {event.round}: trained{of} {event.steps} steps{began}, best at {event.best_step}{loss}"
        case ServingRequested():
            return f"round {event.round}: the marks pass; measuring how fast it is served"
        case ServingMeasured():
            return f"round {event.round}: {carries(event) or 'no request could be measured'}"
        case EvalFailed() | EvalPassed():
            thresholds = event.gate.get("absolute") if isinstance(event.gate.get("absolute"), dict) else {}
            note = f" — {event.note}" if event.note else ""
            return f"round {event.round}: {event.verdict}: {show_marks(event.marks, thresholds)}{note}"
    return None


def _about_alias(event: AnyEvent) -> str | None:
    match event:
        case AdapterPromoted():
            return f"round {event.round}: {event.alias} is now {event.name}, by {event.by}: {event.why}"
        case AdapterRolledBack():
            now = event.to.digest[:12] if event.to else "nothing"
            return f"{event.alias} was rolled back to {now}, by {event.by}: {event.why}"
        case AdapterLoaded():
            return f"round {event.round}: {event.name} is served by {event.replica} {event.url}".rstrip()
        case PauseRequested():
            return f"pause asked for by {event.by or 'an operator'}"
        case ResumeRequested():
            return f"resume asked for by {event.by or 'an operator'}"
        case CancelRequested():
            return f"cancel asked for by {event.by or 'an operator'}"
    return None


def _about_end(event: AnyEvent) -> str | None:
    match event:
        case MigrationCompleted():
            holdout = f"; on the holdout: {show_marks(event.holdout)}" if event.holdout else ""
            return f"completed: {event.reason or f'round {event.round} passed'}{holdout}"
        case MigrationStopped():
            advice = what_to_do(event.rule)
            return f"stopped by the rule {event.rule}: {event.reason}" + (f"; what to do: {advice}" if advice else "")
        case MigrationCancelled():
            return f"cancelled: {event.reason}" if event.reason else "cancelled"
    return None


def _about_trouble(event: AnyEvent) -> str | None:
    match event:
        case WorkFailed():
            return (
                f"a dead letter: {event.consumer} gave up on {event.subject} after {event.attempts} tries: "
                f"{event.error} (llamaduo dlq show {event.dead_letter or 'ID'})"
            )
        case BudgetRefused():
            return f"the budget refused a call: {event.what}, limit {event.limit:g}, spent {event.spent:g}"
    return None


def line_of_progress(progress: Progress) -> str:
    """One line on work in hand."""
    where = f"round {progress.round}: " if progress.round is not None else ""
    note = f" ({progress.note})" if progress.note else ""
    return f"{where}{progress.stage} {progress.done:g}/{progress.total:g}{note}"


def picture(report: Report, progress: Mapping[str, Progress]) -> RenderableType:
    """The live view: rounds against the gate, what is being done now, money."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Text.assemble(
        (report.name or report.migration, "bold"),
        f"  {report.migration}  ",
        (report.stage, "green" if report.status in ("running", "completed") else "red"),
    )
    rounds = Table(box=None, pad_edge=False)
    for title in ("", "rows", "steps", "verdict", "marks on the test split"):
        rounds.add_column(title)
    thresholds = report.gate.get("absolute") or {}
    others = [("base", report.base_model.marks), ("service LLM", report.service_llm.marks)]
    for label, marks in others:
        if marks:
            rounds.add_row(label, "", "", "", show_marks(marks, between="\n"))
    for part in report.rounds:
        of = f"\n{part.base_model}" if part.base_model else ""
        rounds.add_row(
            f"round {part.number}{of}",
            str(part.rows or ""),
            str(part.steps or ""),
            part.verdict or ("…" if report.status == "running" else "not decided"),
            show_marks(part.marks, thresholds, "\n") if part.marks else "",
        )
    if report.holdout:
        rounds.add_row("holdout", "", "", "", show_marks(report.holdout, between="\n"))
    work = Table(box=None, pad_edge=False)
    for _ in range(3):
        work.add_column()
    for item in progress.values():
        bar = ProgressBar(total=item.total or 1, completed=item.done, width=30)
        work.add_row(f"{item.service}: {item.stage}", bar, f"{item.done:g}/{item.total:g} {item.note}")
    calls = report.calls
    money = (
        f"calls {calls.made} made, {calls.from_ledger} from the ledger, {calls.failed} failed; "
        f"US$ {calls.money:.4f}; {report.seconds.wall:.0f} s"
    )
    warnings = [Text(f"! {warning}", style="yellow") for warning in report.warnings]
    return Group(head, rounds, work, Text(money, style="dim"), *warnings)


def summary(report: Report) -> str:
    """The report as plain text for a terminal."""
    stage = "" if report.stage == report.status else f", {report.stage}"
    lines = [f"{report.name or report.migration} ({report.migration}): {report.status}{stage}"]
    if report.ended_because or report.stopped_rule:
        rule = f"rule {report.stopped_rule}: " if report.stopped_rule else ""
        lines.append(f"  {rule}{report.ended_because}")
    if report.what_to_do:
        lines.append(f"  what to do: {report.what_to_do}")
    thresholds = report.gate.get("absolute") or {}
    lines.append("marks on the test split, mean (interval, prompts):")
    lines.append(f"  base model   {show_marks(report.base_model.marks)}")
    for part in report.rounds:
        verdict = part.verdict or ("under way" if report.status == "running" else "not decided")
        lines.append(f"  round {part.number}      {verdict}: {show_marks(part.marks, thresholds)}")
        lines.append(f"               {part.rows} training rows (+{part.added}), {part.steps or 0} steps")
        if part.bases:
            each = ", ".join(f"{base.model} {base.verdict or '–'}" for base in part.bases)
            lines.append(f"               of {part.base_model}; {each}")
    lines.append(f"  service LLM  {show_marks(report.service_llm.marks)}")
    if report.holdout:
        lines.append(f"  holdout      {show_marks(report.holdout)}")
    lines.append("seconds:")
    windows = [(f"round {part.number}", part.seconds) for part in report.rounds]
    for label, seconds in [*windows, ("closing", report.closing_seconds), ("in all", report.seconds)]:
        lines.append(
            f"  {label:<8} {seconds.wall:7.1f} = training {seconds.training:.1f}, local answers "
            f"{seconds.generation:.1f}, service LLM {seconds.service_llm:.1f}, marking {seconds.marking:.1f}, "
            f"other {seconds.other:.1f} ({100 * seconds.other_share:.1f} % after the first start)"
        )
    calls = report.calls
    lines.append(
        f"calls: {calls.made} made, {calls.from_ledger} from the ledger, {calls.rebought} perhaps paid twice, "
        f"{calls.failed} failed; US$ {calls.money:.4f}"
    )
    if report.serving:
        lines.append(f"as served (round {report.serving.round}): {report.serving.told}")
    if report.served:
        lines.append(f"served: {report.served.alias} is {report.served.name} {' '.join(report.served.urls)}")
    lines += [f"! {warning}" for warning in report.warnings]
    return "\n".join(lines)
