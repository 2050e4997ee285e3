"""What the gateway's benchmark makes of its requests."""

from __future__ import annotations

from benchmarks.gateway import after_the_cut
from benchmarks.gateway_caller import Asked


def asked(at: float, status: int = 200, served_by: str = "service", seconds: float = 0.1) -> Asked:
    return Asked(at=at, seconds=seconds, status=status, served_by=served_by)


def test_failures_count_as_after_the_opening_only_once_five_were_answered_locally() -> None:
    traffic = [asked(9.0), asked(10.1, 502, ""), *(asked(10.2 + n / 10, served_by="local") for n in range(5))]
    told = after_the_cut([*traffic, asked(10.65, 502, ""), asked(11.0, 502, ""), asked(30.5)], cut=10.0, back=30.0)
    assert told == {
        "requests": 10, "failed": 3, "failed_after_open": 1, "open_after_s": 0.7, "answered_locally": 5,
        "back_after_s": 0.5,
    }  # fmt: skip


def test_a_circuit_that_never_opened_and_a_service_that_never_came_back_are_told_as_such() -> None:
    told = after_the_cut([asked(9.0), asked(11.0, 502, "")], cut=10.0, back=20.0)
    assert told["failed_after_open"] is None and told["back_after_s"] is None and told["failed"] == 1
