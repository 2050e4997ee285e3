"""What operators ask for, and what became of work that has no result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llamaduo.event_parts import CallCounts
from llamaduo.events.base import Event


class Command(Event):
    """Something an operator asked for; its id is made once by the caller and reused on retry."""

    command: str = Field(min_length=8)
    by: str = ""
    why: str = ""

    def job_key(self) -> tuple[str | int, ...]:
        return (self.command,)


class PauseRequested(Command):
    """Take up no new work of this migration."""

    type: Literal["migration.pause_requested"] = "migration.pause_requested"


class ResumeRequested(Command):
    """Go on with a paused migration."""

    type: Literal["migration.resume_requested"] = "migration.resume_requested"


class CancelRequested(Command):
    """End this migration now."""

    type: Literal["migration.cancel_requested"] = "migration.cancel_requested"


class PromoteRequested(Command):
    """Serve the adapter of a round under the migration's alias."""

    type: Literal["adapter.promote_requested"] = "adapter.promote_requested"
    round: int = Field(ge=0)


class RollbackRequested(Command):
    """Serve what the alias meant before."""

    type: Literal["adapter.rollback_requested"] = "adapter.rollback_requested"
    round: int = Field(ge=0)


class BudgetRefused(Event):
    """A budget's door refused a call."""

    type: Literal["budget.exhausted"] = "budget.exhausted"
    what: Literal["money", "calls", "tokens"]
    limit: float
    spent: float
    job: str = Field(description="id of the event whose work was refused")
    calls: CallCounts = Field(CallCounts(), description="what that work had bought before")

    def job_key(self) -> tuple[str | int, ...]:
        return (self.what, self.job)


class WorkFailed(Event):
    """A message went to the dead letters."""

    type: Literal["work.failed"] = "work.failed"
    consumer: str
    subject: str
    job: str = Field(description="id of the event that could not be worked on")
    error: str
    attempts: int
    dead_letter: str = Field("", description="id of the dead letter, for `llamaduo dlq`")
    calls: CallCounts = Field(CallCounts(), description="what that work had bought")

    def job_key(self) -> tuple[str | int, ...]:
        return (self.consumer, self.job, self.dead_letter)

    def speaker(self) -> str | None:
        return self.consumer


class WorkWithdrawn(Event):
    """Work in hand was stopped, for its migration was cancelled or had ended; only where it had bought something."""

    type: Literal["work.withdrawn"] = "work.withdrawn"
    consumer: str
    job: str = Field(description="id of the event whose work was stopped")
    calls: CallCounts = Field(description="what that work had bought")

    def job_key(self) -> tuple[str | int, ...]:
        return (self.consumer, self.job)

    def speaker(self) -> str | None:
        return self.consumer
