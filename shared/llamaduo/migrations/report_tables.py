"""Tables of the report's page; cells are HTML that is ready, so what came from outside is escaped before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def text(value: object) -> str:
    """Escaped; a dash where there is nothing."""
    return escape("–" if value is None else str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table of ready HTML cells; columns in `numeric` stand right."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="n"' if i in numeric else "" for i in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{k}>{c}</{tag}>" for c, k in zip(cells, kinds, strict=True)) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'
