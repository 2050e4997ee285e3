"""From what the ledger knows of a call to its answer."""

from __future__ import annotations

from llamaduo.errors import RetryableError
from llamaduo.service_llm.call import Answer, Call, RefusedInWords
from llamaduo.service_llm.clock import moment
from llamaduo.service_llm.ledger import LedgerEntry
from llamaduo.service_llm.parsing import shape_of


def outcome_of(call: Call, entry: LedgerEntry) -> Answer | RefusedInWords:
    """The answer that was bought for this call's own job, a paid refusal as a value."""
    try:
        return answer_of(call, entry, from_ledger=False)
    except RefusedInWords as refusal:
        return refusal


def answer_of(call: Call, entry: LedgerEntry, *, from_ledger: bool) -> Answer:
    """The entry's answer as this call's. RefusedInWords where the provider refused, paid as it is."""
    bought = entry.answer
    if bought is None:
        raise RetryableError("the ledger has lost an answer")
    ours = [one for one in entry.attempts if one.job == call.job]
    answer = Answer(
        key=call.key,
        text=bought.text,
        finish_reason=bought.finish_reason,
        shape="asked" if call.schema is None else shape_of(bought.text, call.schema),
        input_tokens=bought.input_tokens,
        output_tokens=bought.output_tokens,
        money=bought.money,
        from_ledger=from_ledger,
        own=bought.job == call.job,
        rebought=any(one.rebought for one in ours),
        failed=sum(one.outcome in ("failed", "unknown") for one in ours),
        limited=sum(one.limited for one in ours),
        batched=bought.batched,
        began=moment(bought.began),
        ended=moment(bought.ended),
    )
    if bought.finish_reason == "content_filter":
        raise RefusedInWords(f"{call.llm.model} refused to answer (content filter)", answer)
    return answer
