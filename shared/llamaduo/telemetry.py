"""JSON logs and the metrics every service has; metric names live in this one module."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime

from prometheus_client import Counter, Gauge, Histogram

from llamaduo.masking import learn_environment, masked

JOBS = Counter("llamaduo_jobs_total", "Jobs by role and outcome", ["role", "outcome"])
JOB_SECONDS = Histogram(
    "llamaduo_job_seconds",
    "Seconds a handler took",
    ["role"],
    buckets=(0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400),
)
WORK_IN_HAND = Gauge("llamaduo_work_in_hand", "Jobs being worked on", ["role"])
CONSUMER_LAG = Gauge("llamaduo_consumer_lag", "Messages waiting for a role", ["role"])


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
