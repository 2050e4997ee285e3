"""`llamaduo export` and `push` from a real log, and `generate` with an adapter that was given away."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import yaml
from aiohttp import web

from llamaduo.datasets import load_shard
from llamaduo.sharing.taking import take_adapter
from services.emulator.app import make_app, start
from services.emulator.ledger import Ledger
from services.emulator.settings import EmulatorSettings
from tests.hub_stand_in import hub
from tests.loop.test_loop import TICKETS
from tests.support import connected, environment, nats_server
from tests.unit.synthetic_log import MIGRATION
from tests.unit.test_sharing import WEIGHTS, log_in
from tests.unit.test_taking_adapters import adapter_in


async def test_files_and_hub_are_equals(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path) as bus, hub() as standing:
            for event in await log_in(await bus.artifacts()):
                await bus.publish(event)
            ways = {"HF_ENDPOINT": standing.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
            ways["HF_HOME"] = str(tmp_path / "home")
            ways |= {"LLAMADUO_NATS_URL": server.url, "LLAMADUO_STATE_DIR": str(tmp_path / "state")}

            async def llamaduo(*arguments: str, **more: str) -> tuple[int, str]:
                child = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "llamaduo.cli.main", *arguments),
                    env=environment(**ways, **more),
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                )
                out, _ = await asyncio.wait_for(child.communicate(), 60)
                assert child.returncode is not None
                return child.returncode, out.decode()

            folder = tmp_path / "given-away"
            code, said = await llamaduo("export", "support-triage", str(folder))
            assert code == 0 and f"round 1 of {MIGRATION}: rows 3 train, 1 validation" in said, said
            assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == WEIGHTS
            where = ("--adapter", "team/triage-lora", "--dataset", "team/triage-data")
            code, said = await llamaduo("push", "support-triage", *where, HF_TOKEN="hf_right")
            assert code == 0 and f"{standing.url}/datasets/team/triage-data/commit/" in said, said
        pushed = {
            "adapter": standing.repositories["models/team/triage-lora"].files,
            "dataset": standing.repositories["datasets/team/triage-data"].files,
        }
        for part, files in pushed.items():
            exported = {p.name: p.read_bytes() for p in (folder / part).iterdir()}
            card = exported.pop("README.md").decode()
            # Only where it lies does the adapter's card know where its data is.
            assert (
                files.pop("README.md")
                .decode()
                .replace("datasets:\n- team/triage-data\n", "")
                .replace(" in [team/triage-data](https://huggingface.co/datasets/team/triage-data)", "")
                == card
            )
            assert files == exported and "hf_right" not in card


async def test_an_adapter_of_a_folder_answers_the_test_split(tmp_path: Path) -> None:
    """By a server that loads it, as vLLM does; the answers are the emulator's."""
    told: list[tuple[str, str]] = []
    adapter = adapter_in(tmp_path / "given-away", base="owner/other")
    name = take_adapter(str(adapter), tmp_path / "kept").name
    # It answers for no model of another name.
    app = make_app(EmulatorSettings(model_name=name), Ledger())

    async def take(request: web.Request) -> web.Response:
        body = await request.json()
        told.append((request.path.rpartition("/")[2], body["lora_name"]))
        if (path := body.get("lora_path")) is not None:
            assert (Path(path) / "adapter_model.safetensors").read_bytes() == b"weights"
        return web.Response(text="done")

    for what in ("load", "unload"):
        app.router.add_post(f"/v1/{what}_lora_adapter", take)
    runner, port = await start(app, "127.0.0.1", 0)
    try:
        llm = {"model": "openai:scripted-teacher", "base_url": "http://127.0.0.1:1/v1"}
        small = {"train": 60, "validation": 24, "test": 28, "holdout": 20}
        spec = {"name": "triage", "coverage": str(TICKETS), "base_model": "owner/model", "service_llm": llm}
        spec |= {"gate": {"absolute": {"exact-match.exact": 0.7}}, "evaluators": ["exact-match"], "splits": small}
        (tmp_path / "migration.yaml").write_text(yaml.safe_dump(spec))
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "llamaduo.cli.main", "generate", "migration.yaml", "--out", "answers.jsonl"),
            *("--url", f"http://127.0.0.1:{port}", "--adapter", str(adapter)),
            cwd=tmp_path,
            env=environment(LLAMADUO_STATE_DIR=str(tmp_path / "state")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(child.communicate(), 60)
    finally:
        await runner.cleanup()
    assert child.returncode == 0 and b"28 prompts answered" in out, err.decode()
    assert b"says it belongs to owner/other, not to owner/model" in err
    assert told == [("load_lora_adapter", name), ("unload_lora_adapter", name)]
    assert len(load_shard((tmp_path / "answers.jsonl").read_bytes())) == 28
