"""What each user of the bus may do, from the topology: what is not listed here is denied by the server.

No service may make, change or delete a stream or a consumer, publish another's event, take or settle another's
messages, write another's job records, or hear replies that are not its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamaduo.bus.topology import (
    ARTIFACTS,
    DEAD_LETTER_PREFIX,
    EVALUATOR_PREFIX,
    EVENTS,
    PROGRESS_PREFIX,
    SERVICES,
    Bucket,
    ServiceContract,
    contract_of,
    subjects_for,
)
from llamaduo.events import BudgetRefused, EvalScored, Event, WorkFailed, WorkWithdrawn, subject_of

OPERATOR = "operator"
"""Command line and bootstrap: may do everything."""
LLM_BUCKETS: tuple[Bucket, ...] = ("ledger", "budget", "permits")


@dataclass(frozen=True)
class Rights:
    """Subjects a user may publish on, and those it may subscribe to; all others are denied."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def users() -> dict[str, ServiceContract]:
    """Every user of the bus but the operator; each evaluator of ours is one of its own."""
    found: dict[str, ServiceContract] = {}
    for name, contract in SERVICES.items():
        durables = [durable.name for durable in contract.durables]
        if name == OPERATOR:
            continue
        if all(durable.startswith(EVALUATOR_PREFIX) for durable in durables):
            found |= {durable: contract_of(durable) for durable in durables}
        else:
            found[name] = contract
    return found


def somebody_elses(evaluator: str, *, asks_service_llm: bool = False) -> tuple[str, ServiceContract]:
    """User and contract of an evaluator that does not come with the system."""
    user = EVALUATOR_PREFIX + evaluator
    return user, replace(contract_of(user), asks_service_llm=asks_service_llm)


def rights_of(user: str, contract: ServiceContract) -> Rights:
    """The rights that this contract needs, and no more."""
    publish = [*_events(user, contract), *_log(), f"{PROGRESS_PREFIX}{user}"]
    for durable in contract.durables:
        publish += [
            f"$JS.API.CONSUMER.INFO.{EVENTS}.{durable.name}",
            f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.{durable.name}",
            f"$JS.ACK.{EVENTS}.{durable.name}.>",
            *(f"{DEAD_LETTER_PREFIX}{durable.name}.{subject}" for subject in durable.subjects),
        ]
    publish += _bucket("work", [f"{durable.name}.>" for durable in contract.durables])
    if contract.asks_service_llm:
        for bucket in LLM_BUCKETS:
            publish += _bucket(bucket, [">"])
    publish += _artifacts(contract)
    return Rights(tuple(sorted(publish)), (f"_INBOX_{user}.>", *subjects_for(contract.reads)))


def _events(user: str, contract: ServiceContract) -> list[str]:
    return [
        subject
        for model in contract.publishes
        if model not in (BudgetRefused, WorkWithdrawn) or contract.asks_service_llm
        for subject in _said_by(user, contract, model)
    ]


def _said_by(user: str, contract: ServiceContract, model: type[Event]) -> list[str]:
    """The subjects of one event; where it carries who says it, only as this user."""
    kind = subject_of(model)
    if model is EvalScored:
        return [f"{kind}.{user.removeprefix(EVALUATOR_PREFIX)}"]
    if model in (WorkFailed, WorkWithdrawn):
        return [f"{kind}.{durable.name}" for durable in contract.durables]
    return [kind]


def _log() -> list[str]:
    return [f"$JS.API.STREAM.INFO.{EVENTS}", f"$JS.API.DIRECT.GET.{EVENTS}"]


def _bucket(bucket: Bucket, keys: list[str]) -> list[str]:
    """Reading and writing these keys of a bucket."""
    stream = f"KV_{bucket}"
    rights = [f"$JS.API.STREAM.INFO.{stream}"]
    for key in keys:
        rights += [f"$KV.{bucket}.{key}", f"$JS.API.DIRECT.GET.{stream}.$KV.{bucket}.{key}"]
    return rights


def _artifacts(contract: ServiceContract) -> list[str]:
    if contract.artifacts == "none":
        return []
    stream = f"OBJ_{ARTIFACTS}"
    rights = [
        f"$JS.API.STREAM.INFO.{stream}",
        f"$JS.API.DIRECT.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}.$O.{ARTIFACTS}.M.*",
    ]
    return rights + ([f"$O.{ARTIFACTS}.C.*", f"$O.{ARTIFACTS}.M.*"] if contract.artifacts == "write" else [])
