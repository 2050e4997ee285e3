"""Model card and dataset card, made from the report: marks with intervals, what it was made of, by whom, digests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from llamaduo import __version__
from llamaduo.event_parts import Interval, Marks, Split
from llamaduo.planning.known_models import licence_of
from llamaduo.sharing.bundle import HELD_OUT, LINEAGE, Bundle, Written, name_of

VERDICTS = {
    "passed": "It **passed** its gate.",
    "failed": "It **failed** its gate.",
    "undecided": "It did **not pass** its gate: the test set could not tell.",
    None: "Its gate was **never decided**.",
}


def model_card(bundle: Bundle, train: Written | None, dataset_repo: str | None = None) -> str:
    """The adapter's README.md."""
    front: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["lora", "llamaduo"]}
    if bundle.base_on_hub is not None:
        front |= {"base_model": bundle.base_on_hub, "base_model_relation": "adapter"}
    if dataset_repo is not None:
        front["datasets"] = [dataset_repo]
    name, base = bundle.spec.name, bundle.trained.adapter.base_model
    data = f" in [{dataset_repo}](https://huggingface.co/datasets/{dataset_repo})" if dataset_repo else ""
    parts = [
        f"# {name}: a LoRA adapter for {base}",
        bundle.spec.task,
        f"Round {bundle.part.number} of the migration `{bundle.view.migration}`, made by LlamaDuo {__version__}. "
        + VERDICTS[bundle.part.verdict],
        "## How good it is",
        _marks(bundle),
        "## What it was made of",
        _list(
            [
                f"Base model: {base}, {_licence(bundle)}",
                *_who_wrote(bundle, train, f"Training rows{data}"),
                f"Training: {bundle.trained.steps} steps, the best checkpoint at {bundle.trained.best_step}, "
                f"LoRA of rank {bundle.trained.adapter.rank}",
                f"The bar: {name_of(bundle.spec.service_llm)} answered the test prompts as well; evaluators: "
                f"{', '.join(part.name for part in bundle.report.evaluators)}{_judge(bundle)}",
            ]
        ),
        "## How to use it",
        f"```\nvllm serve {bundle.base_on_hub or 'BASE_MODEL'} --enable-lora --max-lora-rank "
        f"{bundle.trained.adapter.rank} --lora-modules {name}=THIS_FOLDER\n```",
        "It was marked as vLLM serves it: the adapter beside its base model, not merged."
        + ("" if bundle.base_on_hub else " `BASE_MODEL` must be the very one whose digest stands below."),
        *_lineage(bundle),
    ]
    return _page(front, parts)


def dataset_card(bundle: Bundle, written: Mapping[Split, Written]) -> str:
    """The dataset's README.md."""
    files = [{"split": split, "path": f"{split}.jsonl"} for split in bundle.splits]
    front = {
        "task_categories": ["text-generation"],
        "tags": ["llamaduo"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    left_out = [split for split in HELD_OUT if bundle.data.rows.get(split) and split not in bundle.splits]
    rows = [
        [f"`{split}.jsonl`", str(one.rows), str(one.own), ", ".join(f"{n} {m}" for m, n in one.by_model.items())]
        for split, one in written.items()
    ]
    parts = [
        f"# {bundle.spec.name}: data of round {bundle.part.number}",
        bundle.spec.task,
        f"Data of the migration `{bundle.view.migration}`, made by LlamaDuo {__version__}: chat messages, the "
        "last one the answer to learn. One JSON object a line; `source` says whether a row was submitted "
        "(`coverage`) or written in the loop (`generated`), and `lineage` of the latter by which model and after "
        "which rows.",
        _table(["file", "rows", "submitted", "generated, by model"], rows),
        _list(_who_wrote(bundle, written.get("train"), "Train")),
        *(
            [f"Not here: {' and '.join(left_out)}. Models are told by them, which ends once they are trained on."]
            if left_out
            else []
        ),
        "`llamaduo merge all.jsonl hf://OWNER/NAME` reads it.",
        *_lineage(bundle),
    ]
    return _page(front, parts)


def _page(front: Mapping[str, Any], parts: Sequence[str]) -> str:
    head = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _marks(bundle: Bundle) -> str:
    report, part = bundle.report, bundle.part
    every: list[tuple[str, Marks]] = [
        ("base model, untrained", report.base_model.marks),
        ("the nearest train row's answer, copied", report.nearest_row),
        (f"**this adapter** (round {part.number})", part.marks),
        # The holdout is looked at for the round that passed alone.
        ("this adapter on the holdout", report.holdout if part.number == report.passed_round else {}),
        ("service LLM", report.service_llm.marks),
    ]
    pairs = sorted({(name, metric) for _, marks in every for name, metrics in marks.items() for metric in metrics})
    if not pairs:
        return "Nothing has been marked."
    rows = [[who, *(_interval(marks.get(e, {}).get(m)) for e, m in pairs)] for who, marks in every if marks]
    confidence = 100 * bundle.spec.gate.confidence
    told = [
        f"Means over prompts of the test split, each with its {confidence:g} % interval and number of prompts.",
        _table(["", *(f"{evaluator}.{metric}" for evaluator, metric in pairs)], rows),
        f"The gate: {_gate(bundle)}." + (f" The verdict's own words: {part.note}." if part.note else ""),
    ]
    if report.serving is not None and report.serving.round == part.number:
        told.append(f"As served: {report.serving.told}.")
    if report.warnings:
        told.append(f"The migration's report has {len(report.warnings)} warnings: ask who made it for them.")
    return "\n\n".join(told)


def _gate(bundle: Bundle) -> str:
    gate = bundle.spec.gate
    parts = [f"{name} at least {threshold:g}" for name, threshold in gate.absolute.items()]
    if gate.parity is not None:
        parts.append(f"not worse than the service LLM by more than {gate.parity.margin:g} points of 100")
    parts += [f"each {column} at least {rule.floor:g}" for column, rule in gate.slices.items() if rule.decides]
    return "; ".join(parts)


def _licence(bundle: Bundle) -> str:
    known = licence_of(bundle.base_on_hub) if bundle.base_on_hub else None
    return f"licence: {known}" if known else "whose licence is not known here: see where it came from"


def _judge(bundle: Bundle) -> str:
    asks = {"llm-judge", "pairwise"} & {part.name for part in bundle.report.evaluators}
    return f" (judged by {name_of(bundle.spec.judge_llm)})" if asks else ""


def _who_wrote(bundle: Bundle, rows: Written | None, what: str) -> list[str]:
    if rows is None:
        return []
    lines = [
        f"{what}: {rows.rows}, of them {rows.own} the submitter's own prompts and answers. Where a cloud LLM gave "
        f"these answers ({name_of(bundle.spec.service_llm)} was to be replaced), its provider's terms hold"
    ]
    return lines + [f"Rows generated by {model}: {number}" for model, number in rows.by_model.items()]


def _lineage(bundle: Bundle) -> list[str]:
    rows = [
        ["adapter", f"`{bundle.trained.adapter.digest}`"],
        ["base model", f"`{bundle.trained.adapter.base_digest}`"],
        ["data of this round, all splits", f"`{bundle.data.digest}`"],
        ["submitted rows", f"`{bundle.report.coverage_digest}`"],
    ]
    return [
        "## Lineage",
        _table(["what", "SHA-256"], rows),
        f"`{LINEAGE}` has the digest of each file, and the recipe.",
    ]


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return f"{interval.mean:.3g} ({interval.low:.3g} to {interval.high:.3g}, n={interval.n})"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
