"""What the jobs in hand have bought so far, for an event that says so where a job comes to no result."""

from __future__ import annotations

from llamaduo.event_parts import CallCounts
from llamaduo.service_llm.answers import outcome_of
from llamaduo.service_llm.call import Call
from llamaduo.service_llm.ledger import LedgerEntry
from llamaduo.service_llm.summary import count_calls


class Tally:
    """Counts of calls by job. A job is opened by its first call, and closed by whoever takes its counts.

    A call counts for the job that bought it, whoever waits for its answer, and once, however often it is noted.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, dict[str, CallCounts]] = {}

    def open(self, job: str) -> None:
        """Count for this job from now on."""
        self._jobs.setdefault(job, {})

    def note(self, call: Call, entry: LedgerEntry) -> None:
        """An answer was found or written down. One that another job bought, or nobody counts for, is left out."""
        counts = self._jobs.get(call.job)
        if counts is not None and entry.answer is not None and entry.answer.job == call.job:
            counts[call.key] = count_calls([outcome_of(call, entry)])

    def take(self, job: str) -> CallCounts:
        """What the job has bought, which is forgotten with this."""
        return sum(self._jobs.pop(job, {}).values(), CallCounts())
