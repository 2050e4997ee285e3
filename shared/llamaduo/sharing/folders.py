"""Writes a round's data and adapter into folders, each with card and lineage; each file is checked by its digest."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamaduo.artifacts import ArtifactStore
from llamaduo.datasets import load_rows
from llamaduo.errors import PermanentError
from llamaduo.event_parts import Split
from llamaduo.sharing.bundle import CARD, LINEAGE, Bundle, Written, lineage_of
from llamaduo.sharing.cards import dataset_card, model_card


async def write_dataset(bundle: Bundle, store: ArtifactStore, folder: Path) -> dict[Split, Written]:
    """The splits as JSON lines, with card and lineage, into `folder`; what the rows of each are."""
    written: dict[Split, Written] = {}
    for split in bundle.splits:
        file = folder / f"{split}.jsonl"
        await store.fetch(bundle.data.splits[split], file)
        rows = load_rows(file.read_bytes())
        models = Counter(row.lineage.generator if row.lineage else "?" for row in rows if row.source == "generated")
        written[split] = Written(len(rows), dict(sorted(models.items())))
    _write(folder, dataset_card(bundle, written), lineage_of(bundle))
    return written


async def write_adapter(
    bundle: Bundle, store: ArtifactStore, folder: Path, train: Written | None, dataset_repo: str | None = None
) -> None:
    """The adapter's files, with card and lineage, into `folder`. `dataset_repo`: where on the Hub its data is.

    PermanentError for a file whose name would leave the folder.
    """
    for name in bundle.adapter_files:
        if Path(name).name != name or name.startswith("."):
            raise PermanentError(f"an adapter's file has a plain name, not {name!r}")
        await store.fetch(bundle.trained.adapter.files[name], folder / name)
    _write(folder, model_card(bundle, train, dataset_repo), lineage_of(bundle))


async def read_train(bundle: Bundle, store: ArtifactStore, folder: Path) -> Written:
    """Who wrote the train rows, where the data itself does not go along; `folder` is for the while."""
    return (await write_dataset(replace(bundle, splits=("train",)), store, folder))["train"]


def _write(folder: Path, card: str, lineage: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD).write_text(card, "utf-8")
    (folder / LINEAGE).write_text(json.dumps(lineage, indent=2, ensure_ascii=False) + "\n", "utf-8")
