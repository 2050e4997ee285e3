"""What a call costs, by genai-prices, and the most it can cost before it is sent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm.budget import Amount
from llamaduo.service_llm.call import Call
from llamaduo.tools_in_words import tools_in_words

_TOKENS_A_MESSAGE = 16


def money(llm: ServiceLLM, input_tokens: int, output_tokens: int, *, batched: bool = False) -> float | None:
    """US dollars for so many tokens, asked online or in a batch; None where no price is known.

    A server with a URL of its own is priced by that URL, else as the provider it is named after: a proxy in front
    of a provider costs what the provider costs, and to count too much is the safe side.
    """
    from genai_prices import Usage, calc_price

    factor = llm.batch.price_factor if batched and llm.batch is not None else 1.0
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    _, name = llm.model.split(":", 1)
    for provider_id, url in _references(llm):
        try:
            if url is not None:
                return factor * float(calc_price(usage, name, provider_api_url=url).total_price)
            return factor * float(calc_price(usage, name, provider_id=provider_id).total_price)
        except LookupError:
            continue
    return None


def largest(call: Call, *, batched: bool = False) -> Amount:
    """The most one send of this call can take: a token a byte of the request, and `max_tokens` of answer."""
    form = call.schema.model_json_schema() if call.schema else call.response_format
    schema = json.dumps(dict(form)) if form else ""
    request = sum(_bytes(message) + _TOKENS_A_MESSAGE for message in call.messages)
    if call.tools:
        request += len(tools_in_words(call.tools).encode()) + _TOKENS_A_MESSAGE
    input_tokens = request + 2 * len(schema.encode())
    price = money(call.llm, input_tokens, call.max_tokens, batched=batched)
    return Amount(calls=1, tokens=input_tokens + call.max_tokens, money=price or 0.0)


def _bytes(message: Mapping[str, Any]) -> int:
    calls = message.get("tool_calls")
    return len(message["content"].encode()) + (len(json.dumps(calls).encode()) if calls else 0)


def _references(llm: ServiceLLM) -> Iterator[tuple[str | None, str | None]]:
    if llm.base_url is not None:
        yield None, llm.base_url
    yield llm.model.split(":", 1)[0], None
    if llm.base_url is None:
        yield None, None
