"""The one exception tree of LlamaDuo.

LlamaDuoError
├── UserInputError        what a person gave us is wrong: file, line, field, hint (exit code 2)
├── PermanentError        trying again cannot help: the message goes to the dead letters
│   ├── BadEvent          a message that is no event of ours
│   ├── ArtifactCorrupt   bytes that do not have the digest they were asked by
│   ├── AdapterRejected   an adapter that must not be served, and why
│   └── ServiceLLMRefused the provider will not answer this, ever (key, quota, refusal)
├── RetryableError        try again after `delay` seconds
│   ├── Busy              somebody else holds the lease of this job
│   └── NotYet            something this work needs has not arrived yet
│       ├── ProviderDown  the service LLM's provider answers nobody
│       └── BusFull       the bus takes nothing more: its log, its server or its disk is full
├── BudgetExhausted       the door refused to pay: a named stop, neither retried nor a dead letter
└── LeaseLost             another process owns this job now: stop, touch nothing
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamaduo.masking import masked

if TYPE_CHECKING:
    from llamaduo.event_parts import CallCounts


class LlamaDuoError(Exception):
    """Root of all errors that LlamaDuo raises on purpose.

    `calls` is what the work that ended so had bought: it has no result to say it.
    """

    calls: CallCounts | None = None


class UserInputError(LlamaDuoError):
    """Something a person wrote is wrong; names where and, where known, what was meant.

    `file`, `line` (1-based) and `field` (dotted key) are None where they do not apply.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        field: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.file, self.line, self.field, self.hint = message, file, line, field, hint
        where = ":".join(str(part) for part in (file, line) if part is not None)
        text = f"{where}: " if where else ""
        text += f"{field}: " if field else ""
        text += message
        text += f" ({hint})" if hint else ""
        super().__init__(text)


class PermanentError(LlamaDuoError):
    """Trying again cannot help."""


class BadEvent(PermanentError):
    """A message that is not an event of this contract."""


class ArtifactCorrupt(PermanentError):
    """The bytes found under a reference do not have its digest or size."""


class AdapterRejected(PermanentError):
    """This adapter must not be served; the message says why."""


class ServiceLLMRefused(PermanentError):
    """The provider will not answer this call however often it is tried (key, quota, refusal, bad request)."""


class RetryableError(LlamaDuoError):
    """Try again after `delay` seconds."""

    def __init__(self, message: str, delay: float = 5.0) -> None:
        super().__init__(message)
        self.delay = delay


class Busy(RetryableError):
    """Another process holds this job's lease; `delay` is what is left of it."""


class NotYet(RetryableError):
    """Something this work waits for has not arrived yet; not counted as a failed try."""


class ProviderDown(NotYet):
    """The service LLM's provider fails or is away, for everybody: `delay` until it is tried again.

    No fault of the job, so not one of its tries.
    """


class BusFull(NotYet):
    """The bus takes nothing more until somebody makes room; the message says what is full and what to do.

    No fault of the job, so not one of its tries.
    """


class BudgetExhausted(LlamaDuoError):
    """A budget's door refused: `what` (money, calls, tokens), the `limit` and what is `spent` or reserved."""

    def __init__(self, what: str, limit: float, spent: float) -> None:
        super().__init__(f"budget exhausted: {what} limit {limit:g}, spent or reserved {spent:g}")
        self.what, self.limit, self.spent = what, limit, spent


class LeaseLost(LlamaDuoError):
    """Another process owns this job now: stop the work, publish nothing, settle nothing."""


def describe(error: BaseException) -> str:
    """An error as one line: its kind and text, without the secrets that this process knows."""
    text = masked(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
