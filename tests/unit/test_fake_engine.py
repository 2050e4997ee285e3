"""The fake engine: its answers follow from row and adapter, and more rows lose no right answer."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from llamaduo.errors import AdapterRejected
from services.inference.adapter_check import CONFIG, WEIGHTS
from services.inference.engine import AdapterFiles, GenerationRequest
from services.inference.fake_engine import FakeEngine, is_answered, skill_of
from tests.adapter_files import described, write_safetensors


def trained(folder: Path, rows: int | None) -> AdapterFiles:
    folder.mkdir()
    (folder / CONFIG).write_text("{}")
    write_safetensors(folder / WEIGHTS, {}, {"rows": str(rows)} if rows is not None else {"by": "somebody"})
    return described(folder, None)


def requests(model: str | None, count: int = 400) -> list[GenerationRequest]:
    return [
        GenerationRequest(f"row{i}", [{"role": "user", "content": "hello there"}], model, 2, 8, 0.0, [1, 2], "right")
        for i in range(count)
    ]


async def right(engine: FakeEngine, model: str | None) -> set[str]:
    return {g.row for g in await engine.generate(requests(model)) if g.answers == ["right", "right"]}


async def test_skill_grows_with_rows_and_keeps_what_was_right(tmp_path: Path) -> None:
    engine = FakeEngine()
    await engine.start()
    few = await right(engine, await engine.load(trained(tmp_path / "few", 30)))
    many = await right(engine, await engine.load(trained(tmp_path / "many", 150)))
    assert few < many
    assert len(few) / 400 == pytest.approx(0.42, abs=0.06)
    assert len(many) / 400 == pytest.approx(0.90, abs=0.06)


async def test_the_base_is_always_wrong_and_answers_repeat(tmp_path: Path) -> None:
    engine = FakeEngine()
    await engine.start()
    name = await engine.load(trained(tmp_path / "a", 60))
    assert await right(engine, None) == set()
    assert await engine.generate(requests(name)) == await engine.generate(requests(name))


async def test_an_adapter_of_another_trainer_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected, match="fake trainer"):
        await FakeEngine().load(trained(tmp_path / "a", None))


def test_skill_and_its_rule() -> None:
    assert skill_of(30) == pytest.approx(0.42)
    assert skill_of(10_000) == 0.95
    digest = hashlib.sha256(b"row7\nfake engine").hexdigest()
    assert is_answered("row7", int(digest[:8], 16) / 2**32 + 1e-9)
    assert not is_answered("row7", int(digest[:8], 16) / 2**32)
