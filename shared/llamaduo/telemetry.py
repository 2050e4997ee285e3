"""JSON logs and the metrics every service has; metric names live in this one module."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from prometheus_client import Counter, Gauge, Histogram

JOBS = Counter("llamaduo_jobs_total", "Jobs by role and outcome", ["role", "outcome"])
JOB_SECONDS = Histogram(
    "llamaduo_job_seconds",
    "Seconds a handler took",
    ["role"],
    buckets=(0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400),
)
WORK_IN_HAND = Gauge("llamaduo_work_in_hand", "Jobs being worked on", ["role"])
CONSUMER_LAG = Gauge("llamaduo_consumer_lag", "Messages waiting for a role", ["role"])
GATEWAY_REQUESTS = Counter(
    "llamaduo_gateway_requests_total", "Answers to applications", ["alias", "served_by", "status"]
)
GATEWAY_FAIL_OVERS = Counter(
    "llamaduo_gateway_fail_overs_total", "Answers of another one than was to answer first", ["alias", "served_by"]
)
GATEWAY_CIRCUIT = Gauge("llamaduo_gateway_circuit_open", "1 while a service LLM is left alone", ["upstream"])
GATEWAY_CAPTURED = Counter(
    "llamaduo_gateway_captured_total", "Answers to be captured, by what became of them", ["alias", "outcome"]
)
GATEWAY_SPOOL = Gauge("llamaduo_gateway_spool_bytes", "Captured rows on disk that wait for the bus")


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(service: str, level: str) -> None:
    """JSON lines on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("nats", "aiohttp.access", "httpx", "httpx2", "httpcore", "openai"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
