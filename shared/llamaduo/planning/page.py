"""A plan as a page of plain text, and as the three lines that `migrate` shows."""

from __future__ import annotations

from llamaduo.planning.plan import Plan, figure
from llamaduo.planning.telling import Telling


def page(plan: Plan) -> str:
    """One page."""
    rows = ", ".join(f"{number} {split}" for split, number in plan.rows.items())
    lines = [
        f"{plan.name}: {plan.base_model} is to learn it from {plan.service_llm}",
        f"rows      {rows}",
        f"machine   {plan.machine}",
        "",
        *_calls(plan),
        "",
        f"tokens    {tokens_words(plan)}",
        f"money     {money_words(plan)}",
        f"hours     {hours_words(plan)}",
        *([f"          {plan.hours.why}"] if plan.hours.first is not None else []),
        f"memory    {memory_words(plan)}",
        "",
        *_telling(plan),
    ]
    if plan.notes:
        lines += ["", *(f"! {note}" for note in plan.notes)]
    return "\n".join(lines)


def key_lines(plan: Plan) -> list[str]:
    """Calls and money, hours, and what the test rows can tell: three lines."""
    gaps = "; ".join(gap_words(one) for one in plan.telling)
    return [
        f"plan: {calls_words(plan)} calls of the service LLM; {money_words(plan)}",
        f"plan: hours: {hours_words(plan)}",
        f"plan: {plan.rows['test']} test rows: "
        + (gaps or "what they can tell depends on your own evaluator's scale"),
    ]


def in_full(plan: Plan) -> str:
    """What the upper end of a range stands for."""
    return f"all {plan.rounds} rounds" if plan.rounds > 1 else "it does not"


def calls_words(plan: Plan) -> str:
    """How many calls."""
    return f"{plan.calls.first:,.0f} (round 0 passes) to {plan.calls.every:,.0f} ({in_full(plan)})"


def tokens_words(plan: Plan) -> str:
    """How many tokens."""
    first, every, most = (figure(number) for number in (plan.tokens.first, plan.tokens.every, plan.tokens.most))
    return f"about {first} (round 0 passes) to {every} ({in_full(plan)}); at most {most}"


def money_words(plan: Plan) -> str:
    """How much money."""
    if plan.money is None:
        return f"price unknown ({', '.join(plan.unpriced)})"
    if not plan.calls.most:
        return "US$ 0"
    first, every, most = (f"{amount:,.2f}" for amount in (plan.money.first, plan.money.every, plan.money.most))
    return f"about US$ {first} (round 0 passes) to {every} ({in_full(plan)}); at most {most}"


def hours_words(plan: Plan) -> str:
    """How many hours."""
    hours = plan.hours
    if hours.first is None or hours.every is None:
        return f"unknown: {hours.why}"
    return f"roughly {hours.first:.2g} (round 0 passes) to {hours.every:.2g} ({in_full(plan)}, busy machine)"


def memory_words(plan: Plan) -> str:
    """Whether it fits."""
    memory = plan.memory
    if memory.training_gib is None or memory.serving_gib is None:
        return "unknown: the size of the base model is not known here"
    size = f"{(memory.weights or 0) / 1e6:,.0f}M weights"
    needed = f"{size}: training about {memory.training_gib:.1f} GiB, serving {memory.serving_gib:.1f}"
    if memory.have_gib is None:
        return f"{needed}; what there is is unknown"
    return f"{needed}; there are {memory.have_gib:.1f}: {'fits' if memory.fits else 'DOES NOT FIT'}"


def gap_words(one: Telling) -> str:
    """The smallest difference in a few words."""
    half = f"; about {figure(one.rows_for_half)} rows would tell half of it" if one.rows_for_half is not None else ""
    if one.what == "parity":
        return f"parity: an equally good model passes where the margin is {one.gap:.2g} points or more{half}"
    right = f" ({one.right} right answers pass)" if one.right is not None else ""
    return f"{one.what}: {one.gap:.2g} above its gate of {one.asked:g} is told{right}{half}"


def _calls(plan: Plan) -> list[str]:
    if not plan.stages:
        return ["calls     none of a service LLM"]
    lines = [_line("calls of service LLMs", "each time", "round 0 passes", in_full(plan), "at most")]
    for stage in plan.stages:
        figures = [f"{number:,}" for number in (stage.once, stage.first, stage.every, stage.most)]
        lines.append(_line(f"  {stage.name}, {stage.when}", *figures))
    total = [f"{number:,.0f}" for number in (plan.calls.first, plan.calls.every, plan.calls.most)]
    return [*lines, _line("  in all", "", *total)]


def _line(name: str, once: str, first: str, every: str, most: str) -> str:
    return f"{name:<48}{once:>10}{first:>16}{every:>14}{most:>10}"


def _telling(plan: Plan) -> list[str]:
    if not plan.telling:
        return ["test rows: what they can tell depends on the scale of your own evaluator"]
    lines = [f"what {plan.rows['test']} test rows can tell, in round 0 and in nine of ten cases:"]
    for one in plan.telling:
        lines.append(f"  {gap_words(one)}")
        lines.append(f"    (for {one.assumed})")
    return lines
