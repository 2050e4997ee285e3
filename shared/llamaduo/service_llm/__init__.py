"""Calling the service LLM: the one way to do so, with ledger, limits and budget. Imports no provider's SDK."""

from llamaduo.service_llm.call import Answer, Call, RefusedInWords
from llamaduo.service_llm.client import ServiceLLMClient
from llamaduo.service_llm.ledger import Rebought, rebought
from llamaduo.service_llm.parsing import Mark100, parse, parse_items, parse_one
from llamaduo.service_llm.providers import ProviderSender
from llamaduo.service_llm.sending import Reply, Send, SendFailed, ServiceLLMMisconfigured
from llamaduo.service_llm.summary import count_calls, work_spans

__all__ = [
    "Answer",
    "Call",
    "Mark100",
    "ProviderSender",
    "Rebought",
    "RefusedInWords",
    "Reply",
    "Send",
    "SendFailed",
    "ServiceLLMClient",
    "ServiceLLMMisconfigured",
    "count_calls",
    "parse",
    "parse_items",
    "parse_one",
    "rebought",
    "work_spans",
]
