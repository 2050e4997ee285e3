"""What ledger and budget learn once a call was sent: its answer, or that there is none; the hold is settled."""

from __future__ import annotations

from llamaduo.errors import ServiceLLMRefused
from llamaduo.migrations.spec import Budgets
from llamaduo.service_llm import metrics, prices
from llamaduo.service_llm.budget import Amount, Door
from llamaduo.service_llm.call import Call
from llamaduo.service_llm.clock import Clock
from llamaduo.service_llm.ledger import Bought, Ledger, LedgerEntry
from llamaduo.service_llm.sending import Reply, SendFailed
from llamaduo.service_llm.tally import Tally


class Books:
    """Ledger and budget together; all that is written here may be written again after a kill."""

    def __init__(self, ledger: Ledger, door: Door, clock: Clock, tally: Tally) -> None:
        self.ledger, self.door = ledger, door
        self._clock, self._tally = clock, tally

    async def keep(
        self, call: Call, budgets: Budgets, attempt: str, reply: Reply, began: float, *, batched: bool = False
    ) -> LedgerEntry:
        """Write an answer down and settle its price; the entry.

        ServiceLLMRefused, settled all the same, where it is too large to keep.
        """
        bought = Bought(
            attempt=attempt,
            migration=call.migration,
            job=call.job,
            text=reply.text,
            finish_reason=reply.finish_reason,
            input_tokens=reply.input_tokens,
            output_tokens=reply.output_tokens,
            money=prices.money(call.llm, reply.input_tokens, reply.output_tokens, batched=batched) or 0.0,
            began=began,
            ended=self._clock.now(),
            batched=batched,
        )
        try:
            entry = await self.ledger.answered(call.key, bought)
        except ServiceLLMRefused as error:
            entry = await self.ledger.closed(call.key, attempt, "failed", str(error))
            await self._settle(call, budgets, entry, attempt, bought)
            raise
        metrics.note_answer(call.llm, reply, bought.money, None if batched else bought.ended - began)
        self._tally.note(call, entry)
        await self._settle(call, budgets, entry, attempt, bought)
        return entry

    async def no_answer(self, call: Call, budgets: Budgets, attempt: str, failure: SendFailed) -> None:
        """Close the attempt. What may have been paid stays held; what was not is given back."""
        metrics.note_failure(call.llm, failure.kind)
        paid = failure.kind == "unknown"
        await self.ledger.closed(
            call.key, attempt, "unknown" if paid else "failed", str(failure), limited=failure.kind == "limited"
        )
        if not paid:
            await self.door.settle(call.migration, budgets, [attempt], Amount())

    async def settle_after_kill(self, call: Call, budgets: Budgets, entry: LedgerEntry) -> None:
        """The answer of this very job is there already: a kill may have come between writing it and settling."""
        self._tally.note(call, entry)
        if entry.answer is not None and entry.answer.job == call.job:
            await self._settle(call, budgets, entry, entry.answer.attempt, entry.answer)

    async def _settle(self, call: Call, budgets: Budgets, entry: LedgerEntry, attempt: str, bought: Bought) -> None:
        """Settle the answered attempt, and those that a kill or a timeout left, at what the answer took."""
        each = Amount(calls=1, tokens=bought.input_tokens + bought.output_tokens, money=bought.money)
        left = [one for one in entry.unanswered(call.migration) if one != attempt]
        await self.door.settle(call.migration, budgets, [attempt, *left], each)
