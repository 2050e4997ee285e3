"""The section of the report's page that shows which labels were given for which."""

from __future__ import annotations

from html import escape

from llamaduo.migrations.confusion import ConfusionPart
from llamaduo.migrations.report import Report
from llamaduo.migrations.report_tables import table


def confusion_section(report: Report) -> str:
    """Confused labels; nothing where no evaluator compared labels."""
    return "".join(map(_one, report.confusion))


def _one(part: ConfusionPart) -> str:
    about = (
        f"{part.evaluator}, round {part.round}, test rows: {part.right} of {part.answers} answers have the right "
        f"label, {part.invented} have none of the {part.labels} known labels."
    )
    heading = f"<h2>Labels confused</h2><p class='soft'>{escape(about)}"
    if not part.rows:
        return f"{heading}</p>"
    notes = (
        " A row is a label of the references, a column what was answered instead; the most frequent mistakes first."
    )
    if part.left_out:
        notes += f" {part.left_out} more labels were missed less often."
    other = any(row.other for row in part.rows)
    head = ["label", "answers", "right", *map(escape, part.given)]
    head += [*(["other labels"] if other else []), "no known label"]
    rows = [
        [
            escape(row.expected),
            str(row.answers),
            str(row.right),
            *(_count(answers) for answers in row.wrong),
            *([_count(row.other)] if other else []),
            _count(row.invented),
        ]
        for row in part.rows
    ]
    shown = [f"<code>{escape(text)}</code> ({answers})" if text else f"no label at all ({answers})"
             for text, answers in part.inventions]  # fmt: skip
    invented = f"<p class='soft'>No known label: {', '.join(shown)}.</p>" if shown else ""
    return f"{heading}{escape(notes)}</p>{table(head, rows, range(1, len(head)))}{invented}"


def _count(answers: int) -> str:
    return str(answers) if answers else '<span class="soft">·</span>'
