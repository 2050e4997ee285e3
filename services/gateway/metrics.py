"""What the gateway counts."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

REQUESTS = Counter("llamaduo_gateway_requests_total", "Answers to applications", ["alias", "served_by", "status"])
FAIL_OVERS = Counter(
    "llamaduo_gateway_fail_overs_total", "Answers of another one than was to answer first", ["alias", "served_by"]
)
CIRCUIT = Gauge("llamaduo_gateway_circuit_open", "1 while a service LLM is left alone", ["upstream"])
CAPTURED = Counter(
    "llamaduo_gateway_captured_total", "Answers to be captured, by what became of them", ["alias", "outcome"]
)
SPOOL = Gauge("llamaduo_gateway_spool_bytes", "Captured rows on disk that wait for the bus")
