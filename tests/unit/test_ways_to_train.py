"""Going on from the adapter before, and DPO: what may be gone on from, and what the report says of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamaduo.artifacts import ObjectStoreArtifacts, put_bytes
from llamaduo.base_models import ResolvedBase
from llamaduo.errors import ArtifactCorrupt, PermanentError
from llamaduo.event_parts import Adapter, PreferenceTraining
from llamaduo.events import AdapterTrained, AnyEvent
from llamaduo.identity import adapter_digest
from llamaduo.migrations.fold import fold
from llamaduo.migrations.recipe import Recipe
from llamaduo.migrations.report import Report, build_report
from llamaduo.migrations.report_html import report_html
from services.trainer.checkpoints import keep_if_same_job
from services.trainer.engine import TrainJob
from services.trainer.fake_engine import FakeTrainingEngine
from services.trainer.previous_adapter import fetch_weights
from tests.unit.synthetic_log import at, complete_log

BASE = ResolvedBase(name="base", folder=Path("base"), digest="b" * 64)
RECIPE = Recipe(rank=8)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStoreArtifacts:
    return ObjectStoreArtifacts((tmp_path / "store").as_uri())


async def adapter(
    store: ObjectStoreArtifacts, names: tuple[str, ...] = ("adapter_config.json", "adapter_model.safetensors")
) -> Adapter:
    files = {name: await put_bytes(store, name.encode(), "application/octet-stream") for name in names}
    digest = adapter_digest({name: ref.sha256 for name, ref in files.items()})
    return Adapter(digest=digest, files=files, base_model="base", base_digest=BASE.digest, rank=RECIPE.rank)


async def test_the_weights_are_fetched(store: ObjectStoreArtifacts, tmp_path: Path) -> None:
    path = await fetch_weights(await adapter(store), BASE, RECIPE, store, tmp_path)
    assert path.read_bytes() == b"adapter_model.safetensors"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"digest": "c" * 64}, "not the digest of its files"),
        ({"base_digest": "c" * 64}, "its base model is cccc"),
        ({"rank": 4}, "its rank is 4, the recipe's is 8"),
    ],
)
async def test_what_cannot_be_gone_on_from_is_refused(
    store: ObjectStoreArtifacts, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    wrong = (await adapter(store)).model_copy(update=changes)
    with pytest.raises(PermanentError, match=words):
        await fetch_weights(wrong, BASE, RECIPE, store, tmp_path)


async def test_pickled_weights_are_refused_by_their_name(store: ObjectStoreArtifacts, tmp_path: Path) -> None:
    pickled = await adapter(store, ("adapter_config.json", "adapter_model.bin"))
    with pytest.raises(PermanentError, match=r"adapter_model\.bin, not adapter_config\.json and adapter_model\.safe"):
        await fetch_weights(pickled, BASE, RECIPE, store, tmp_path)


async def test_other_bytes_than_the_event_says_are_refused(store: ObjectStoreArtifacts, tmp_path: Path) -> None:
    whole = await adapter(store)
    kept = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    for path in kept:
        path.write_bytes(b"other")
    with pytest.raises(ArtifactCorrupt):
        await fetch_weights(whole, BASE, RECIPE, store, tmp_path)


async def test_the_adapter_before_is_part_of_the_job(tmp_path: Path) -> None:
    train, base = tmp_path / "train.jsonl", tmp_path / "base"
    base.mkdir()
    train.write_text(
        '{"id": "r", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    )
    job = TrainJob(train=train, base_folder=base, recipe=Recipe(steps=1), out=tmp_path / "out", work=tmp_path / "w")
    jobs = [job]
    for name in ("one", "other"):
        (tmp_path / name).write_text(name)
        jobs.append(job.model_copy(update={"previous": tmp_path / name}))
    made = []
    for each in jobs:
        made.append((await FakeTrainingEngine(0).train(each, lambda _: None)).files["adapter_model.safetensors"])
        keep_if_same_job(each)
        assert not (job.work / "checkpoint-1").exists(), "a checkpoint of another job is not gone on from"
        (job.work / "checkpoint-1").mkdir()
        keep_if_same_job(each)
        assert (job.work / "checkpoint-1").exists()
    assert len(set(made)) == 3


def test_the_report_says_what_dpo_came_to() -> None:
    told = PreferenceTraining(
        asked=60, pairs=9, kept=False, validated=24, exact_before=20, exact_after=19, loss_before=0.2, loss_after=0.3
    )
    log = complete_log()
    asked = [
        e.model_copy(update={"preference": told}) if isinstance(e, AdapterTrained) and e.round == 1 else e
        for e in log
    ]
    report = report_of(asked)
    assert [part.preference for part in report.rounds] == [None, told]
    page = report_html(report)
    assert "Round 1, DPO on own failures: 9 of 60 train rows answered wrongly" in page
    assert "20 before and 19 after, of 24: not kept" in page
    assert "DPO" not in report_html(report_of(log))


def report_of(events: list[AnyEvent]) -> Report:
    return build_report(fold(events), at(1000))


def test_the_report_says_what_a_round_began_with() -> None:
    log = complete_log()
    first = next(e for e in log if isinstance(e, AdapterTrained) and e.round == 0)
    went_on = [
        e.model_copy(update={"continued_from": first.adapter.digest})
        if isinstance(e, AdapterTrained) and e.round == 1
        else e
        for e in log
    ]
    report = report_of(went_on)
    assert [part.continued_from for part in report.rounds] == [None, first.adapter.digest]
    assert "round 1 went on from the adapter before" in "\n".join(report.warnings)
    assert "went on" not in "\n".join(report_of(log).warnings)
    page, other = report_html(report), report_html(report_of(log))
    cells = ("<td>base model</td>", "<td>round 0</td>")
    assert [page.count(cell) - other.count(cell) for cell in cells] == [-1, 1]
