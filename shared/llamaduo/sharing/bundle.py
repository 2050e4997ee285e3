"""What of a migration is given away: a round's adapter and its data, and where they came from.

Test and holdout rows are left out unless asked for: once they are about, no model can be told by them any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llamaduo import __version__
from llamaduo.errors import UserInputError
from llamaduo.event_parts import Split
from llamaduo.events import AdapterTrained, DatasetReady
from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.report import Report, RoundPart
from llamaduo.migrations.spec import MigrationSpec, ServiceLLM

CARD, LINEAGE = "README.md", "llamaduo.json"
TAUGHT: tuple[Split, ...] = ("train", "validation")
HELD_OUT: tuple[Split, ...] = ("test", "holdout")


@dataclass(frozen=True)
class Bundle:
    """One round of a migration, and which of its splits go along."""

    view: MigrationView
    spec: MigrationSpec
    report: Report
    part: RoundPart
    trained: AdapterTrained
    data: DatasetReady
    splits: tuple[Split, ...]

    @property
    def adapter_files(self) -> dict[str, str]:
        """The adapter's own files -> SHA-256. A card that came with them makes room for ours."""
        return {name: ref.sha256 for name, ref in sorted(self.trained.adapter.files.items()) if name != CARD}

    @property
    def base_on_hub(self) -> str | None:
        """The base model's Hub id; None where it was a folder or a file of one's own."""
        name = self.trained.adapter.base_model.partition("@")[0]
        return name if "/" in name else None


@dataclass(frozen=True)
class Written:
    """What a split's rows are: how many in all, and how many each model wrote."""

    rows: int
    by_model: dict[str, int]

    @property
    def own(self) -> int:
        """Rows that were submitted, not written in the loop."""
        return self.rows - sum(self.by_model.values())


def bundle_of(view: MigrationView, report: Report, number: int | None, *, held_out: bool) -> Bundle:
    """The round that passed, or the one named. UserInputError where there is none, or it has no adapter."""
    spec = view.spec
    if number is None and report.passed_round is None:
        raise UserInputError(
            f"no round of {view.migration} has passed its gate", field="--round", hint="name the round you mean"
        )
    number = report.passed_round if number is None else number
    assert number is not None
    part = next((part for part in report.rounds if part.number == number), None)
    trained, data = view.adapter(number, view.decided_base(number)), view.dataset(number)
    if spec is None or part is None or trained is None or data is None:
        there = ", ".join(str(n) for n in view.rounds if view.adapter(n, view.decided_base(n)) is not None) or "none"
        raise UserInputError(f"round {number} has no adapter", field="--round", hint=f"rounds that have one: {there}")
    splits = [split for split in (*TAUGHT, *(HELD_OUT if held_out else ())) if data.rows.get(split)]
    return Bundle(view, spec, report, part, trained, data, tuple(splits))


def name_of(llm: ServiceLLM) -> str:
    """The model without its address, which may be nobody else's business; but that it had one of its own is said."""
    return llm.model if llm.base_url is None else f"{llm.model} at an address of the team's own"


def lineage_of(bundle: Bundle) -> dict[str, Any]:
    """Where data and adapter came from, by digests, for machines. The same in both folders."""
    request, trained, data, spec = bundle.view.request, bundle.trained, bundle.data, bundle.spec
    assert request is not None
    return {
        "llamaduo": __version__,
        "migration": bundle.view.migration,
        "parent": request.parent,
        "name": spec.name,
        "round": bundle.part.number,
        "verdict": bundle.part.verdict,
        "base_model": {"name": trained.adapter.base_model, "digest": trained.adapter.base_digest},
        "adapter": {"digest": trained.adapter.digest, "rank": trained.adapter.rank, "files": bundle.adapter_files},
        "dataset": {
            "digest": data.digest,
            "splits": {
                split: {"rows": data.rows.get(split, 0), "sha256": ref.sha256, "here": split in bundle.splits}
                for split, ref in data.splits.items()
            },
        },
        "coverage": request.coverage.sha256,
        "models": {
            "service_llm": name_of(spec.service_llm),
            "teacher": name_of(spec.teacher_llm),
            "judge": name_of(spec.judge_llm),
        },
        "recipe": trained.recipe,
        "steps": trained.steps,
        "seed": trained.seed,
        "versions": trained.versions,
    }
