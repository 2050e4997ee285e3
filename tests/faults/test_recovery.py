"""Recovery is the time the victim needs, not the time it has nothing to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.faults.checker import MARK
from tests.faults.evidence import Evidence, Message
from tests.faults.recovery import percentile, seconds_to_recover
from tests.faults.schedule import Fault

KILLED = Fault(1.0, "kill", "trainer", 0.1)


def logged(*events: tuple[float, str, str], results: dict[str, list[str]] | None = None, **headers: str) -> Evidence:
    """A log of (time, id, source), and jobs with the ids of their results."""
    found = Evidence()
    for seq, (at, id_, source) in enumerate(events, start=1):
        found.log.append(Message(seq, "x", dict(headers), {"id": id_, "source": source}, at))
    work: dict[str, Any] = {
        f"role.{job}": {"state": "done", "results": [json.dumps({"id": one}) for one in ids]}
        for job, ids in (results or {}).items()
    }
    found.buckets["work"] = work
    return found


def test_it_runs_from_the_end_of_the_fault_to_the_victims_next_event() -> None:
    found = logged(
        (1, "job", "a/a"), (11, "other", "j/judge"), (14, "mine", "trainer/trainer"), results={"job": ["mine"]}
    )
    assert seconds_to_recover(found, KILLED, 10.0) == 4.0


def test_a_second_replica_counts_as_the_victim() -> None:
    found = logged((1, "job", "a/a"), (12, "mine", "trainer/trainer/2"), results={"job": ["mine"]})
    assert seconds_to_recover(found, KILLED, 10.0) == 2.0


def test_time_without_work_is_not_counted() -> None:
    found = logged((30, "job", "a/a"), (31.5, "mine", "trainer/trainer"), results={"job": ["mine"]})
    assert seconds_to_recover(found, KILLED, 10.0) == 1.5


def test_what_is_no_jobs_result_runs_from_the_first_event_that_was_not_answered() -> None:
    verdict = Fault(1.0, "kill", "verdict", 0.1)
    late = logged(
        (9, "a", "verdict/verdict"), (12, "b", "x/judge"), (15, "c", "x/judge"), (15.5, "d", "verdict/verdict")
    )
    assert seconds_to_recover(late, verdict, 10.0) == 3.5
    early = logged((9, "b", "x/judge"), (15, "c", "x/judge"), (15.5, "d", "verdict/verdict"))
    assert seconds_to_recover(early, verdict, 10.0) == 5.5


def test_after_a_fault_of_the_server_anybodys_event_counts_but_the_harness_s_own() -> None:
    server = Fault(1.0, "server-kill", "nats", 0.1)
    found = logged((9, "a", "x/judge"), (13, "b", "x/judge"))
    found.log.insert(1, Message(9, "x", {MARK: "duplicate"}, {"id": "a", "source": "x/judge"}, 11.0))
    assert seconds_to_recover(found, server, 10.0) == 3.0


def test_a_victim_with_nothing_more_to_say_has_no_recovery() -> None:
    assert seconds_to_recover(logged((9, "a", "trainer/trainer")), KILLED, 10.0) is None


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 50 and percentile(values, 0.99) == 99 and percentile([3.0], 0.99) == 3
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
