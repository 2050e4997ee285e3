"""Answers of all candidates to the same prompts, from the stored shards, for the report's page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamaduo.datasets import ShardRow, load_shard
from llamaduo.errors import LlamaDuoError
from llamaduo.event_parts import Candidate
from llamaduo.events import EvalFailed
from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.intervals import mean_by_row
from llamaduo.migrations.report_html import SideBySide

if TYPE_CHECKING:
    from llamaduo.artifacts import ArtifactStore


def labels_of(view: MigrationView) -> dict[str, str]:
    """Candidates with answers to the test split, by key, in the order they are shown."""
    bases = view.spec.bases if view.spec else [""]
    several = [f" ({name})" if len(bases) > 1 else "" for name in bases]
    labels = {Candidate(kind="base", base=i).key: f"base model{of}" for i, of in enumerate(several)}
    labels["nearest"] = "nearest train row"
    for number in view.rounds:
        for base, of in enumerate(several):
            labels[Candidate(kind="adapter", round=number, base=base).key] = f"round {number}{of}"
    labels["service"] = "service LLM"
    return {
        key: label
        for key, label in labels.items()
        if any(not event.skipped for event in view.generated(key, "test").values())
    }


def rows_to_show(view: MigrationView, answered: set[str], wanted: int) -> list[str]:
    """Row ids: those that the first failed round got wrong first, then any others, in a fixed order."""
    failed = [decision for n in view.rounds if isinstance(decision := view.decision(n), EvalFailed)]
    wrong = [failure.row for failure in failed[0].failures if failure.row in answered] if failed else []
    return list(dict.fromkeys([*wrong, *sorted(answered)]))[:wanted]


def line_up(view: MigrationView, shards: dict[str, dict[str, ShardRow]], wanted: int) -> list[SideBySide]:
    """`shards`: candidate key -> row id -> row with its answers."""
    every = {row: given for rows in shards.values() for row, given in rows.items()}
    labels = labels_of(view)
    lined_up = []
    for row in rows_to_show(view, set(every), wanted):
        shown = every[row]
        answers = []
        for key, label in labels.items():
            mine = shards.get(key, {}).get(row)
            if mine is not None:
                answer = next((text for text in mine.answers if text is not None), "(no answer)")
                answers.append((label, answer, _marks(view, key, row)))
        prompt = "\n".join(message.content for message in shown.messages if message.role == "user")
        lined_up.append(SideBySide(prompt=prompt, reference=shown.reference, answers=answers))
    return lined_up


def _marks(view: MigrationView, key: str, row: str) -> str:
    parts = []
    for evaluator in view.evaluators_seen:
        scored = [event for shard in view.scored(key, "test", evaluator).values() for event in shard]
        means, _ = mean_by_row(scored)
        parts += [f"{metric} {rows[row]:.3g}" for metric, rows in sorted(means.items()) if row in rows]
    return f"[{', '.join(parts)}]" if parts else ""


async def gather(store: ArtifactStore, view: MigrationView, wanted: int) -> list[SideBySide]:
    """Reads the shards and lines them up; a shard that cannot be read is left out."""
    from llamaduo.artifacts import read_bytes

    if wanted == 0:
        return []
    shards: dict[str, dict[str, ShardRow]] = {}
    for key in labels_of(view):
        for event in view.generated(key, "test").values():
            if event.responses is None:
                continue
            try:
                rows = load_shard(await read_bytes(store, event.responses))
            except (LlamaDuoError, ValueError):
                continue
            shards.setdefault(key, {}).update({row.row: row for row in rows})
    return line_up(view, shards, wanted)
