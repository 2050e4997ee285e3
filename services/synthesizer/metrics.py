"""What the synthesizer makes, as Prometheus sees it. Its calls are in `llamaduo.service_llm.metrics`."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter

ROWS_ADDED = Counter("llamaduo_synthetic_rows_added_total", "Generated rows that entered training")
ROWS_REMOVED = Counter("llamaduo_synthetic_rows_removed_total", "Generated rows dropped, by filter", ["filter"])
REFERENCES = Counter(
    "llamaduo_reference_answers_total", "Answers of the service LLM, or copied from near rows", ["of"]
)


def note_rows(added: int, removed: Mapping[str, int]) -> None:
    """A round's data was written."""
    ROWS_ADDED.inc(added)
    for name, number in removed.items():
        ROWS_REMOVED.labels(name).inc(number)
