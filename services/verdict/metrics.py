"""What the log says as a whole, as Prometheus sees it: migrations by stage, decisions, budgets, the log's own size.

All gauges: whoever reads the log from its start again, as each start does, comes to the same figures. Replicas of the
verdict say the same, so take the maximum over them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime

from prometheus_client import Gauge

from llamaduo.bus.connection import Bus
from llamaduo.bus.topology import DEAD_LETTERS, ENDS, EVENTS
from llamaduo.errors import PermanentError
from llamaduo.event_parts import CallCounts
from llamaduo.events import AnyEvent, EvalFailed, EvalPassed
from llamaduo.migrations.fold import MigrationView

STAGES = (
    "splitting", "synthesizing", "training", "marking", "measuring", "promoting", "confirming",
    "paused", "cancelling",
)  # fmt: skip
OUTCOMES = ("completed", "stopped", "cancelled")

MIGRATIONS = Gauge("llamaduo_migrations", "Migrations under way, by stage", ["stage"])
ENDED = Gauge("llamaduo_migrations_ended", "Migrations of the log that are over", ["outcome"])
DECIDED = Gauge("llamaduo_rounds_decided", "Rounds of the log that are decided", ["verdict"])
LAST_EVENT = Gauge("llamaduo_last_event_timestamp_seconds", "When the newest event was published, since the epoch")
BUDGET_USED = Gauge(
    "llamaduo_budget_used_ratio",
    "Share of its budget that the migration nearest to the end of one has used, as the log tells",
    ["what"],
)
LOG_MESSAGES = Gauge("llamaduo_log_messages", "Events in the log")
LOG_BYTES = Gauge("llamaduo_log_bytes", "Size of the log")
LOG_LIMIT = Gauge("llamaduo_log_limit_bytes", "Size at which the log refuses events; 0 for none")
DEAD = Gauge("llamaduo_dead_letters_waiting", "Dead letters that wait for somebody")


class LogFigures:
    """Counts the events of the log; each once, however often it is there."""

    def __init__(self) -> None:
        self._ended: dict[str, str] = {}
        self._decided: dict[tuple[str, int], str] = {}
        self._calls: dict[str, dict[str, CallCounts]] = {}

    def take(self, event: AnyEvent) -> None:
        """One more event."""
        LAST_EVENT.set(event.at.timestamp())
        if isinstance(event, ENDS):
            self._ended.setdefault(event.migration, event.type.removeprefix("migration."))
            self._calls.pop(event.migration, None)
        elif isinstance(event, EvalFailed | EvalPassed):
            self._decided.setdefault((event.migration, event.round), event.type.removeprefix("eval."))
        calls = getattr(event, "calls", None)
        if calls is not None and event.migration not in self._ended:
            self._calls.setdefault(event.migration, {})[event.id] = calls

    def show(self, under_way: Iterable[MigrationView], now: datetime) -> None:
        """Set all gauges that the log alone decides."""
        views = [view for view in under_way if _can_be_read(view)]
        stages = Counter(view.stage for view in views)
        for stage in STAGES:
            MIGRATIONS.labels(stage).set(stages[stage])
        for gauge, words, seen in (
            (ENDED, OUTCOMES, self._ended.values()),
            (DECIDED, ("passed", "failed"), self._decided.values()),
        ):
            counts = Counter(seen)
            for word in words:
                gauge.labels(word).set(counts[word])
        used = {"money": 0.0, "calls": 0.0, "tokens": 0.0, "hours": 0.0}
        for view in views:
            for what, share in self._used(view, now).items():
                used[what] = max(used[what], share)
        for what, share in used.items():
            BUDGET_USED.labels(what).set(share)

    def _used(self, view: MigrationView, now: datetime) -> dict[str, float]:
        if view.request is None or view.spec is None:
            return {}
        budgets = view.spec.budgets
        calls = sum(self._calls.get(view.migration, {}).values(), CallCounts())
        spent: list[tuple[str, float, float | None]] = [
            ("money", calls.money, budgets.money),
            ("calls", calls.made, budgets.calls),
            ("tokens", calls.input_tokens + calls.output_tokens, budgets.tokens),
            ("hours", (now - view.request.at).total_seconds() / 3600, budgets.hours),
        ]
        return {what: share / limit for what, share, limit in spent if limit}


def _can_be_read(view: MigrationView) -> bool:
    """Whether this version can read the spec; one that it cannot is about to be stopped."""
    try:
        return view.spec is not None or view.request is None
    except PermanentError:
        return False


async def look_at_streams(bus: Bus) -> None:
    """Measure the log and the dead letters. RetryableError when the bus stays away."""
    log = await bus.stream_size(EVENTS)
    LOG_MESSAGES.set(log.messages)
    LOG_BYTES.set(log.size)
    LOG_LIMIT.set(log.limit)
    DEAD.set((await bus.stream_size(DEAD_LETTERS)).messages)
