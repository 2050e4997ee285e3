"""JSON logs, and the metrics that several services have. A service's own are in its `metrics.py`.

Names follow Prometheus: `llamaduo_<what>_<unit>`, base units, `_total` for counters. Labels have few values: roles,
outcomes, evaluators, metrics, models; never a migration, row or adapter. What is in the log for good (decisions,
migrations that ended) is a gauge, since a restarted process reads all of it again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from prometheus_client import Counter, Gauge, Histogram, Summary

from llamaduo.masking import learn_environment, masked

JOBS = Counter("llamaduo_jobs_total", "Jobs by role and outcome", ["role", "outcome"])
JOB_SECONDS = Histogram(
    "llamaduo_job_seconds",
    "Seconds a handler took",
    ["role"],
    buckets=(0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400),
)
WORK_IN_HAND = Gauge("llamaduo_work_in_hand", "Jobs being worked on", ["role"])
CONSUMER_LAG = Gauge(
    "llamaduo_consumer_lag", "Messages that nobody has been given yet; the same for all replicas of a role", ["role"]
)
CONSUMER_UNSETTLED = Gauge(
    "llamaduo_consumer_unsettled", "Messages given out and not settled; the same for all replicas of a role", ["role"]
)
DEAD_LETTERS = Counter("llamaduo_dead_letters_total", "Messages that this process gave up", ["role"])
BUS_CONNECTED = Gauge("llamaduo_bus_connected", "1 while this process is connected to the bus")
DISK_FREE = Gauge("llamaduo_disk_free_bytes", "Free space where this service's state folder is")
DISK_SIZE = Gauge("llamaduo_disk_size_bytes", "Size of the disk where this service's state folder is")

MARKS = Summary("llamaduo_mark", "Marks given, with their sum", ["evaluator", "metric"])
ABSTAINED = Counter("llamaduo_marks_abstained_total", "Answers that were left unmarked", ["evaluator", "metric"])
SHARDS_MARKED = Counter(
    "llamaduo_shards_marked_total", "Shards marked, or skipped as nobody needs them", ["evaluator", "outcome"]
)

_SUBJECT: ContextVar[Mapping[str, str]] = ContextVar("subject", default=MappingProxyType({}))


@contextlib.contextmanager
def log_lines_about(**subject: str) -> Iterator[None]:
    """Every line written inside has these fields, those of tasks and threads that are started inside, too."""
    token = _SUBJECT.set({**_SUBJECT.get(), **subject})
    try:
        yield
    finally:
        _SUBJECT.reset(token)


class JsonLines(logging.Formatter):
    """One JSON object a line, without the secrets that this process knows."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            **_SUBJECT.get(),
            "message": masked(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = masked(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(service: str, level: str) -> None:
    """JSON lines on stderr. What this process's environment says to be secret is in none of them."""
    learn_environment(os.environ)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("nats", "aiohttp.access", "httpx", "httpx2", "httpcore", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def note_marks(evaluator: str, marks: Iterable[tuple[str, float | None]]) -> None:
    """Count a shard's marks: (metric, value, or None where it abstained)."""
    SHARDS_MARKED.labels(evaluator, "marked").inc()
    for metric, value in marks:
        ABSTAINED.labels(evaluator, metric).inc(value is None)
        if value is not None:
            MARKS.labels(evaluator, metric).observe(value)


def begin_counting(role: str) -> None:
    """Say 0 of a role from the start: of what is not said at all, an alert cannot tell that it is missing."""
    WORK_IN_HAND.labels(role).set(0)
    DEAD_LETTERS.labels(role).inc(0)


def note_disk(folder: Path) -> None:
    """Measure the disk that `folder` is on, or will be on."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    usage = shutil.disk_usage(there)
    DISK_FREE.set(usage.free)
    DISK_SIZE.set(usage.total)
