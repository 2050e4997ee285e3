"""An engine that others run: it must serve the migration's base model, and may ask for a key."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from llamaduo.errors import PermanentError, UserInputError
from services.inference.engine import WrongBaseModel
from services.inference.engines import make_engine
from services.inference.settings import InferenceSettings, engine_key
from tests.unit.vllm_stand_in import VllmStandIn

KEY = "not-a-real-key-5f1d"


@pytest_asyncio.fixture
async def server() -> AsyncIterator[VllmStandIn]:
    standing = VllmStandIn()
    await (await standing.start()).close()
    yield standing
    await standing.stop()


async def started(server: VllmStandIn, tmp_path: Path, base_model: str, **settings: Any) -> str:
    """Starts an engine by URL for a base model and stops it; what the untrained base is called there."""
    given = InferenceSettings(
        inference_engine="url", engine_url=f"{server.url}/v1", state_dir=tmp_path / "state", **settings
    )

    async def refetch(_: object) -> None: ...

    engine = await make_engine(given, refetch, base_model, 8)
    try:
        await engine.start()
    finally:
        await engine.stop()
    return str(server.asked[-1]["model"])


@pytest.mark.parametrize(
    ("root", "base_model"),
    [
        (None, "base"),
        (None, "owner/Base@main"),
        ("/models/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "/data/SmolLM2-135M-Instruct/"),
        ("/models/SmolLM2.gguf", "./SmolLM2.gguf"),
    ],
)
async def test_the_base_model_is_found_by_name_or_origin(
    server: VllmStandIn, tmp_path: Path, root: str | None, base_model: str
) -> None:
    server.root = root
    assert await started(server, tmp_path, base_model) == "base"


async def test_another_base_model_is_refused_by_name_before_it_answers(server: VllmStandIn, tmp_path: Path) -> None:
    server.root = "owner/large"
    with pytest.raises(WrongBaseModel, match=r"base \(from owner/large\).*owner/small.*LLAMADUO_ENGINE_MODEL=base"):
        await started(server, tmp_path, "owner/small")
    assert server.asked == []


async def test_a_setting_says_that_a_served_name_is_the_base_model(server: VllmStandIn, tmp_path: Path) -> None:
    server.root = "owner/large"
    assert await started(server, tmp_path, "owner/small", engine_model="base") == "base"


async def test_a_key_from_the_environment_or_a_file_opens_the_engine_and_is_never_shown(
    server: VllmStandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.api_key = KEY
    with pytest.raises(PermanentError, match="401"):
        await started(server, tmp_path, "base")
    assert await started(server, tmp_path, "base", engine_api_key=KEY) == "base"
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert await started(server, tmp_path, "base", engine_api_key_file=file) == "base"
    assert KEY not in caplog.text
    assert KEY not in repr(InferenceSettings(engine_api_key=KEY))


@pytest.mark.parametrize(("content", "says"), [(None, "cannot be read"), ("\n", "is empty")])
def test_a_key_file_without_a_key_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserInputError, match=says):
        engine_key(InferenceSettings(engine_api_key_file=file))
