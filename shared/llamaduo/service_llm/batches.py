"""Buying the calls of one piece of work in batches: answered within hours instead of seconds, and cheaper.

Each call is held and written down as intended as one that is asked online is, and its answer is kept under the same
key; then whoever asks finds it in the ledger. What a batch does not bring, because it failed or came too late, is
left to be asked online.

Where a batch stands is in the ledger's bucket, too: which calls are in it before it is sent, its id before it is
waited for. A process that takes the work over goes on with it, and looks for its tag at the provider where a kill
came between sending it and writing down its id.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from pydantic import BaseModel, Field

from llamaduo.bus.kv import KeyValue
from llamaduo.errors import BudgetExhausted, LlamaDuoError, ProviderDown, RetryableError, ServiceLLMRefused
from llamaduo.identity import content_digest
from llamaduo.migrations.spec import Budgets, ServiceLLM
from llamaduo.service_llm import prices
from llamaduo.service_llm.books import Books
from llamaduo.service_llm.budget import Amount, BudgetHeld
from llamaduo.service_llm.call import Call
from llamaduo.service_llm.cas import change, read
from llamaduo.service_llm.clock import Clock
from llamaduo.service_llm.open_batches import OpenBatch, OpenBatches
from llamaduo.service_llm.sending import Reply, SendFailed
from llamaduo.service_llm.sending_batches import BatchLook, SendBatches

Tell = Callable[[Call, BatchLook, str], Awaitable[None]]
"""Says how far the batch of that id, of which this call is one, is."""

FIRST_LOOK_S, LONGEST_LOOK_S = 1.0, 60.0
CANCELLING_S = 900.0
"""How long a batch that was cancelled may take to end before it is left behind."""
LEAVING_S = 12.0
"""How long to wait for that where the migration has ended."""
FULL_S = 300.0
"""When to try again where too much waits at the provider already."""
MAX_TRIES = 6

_PREFIX = "batch."
_AT_ONCE = 16
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 60.0


class BatchRecord(BaseModel):
    """The batches of one piece of work. `attempts`, by call key, `began` and the provider's id `batch` are of the one
    under way, or the last one; `asked` lists the calls of those that have ended."""

    number: int = 0
    open: bool = False
    attempts: dict[str, str] = Field(default_factory=dict)
    began: float = 0.0
    batch: str = ""
    asked: list[str] = Field(default_factory=list)


class Batches:
    """Buys in batches for one process. `ended` says whether a migration is over: its batches are then cancelled."""

    def __init__(
        self,
        kv: KeyValue,
        books: Books,
        send: SendBatches,
        clock: Clock,
        replica: str,
        *,
        ended: Callable[[str], bool],
        tell: Tell | None,
    ) -> None:
        self.kv, self.books, self.send, self.clock, self.replica = kv, books, send, clock, replica
        self.ended, self.tell = ended, tell
        self.open = OpenBatches(kv, clock)

    async def buy(self, calls: Sequence[Call], budgets: Budgets) -> None:
        """Have these calls answered in the ledger, as far as batches bring it. All are of one job.

        A call whose price a budget does not allow is passed over. ServiceLLMRefused: the provider takes no such
        batch. RetryableError: not now.
        """
        groups: dict[ServiceLLM, dict[str, Call]] = {}
        for call in calls:
            groups.setdefault(call.llm, {})[call.key] = call
        for group in groups.values():
            await _Buying(self, group, budgets).buy()

    async def cancel_left(self) -> None:
        """Cancel batches of migrations that ended while nobody had their work in hand.

        Their calls may have been paid and stay held. They are closed, so that no other work waits for them.
        """
        for tag in await self.open.cancel_left(self.send, self.ended):
            stored = await read(self.kv, _PREFIX + tag.rpartition("-")[0], self.clock)
            record = BatchRecord() if stored is None else BatchRecord.model_validate_json(stored.value)
            for key, attempt in record.attempts.items():
                await self.books.ledger.closed(key, attempt, "unknown", "the migration ended while it was in a batch")
                self.books.ledger.forget(key)

    async def close(self) -> None:
        """Close connections."""
        await self.send.close()


class _Buying:
    """The calls of one job to one service LLM, by key."""

    def __init__(self, all_: Batches, calls: Mapping[str, Call], budgets: Budgets) -> None:
        self._kv, self._books, self._send, self._clock = all_.kv, all_.books, all_.send, all_.clock
        self._all, self._calls, self._budgets = all_, calls, budgets
        self._first = next(iter(calls.values()))
        self._llm = self._first.llm
        self._name = content_digest([self._first.migration, self._first.job, self._llm.model, sorted(calls)])[:32]
        # The same for every process that has this work: what one has begun the next one owns.
        self._owner = f"batch-{self._name}"
        self._record = BatchRecord()

    @property
    def _tag(self) -> str:
        return f"{self._name}-{self._record.number}"

    async def buy(self) -> None:
        stored = await read(self._kv, _PREFIX + self._name, self._clock)
        self._record = BatchRecord() if stored is None else BatchRecord.model_validate_json(stored.value)
        taken_over, patience, look = self._record.open, 0.0, FIRST_LOOK_S
        try:
            while True:
                if not self._record.open:
                    attempts, held = await self._intend()
                    if not attempts:
                        patience = patience or self._clock.now() + self._llm.timeout_s + self._llm.batch_wait_s
                        if not held or self._clock.now() >= patience:
                            return
                        await self._clock.sleep(look)
                        look = min(2 * look, LONGEST_LOOK_S)
                        continue
                    number, began = self._record.number + 1, self._clock.now()
                    await self._all.open.add(
                        f"{self._name}-{number}",
                        OpenBatch(migration=self._first.migration, llm=self._llm, began=began),
                    )
                    await self._save(open=True, number=number, attempts=attempts, began=began, batch="")
                await self._carry_out(taken_over)
                taken_over = False
        finally:
            for key in self._calls:
                self._books.ledger.forget(key)

    async def _intend(self) -> tuple[dict[str, str], bool]:
        """Hold and write down an attempt for each call that is to be bought: their ids by call key, and whether there
        are more that other holds leave no room for."""
        attempts: dict[str, str] = {}
        held = False

        async def one(key: str) -> None:
            nonlocal held
            try:
                attempt = await self._attempt(self._calls[key])
            except BudgetHeld:
                held = True
            except BudgetExhausted:
                pass
            else:
                if attempt is not None:
                    attempts[key] = attempt

        asked = set(self._record.asked)
        await _each((key for key in self._calls if key not in asked), one)
        return {key: attempts[key] for key in self._calls if key in attempts}, held

    async def _attempt(self, call: Call) -> str | None:
        books = self._books
        entry = await books.ledger.entry(call.key)
        if entry.answer is not None:
            await books.settle_after_kill(call, self._budgets, entry)
            return None
        mine = [one.id for one in entry.attempts if one.owner == self._owner and one.outcome == "open"]
        if mine:  # a kill came before the batch was written down
            return mine[-1]
        # Under this process's name there are others' attempts that live: those asked online, and those in batches.
        if entry.rival(call.job, self._owner, "", self._clock.now()) is not None:
            return None
        attempt = entry.next_id(call)
        await books.door.hold(call.migration, self._budgets, attempt, prices.largest(call, batched=True))
        begun = await books.ledger.begin(
            call, attempt, self._owner, f"{self._all.replica} (batch)", self._llm.batch_wait_s + CANCELLING_S
        )
        if begun is None and (await books.ledger.entry(call.key)).attempt(attempt) is None:
            await books.door.settle(call.migration, self._budgets, [attempt], Amount())
        return None if begun is None else attempt

    async def _carry_out(self, taken_over: bool) -> None:
        try:
            if not self._record.batch:
                await self._start(taken_over)
            if self._record.open:
                look = await self._wait()
                await self._collect(look)
        except asyncio.CancelledError:
            if self._all.ended(self._first.migration):
                await self._call_off()
            raise

    async def _start(self, taken_over: bool) -> None:
        """Send the batch and write its id down. RetryableError, with all left as it is, where that does not work."""
        failures, may_be_sent = 0, taken_over
        calls = [self._calls[key] for key in self._record.attempts]
        while True:
            try:
                batch = await self._send.find(self._llm, self._tag, self._record.began) if may_be_sent else None
                may_be_sent = False
                batch = batch or await self._send.start(self._llm, self._tag, calls)
                break
            except LlamaDuoError as error:
                if not may_be_sent:
                    await self._drop(str(error))
                raise
            except SendFailed as failure:
                if failure.kind == "refused":
                    if not may_be_sent:
                        await self._drop(str(failure))
                    raise ServiceLLMRefused(f"{self._llm.model}: {failure}") from failure
                failures, may_be_sent = failures + 1, True
                await self._wait_after(failure, failures)
        await self._save(batch=batch)
        if self._record.batch != batch:  # this process had been stopped, and another one sent it meanwhile
            with contextlib.suppress(SendFailed):
                await self._send.cancel(self._llm, batch)

    async def _wait(self) -> BatchLook:
        """Look again and again until it has ended; cancels it once it takes too long."""
        look_again, give_up = FIRST_LOOK_S, self._record.began + self._llm.batch_wait_s
        while True:
            look = await self._look()
            if look is not None and look.ended:
                return look
            now = self._clock.now()
            if now >= give_up + CANCELLING_S:
                return BatchLook("left behind", ended=False, done=0, failed=0, total=0)
            if now >= give_up and (look is None or look.status != "cancelling"):
                with contextlib.suppress(SendFailed):
                    await self._send.cancel(self._llm, self._record.batch)
                look_again = FIRST_LOOK_S
            await self._clock.sleep(look_again)
            look_again = min(1.5 * look_again, LONGEST_LOOK_S)

    async def _look(self) -> BatchLook | None:
        """How far it is, told to who watches; None where the provider does not answer now."""
        try:
            look = await self._send.look(self._llm, self._record.batch)
        except SendFailed as failure:
            if failure.kind == "refused":
                raise ServiceLLMRefused(f"{self._llm.model}: batch {self._record.batch}: {failure}") from failure
            return None
        if self._all.tell is not None:
            await self._all.tell(self._first, look, self._record.batch)
        return look

    async def _collect(self, look: BatchLook) -> None:
        """Keep what came of each call, and close the batch."""
        if look.rejected:
            await self._drop(look.rejected)
            if look.full:
                raise ProviderDown(f"{self._llm.model}: {look.rejected}", delay=FULL_S)
            raise ServiceLLMRefused(f"{self._llm.model} took none of a batch: {look.rejected}")
        calls = {key: self._calls[key] for key in self._record.attempts}
        replies = await self._replies(calls) if look.ended and not look.lost else {}
        # What an ended batch did not do is not paid; of one that is gone nobody knows.
        missing = SendFailed(
            "failed" if look.ended and not look.lost else "unknown", f"not in its batch: {look.status}"
        )

        async def one(key: str) -> None:
            call, attempt, reply = calls[key], self._record.attempts[key], replies.get(key, missing)
            if isinstance(reply, SendFailed):
                await self._books.no_answer(call, self._budgets, attempt, reply)
                return
            with contextlib.suppress(ServiceLLMRefused):
                await self._books.keep(call, self._budgets, attempt, reply, self._record.began, batched=True)

        await _each(calls, one)
        await self._close(asked=[*self._record.asked, *calls])

    async def _replies(self, calls: Mapping[str, Call]) -> Mapping[str, Reply | SendFailed]:
        failures = 0
        while True:
            try:
                return await self._send.replies(self._llm, self._record.batch, calls)
            except SendFailed as failure:
                if failure.kind == "refused":
                    raise ServiceLLMRefused(f"{self._llm.model}: {failure}") from failure
                failures += 1
                await self._wait_after(failure, failures)

    async def _drop(self, why: str) -> None:
        """Nothing of this batch was done: give its holds back. Its calls may be in another one."""

        async def one(key: str) -> None:
            failure = SendFailed("failed", f"in a batch: {why}")
            await self._books.no_answer(self._calls[key], self._budgets, self._record.attempts[key], failure)

        await _each(self._record.attempts, one)
        await self._close()

    async def _close(self, **changes: object) -> None:
        await self._all.open.remove(self._tag)
        await self._save(open=False, **changes)

    async def _call_off(self) -> None:
        """The migration is over: have the batch cancelled, and keep what it has done, if that is known soon."""
        with contextlib.suppress(LlamaDuoError, SendFailed, TimeoutError):
            async with asyncio.timeout(LEAVING_S):
                if not self._record.open:
                    return
                if not self._record.batch:
                    found = await self._send.find(self._llm, self._tag, self._record.began)
                    if found is None:
                        return
                    await self._save(batch=found)
                await self._send.cancel(self._llm, self._record.batch)
                while (look := await self._look()) is None or not look.ended:
                    await self._clock.sleep(FIRST_LOOK_S)
                await self._collect(look)

    async def _wait_after(self, failure: SendFailed, failures: int) -> None:
        wait = min(_FIRST_BACKOFF_S * 2**failures, _LONGEST_BACKOFF_S)
        wait = max(wait, failure.retry_after or 0.0)
        if failures >= MAX_TRIES or wait > _LONGEST_BACKOFF_S:
            raise RetryableError(f"{self._llm.model}: tried {failures} times, last: {failure}", delay=wait)
        await self._clock.sleep(wait)

    async def _save(self, **changes: object) -> None:
        """Write the record down, unless another process has gone on with this work: then take over what it wrote."""
        wanted = self._record.model_copy(update=changes)

        def step(value: bytes | None) -> tuple[bytes | None, BatchRecord]:
            there = BatchRecord() if value is None else BatchRecord.model_validate_json(value)
            others = there.number == wanted.number and bool(there.batch) and there.batch != wanted.batch
            if there.number > wanted.number or others:
                return None, there
            return wanted.model_dump_json(exclude_defaults=True).encode(), wanted

        self._record = await change(self._kv, _PREFIX + self._name, step, self._clock)


async def _each(keys: Iterable[str], step: Callable[[str], Awaitable[None]]) -> None:
    """Do it for each, some at once; the first error ends all."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(key: str) -> None:
        async with room:
            await step(key)

    try:
        async with asyncio.TaskGroup() as group:
            for key in keys:
                group.create_task(one(key))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
