"""The emulator's own count of what it was asked and what it answered, to hold against a client's bookkeeping.

A request *arrives* when it has passed the checks of key, body and model. It is *completed*, and would be
billed, when its 200 is made; that is written down before the first byte is sent, whoever still listens.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType

from pydantic import BaseModel, Field, ValidationError

BATCH_PRICE = 0.5
"""Of a token in a batch, by that of one asked online."""


class _Line(BaseModel):
    """One line of the ledger's file; `status` is None for an arrival."""

    key: str | None
    status: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    fault: str = ""
    batched: bool = False


class KeyCount(BaseModel):
    """How often requests with one idempotency key arrived, and how often they were completed."""

    arrived: int = 0
    completed: int = 0


class Totals(BaseModel):
    """Sums over all requests, with and without a key; `refused_429` and `failed_500` count such answers, `spoiled`
    the completed ones that a fault has changed, by fault. `batched` are the completed ones that were asked in a
    batch; `billed_tokens` are all tokens, in and out, those of batches by half.
    """

    arrived: int = 0
    completed: int = 0
    refused_429: int = 0
    failed_500: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    batched: int = 0
    billed_tokens: float = 0.0
    spoiled: dict[str, int] = Field(default_factory=dict)


class LedgerView(BaseModel):
    """What `GET /emulator/ledger` answers."""

    keys: dict[str, KeyCount]
    without_key: KeyCount
    totals: Totals


class Ledger:
    """Counts in memory and, where a file is given, line by line in it, so that a restart forgets nothing.

    A last line torn by a kill is dropped. Raises ValueError for a file that is no ledger.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._keys: dict[str, KeyCount] = {}
        self._without_key = KeyCount()
        self._unkeyed: Counter[str] = Counter()
        self._totals = Totals()
        self._file = None
        if path is not None:
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            for number, line in enumerate(whole.splitlines(), start=1):
                try:
                    self._count(_Line.model_validate_json(line))
                except ValidationError as error:
                    raise ValueError(f"{path}:{number}: not a line of an emulator ledger") from error
            # Unbuffered: a line has left this process, and so outlives its kill, before the answer is sent.
            self._file = path.open("ab", buffering=0)
            self._file.truncate(len(whole))

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def arrive(self, key: str | None, caller: str) -> int:
        """Notes an arrival; returns how many this caller (key, or body without one) has made so far."""
        self._write(_Line(key=key))
        if key is not None:
            return self._keys[key].arrived
        self._unkeyed[caller] += 1
        return self._unkeyed[caller]

    def settle(
        self,
        key: str | None,
        status: int,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        fault: str = "",
        *,
        batched: bool = False,
    ) -> None:
        """Notes how a request that arrived was answered; tokens, and a fault that spoiled it, only with a 200."""
        tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        self._write(_Line(key=key, status=status, fault=fault, batched=batched, **tokens))

    def reset(self) -> None:
        """Forgets everything, in the file too."""
        self._keys.clear()
        self._unkeyed.clear()
        self._without_key, self._totals = KeyCount(), Totals()
        if self._file is not None:
            self._file.truncate(0)

    def view(self) -> LedgerView:
        """The counts as they are now."""
        return LedgerView(keys=self._keys, without_key=self._without_key, totals=self._totals)

    def _write(self, line: _Line) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line.model_dump(exclude_defaults=True) | {"key": line.key}).encode() + b"\n")
        self._count(line)

    def _count(self, line: _Line) -> None:
        count = self._without_key if line.key is None else self._keys.setdefault(line.key, KeyCount())
        if line.status is None:
            count.arrived += 1
            self._totals.arrived += 1
        elif line.status == 200:
            count.completed += 1
            self._totals.completed += 1
            self._totals.prompt_tokens += line.prompt_tokens
            self._totals.completion_tokens += line.completion_tokens
            self._totals.batched += line.batched
            tokens = line.prompt_tokens + line.completion_tokens
            self._totals.billed_tokens += tokens * (BATCH_PRICE if line.batched else 1.0)
            if line.fault:
                self._totals.spoiled[line.fault] = self._totals.spoiled.get(line.fault, 0) + 1
        elif line.status == 429:
            self._totals.refused_429 += 1
        else:
            self._totals.failed_500 += 1
