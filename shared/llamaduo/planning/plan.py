"""The plan of a migration: what its spec and rows say, before anything starts, it will take and can tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from llamaduo.built_in_evaluators import METRICS
from llamaduo.datasets import Row
from llamaduo.event_parts import Split
from llamaduo.migrations.quotas import rows_by_split
from llamaduo.migrations.spec import MigrationSpec, ServiceLLM
from llamaduo.planning.calls import CALLS_AN_ANSWER, Role, Stage, llm_of, stages_of
from llamaduo.planning.hours import Hours, hours_of
from llamaduo.planning.known_models import licence_note, parameters_of
from llamaduo.planning.machine import Machine
from llamaduo.planning.memory import Memory, memory_of
from llamaduo.planning.sizes import sizes_of
from llamaduo.planning.telling import Telling, telling_of

Price = Callable[[ServiceLLM, int, int], float | None]
"""US dollars for (service LLM, input tokens, output tokens); None where no price is known."""


class Range(BaseModel):
    """`first`: round 0 passes as early as it can; `every`: all rounds are needed; `most`: all of them, and every
    call as large as it may be.
    """

    model_config = ConfigDict(frozen=True)
    first: float
    every: float
    most: float


class Plan(BaseModel):
    """One page on a migration. Failed and repeated calls are in no figure; answers known from the ledger are not
    taken off.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    base_model: str
    service_llm: str
    machine: str
    rounds: int = Field(description="budgets.rounds")
    rows: dict[Split, int] = Field(description="by split; near copies stay together, which may leave some out")
    stages: list[Stage]
    calls: Range
    tokens: Range
    money: Range | None = Field(description="US dollars; None where a model that is called has no known price")
    unpriced: list[str] = Field(default_factory=list, description="models that are called and have no known price")
    hours: Hours
    memory: Memory
    telling: list[Telling]
    notes: list[str] = Field(default_factory=list, description="what to know before it starts")


def plan_of(spec: MigrationSpec, rows: Sequence[Row], machine: Machine, price: Price | None = None) -> Plan:
    """The plan for different `rows` on this machine. UserInputError where they cannot be split as asked.

    Without `price` no price is known.
    """
    split = rows_by_split(len(rows), spec.splits)
    sizes = sizes_of(rows)
    stages = stages_of(spec, split, sizes)
    weights = {name: parameters_of(name) for name in spec.bases}
    hours = hours_of(spec, split, sizes, stages, machine, list(weights.values()))
    memories = {name: memory_of(spec, sizes, machine, size) for name, size in weights.items()}
    # The largest decides whether the machine will do; one of unknown size may be larger still.
    memory = max(memories.values(), key=lambda one: math.inf if one.weights is None else one.weights)
    telling = telling_of(spec, split["test"])
    calls = Range(
        first=sum(stage.first for stage in stages),
        every=sum(stage.every for stage in stages),
        most=sum(stage.most for stage in stages),
    )
    tokens = Range(
        first=sum(stage.first * (stage.input_tokens + stage.output_tokens) for stage in stages),
        every=sum(stage.every * (stage.input_tokens + stage.output_tokens) for stage in stages),
        most=sum(stage.most * (stage.input_tokens_most + stage.output_tokens_most) for stage in stages),
    )
    money, unpriced = _money(spec, stages, price)
    return Plan(
        name=spec.name,
        base_model=" or ".join(spec.bases),
        service_llm=spec.service_llm.model,
        machine=machine.words,
        rounds=spec.budgets.rounds,
        rows=split,
        stages=stages,
        calls=calls,
        tokens=tokens,
        money=money,
        unpriced=unpriced,
        hours=hours,
        memory=memory,
        telling=telling,
        notes=[
            *_against_budgets(spec, calls, tokens, money, hours),
            *_about_memory(memories),
            *_about_telling(telling),
            *_about_licences(spec.bases),
            *_about_bases(spec.bases),
            *_about_evaluators(spec),
            *_about_batches(spec, stages),
        ],
    )


def _money(spec: MigrationSpec, stages: Sequence[Stage], price: Price | None) -> tuple[Range | None, list[str]]:
    roles: set[Role] = {stage.llm for stage in stages}
    called = {llm_of(spec, role) for role in roles}
    unpriced = sorted({llm.model for llm in called if price is None or price(llm, 1000, 1000) is None})
    if price is None or unpriced:
        return None, unpriced
    first = every = most = 0.0
    for stage in stages:
        llm = llm_of(spec, stage.llm)
        # By one call, since some prices rise with the length of the prompt.
        likely = price(llm, round(stage.input_tokens), round(stage.output_tokens)) or 0.0
        likely *= llm.batch.price_factor if llm.batch is not None else 1.0
        # At most: what a batch lacks is asked online, at the whole price.
        largest = price(llm, round(stage.input_tokens_most), round(stage.output_tokens_most)) or 0.0
        first += stage.first * likely
        every += stage.every * likely
        most += stage.most * largest
    return Range(first=first, every=every, most=most), []


def _against_budgets(
    spec: MigrationSpec, calls: Range, tokens: Range, money: Range | None, hours: Hours
) -> list[str]:
    budgets, found = spec.budgets, []
    limits: list[tuple[str, float | None, Range | None]] = [
        ("calls", budgets.calls, calls),
        ("tokens", budgets.tokens, tokens),
        ("money", budgets.money, money),
    ]
    if hours.first is not None and hours.every is not None:
        limits.append(("hours", budgets.hours, Range(first=hours.first, every=hours.every, most=hours.every)))
    for name, limit, needed in limits:
        if limit is None or needed is None or limit >= needed.every:
            continue
        if limit < needed.first:
            found.append(
                f"budgets.{name}: {limit:g} is less than one round needs (about {figure(needed.first)}): "
                "it would stop before it can pass"
            )
        else:
            all_rounds = f"all {budgets.rounds} rounds (about {figure(needed.every)})"
            found.append(f"budgets.{name}: {limit:g} may end it before {all_rounds}")
    return found


def figure(number: float) -> str:
    """A figure as exact as an estimate is: two digits that count."""
    if number >= 100:
        digits = len(str(int(number))) - 2
        return f"{round(number / 10**digits) * 10**digits:,}"
    return f"{number:.2g}"


def _about_memory(memories: Mapping[str, Memory]) -> list[str]:
    found = []
    for name, memory in memories.items():
        if memory.fits is not False:
            continue
        of = f" of {name}" if len(memories) > 1 else ""
        needed = (memory.training_gib or 0) + (memory.serving_gib or 0)
        found.append(
            f"memory: training and serving{of} together take about {needed:.1f} GiB, there are "
            f"{memory.have_gib:.1f}: take a smaller base model, recipe.batch_size or recipe.max_length"
        )
    return found


def _about_licences(bases: Sequence[str]) -> list[str]:
    notes = {name: note for name in bases if (note := licence_note(name))}
    return [f"{name}: {note}" if len(bases) > 1 else note for name, note in notes.items()]


def _about_bases(bases: Sequence[str]) -> list[str]:
    if len(bases) == 1:
        return []
    return [
        f"{len(bases)} base models share the error of a round, so each needs somewhat clearer marks; they are "
        "trained one after the other unless there are as many trainers"
    ]


def _about_telling(telling: Sequence[Telling]) -> list[str]:
    return [
        f"parity: so few test rows cannot tell a margin of {one.asked:g} points; {one.gap:.2g} would do"
        for one in telling
        if one.what == "parity" and one.gap > one.asked
    ]


def _about_evaluators(spec: MigrationSpec) -> list[str]:
    own = [choice.name for choice in spec.evaluators if choice.name not in {*METRICS, *CALLS_AN_ANSWER}]
    if not own:
        return []
    return [f"{', '.join(own)}: of evaluators of your own neither cost nor scale is known here"]


def _about_batches(spec: MigrationSpec, stages: Sequence[Stage]) -> list[str]:
    asked: dict[ServiceLLM, list[str]] = {}
    for role in dict.fromkeys(stage.llm for stage in stages):
        asked.setdefault(llm_of(spec, role), []).append(role)
    batched = [(llm.batch, roles) for llm, roles in asked.items() if llm.batch is not None]
    found = [
        f"{', '.join(roles)}: asked in batches, at {batch.price_factor:.0%} of the price; the answers of each piece "
        f"of work may take up to {batch.wait_hours:g} h, and no hours above count that wait"
        for batch, roles in batched
    ]
    if batched and max(batch.wait_hours for batch, _ in batched) >= spec.budgets.hours:
        found.append(f"budgets.hours: {spec.budgets.hours:g} may go by before the first batch is answered")
    return found
