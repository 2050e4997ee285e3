"""An adapter from a folder or the Hub as one to serve: what is none is refused, the rest goes by its content."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from llamaduo.cli.main import call
from llamaduo.cli.own_engine import load_adapter, unload_adapter
from llamaduo.errors import LlamaDuoError, UserInputError
from llamaduo.sharing.taking import belongs_to, take_adapter
from tests.unit.test_cli_submission import write

KEY = "LLAMADUO_ENGINE_API_KEY"


def adapter_in(folder: Path, *, base: str = "owner/model", weights: bytes = b"weights") -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "README.md").write_text("a card")
    return folder


def test_its_two_files_are_kept_under_a_name_of_their_content(tmp_path: Path) -> None:
    one = take_adapter(str(adapter_in(tmp_path / "one")), tmp_path / "kept")
    assert one.folder == tmp_path / "kept" / one.name and one.name == f"taken-{one.digest[:12]}"
    assert sorted(p.name for p in one.folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert take_adapter(str(tmp_path / "one"), tmp_path / "kept") == one
    other = take_adapter(str(adapter_in(tmp_path / "two", weights=b"others")), tmp_path / "kept")
    assert other.name != one.name


@pytest.mark.parametrize(
    ("base", "ours", "fits"),
    [
        ("owner/model", "owner/model@main", True),
        ("model", "models/model", True),
        ("model", "files/model.gguf", True),
        ("owner/other", "owner/model", False),
    ],
)
def test_whether_it_belongs_to_a_base_model(tmp_path: Path, base: str, ours: str, fits: bool) -> None:
    assert belongs_to(take_adapter(str(adapter_in(tmp_path / "a", base=base)), tmp_path), ours) is fits


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"no adapter_config\.json"):
        take_adapter(str(tmp_path), tmp_path)
    folder = adapter_in(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserInputError, match="only pickled weights"):
        take_adapter(str(folder), tmp_path)
    (folder / "adapter_model.bin").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(UserInputError, match="does not name its base model"):
        take_adapter(str(folder), tmp_path)
    with pytest.raises(UserInputError, match="is no adapter"):
        take_adapter("hf://nobody", tmp_path)


@dataclass
class Server:
    """A vLLM as far as loading goes."""

    url: str = ""
    status: int = 200
    text: str = ""
    asked: list[tuple[str, Any]] = field(default_factory=list)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server()

    async def handle(request: web.Request) -> web.Response:
        found.asked.append((request.path, await request.json()))
        return web.Response(status=found.status, text=found.text)

    app = web.Application()
    app.router.add_post("/v1/{what:.+}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield found
    finally:
        await runner.cleanup()


async def test_a_server_is_asked_to_load_and_to_unload_it(tmp_path: Path, server: Server) -> None:
    taken = take_adapter(str(adapter_in(tmp_path / "a")), tmp_path / "kept")
    await load_adapter(server.url, KEY, taken)
    await unload_adapter(f"{server.url}/v1", KEY, taken)
    assert server.asked == [
        ("/v1/load_lora_adapter", {"lora_name": taken.name, "lora_path": str(taken.folder)}),
        ("/v1/unload_lora_adapter", {"lora_name": taken.name}),
    ]
    server.status, server.text = 400, "The lora adapter has already been loaded"
    await load_adapter(server.url, KEY, taken)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [(404, UserInputError, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"), (400, LlamaDuoError, r"refused the adapter \(400\)")],
)
async def test_a_server_that_does_not_load_it_is_told(
    tmp_path: Path, server: Server, status: int, kind: type[Exception], said: str
) -> None:
    taken = take_adapter(str(adapter_in(tmp_path / "a")), tmp_path / "kept")
    server.status, server.text = status, "no"
    with pytest.raises(kind, match=said):
        await load_adapter(server.url, KEY, taken)
    with pytest.raises(LlamaDuoError, match="does not answer"):
        await load_adapter("http://127.0.0.1:1", KEY, taken)


def test_an_adapter_needs_a_server_that_loads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, out = str(write(tmp_path)), str(tmp_path / "out.jsonl")
    for more in ([], ["--url", "http://127.0.0.1:1", "--model", "x"]):
        assert call(["generate", spec, "--out", out, "--adapter", str(tmp_path), *more]) == 2
        assert "--adapter: is of use only with --url, and without --model" in capsys.readouterr().err
