"""The section of the report's page that says what the marks are worth."""

from __future__ import annotations

from html import escape

from llamaduo.migrations.report import Report
from llamaduo.migrations.report_tables import table, text


def trust_section(report: Report) -> str:
    """What the marks are worth: nothing where nothing was marked."""
    trust = report.trust
    parts = []
    if trust.resolution:
        rows = [
            [
                escape(part.name),
                str(part.prompts),
                f"{part.spread:.3g}",
                f"{part.smallest_gap:.3g}",
                text(part.prompts_for_5_points),
                text(part.prompts_to_decide),
            ]
            for part in trust.resolution
        ]
        head = ["asked by the gate", "test prompts", "spread", "smallest gap told", "prompts for 5 %", "for this gap"]
        parts.append(
            "<p class='soft'>A smaller distance from the gate than the smallest gap cannot be told from chance with "
            "these test prompts in nine of ten cases; the last columns: how many prompts tell 5 % of the scale, and "
            f"the distance that was seen.</p>{table(head, rows, range(1, 6))}"
        )
    rows = [
        [
            escape(f"{part.one} and {part.other}"),
            "agreement (Krippendorff's alpha)",
            text(part.alpha),
            str(part.prompts),
        ]
        for part in trust.agreement
    ]
    rows += [
        [
            escape(f"{part.evaluator}.{part.metric}"),
            "noise (SD of marks for one answer)",
            f"{part.sd:.3g}",
            str(part.answers),
        ]
        for part in trust.noise
    ]
    rows += [
        [
            escape(part.name),
            f"test {part.test:.3g} less holdout {part.holdout:.3g}",
            f"{part.test - part.holdout:.3g} <span class='soft'>({part.low:.3g} to {part.high:.3g})</span>",
            "",
        ]
        for part in trust.holdout
    ]
    if rows:
        parts.append(table(["", "what", "", "answers"], rows, (2, 3)))
    if trust.slices:
        lines = [
            [
                escape(f"{part.column}: {part.value}"),
                escape(part.name),
                f"{part.mean:.3g} <span class='soft'>({part.low:.3g} to {part.high:.3g})</span>",
                str(part.n),
                f"{part.floor:.3g}",
                {"too_few": "too few rows to ask"}.get(part.state, part.state),
            ]
            for part in trust.slices
        ]
        head = ["part of the test rows, worst first", "metric", "mean", "n", "floor", ""]
        parts.append(table(head, lines, (2, 3, 4)))
    effort = trust.effort
    if effort.marked:
        parts.append(
            f"<p>The rounds took {effort.marked} marked answers and {effort.repeats} repeated marks of required "
            f"evaluators; {effort.saved} more repeats were allowed and not needed. The paper's 4 answers a prompt "
            f"and 10 marks an answer would have taken {effort.fixed}.</p>"
        )
    parts.append(
        "<p class='soft'>The service LLM is marked against the coverage answers. Where those are its own, this is "
        "its agreement with its own logged answers, and no model taught by them need be expected above it.</p>"
        if report.service_llm.marks
        else ""
    )
    body = "".join(parts)
    return f"<h2>What the marks are worth</h2>{body}" if body else ""
