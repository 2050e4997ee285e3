"""`llamaduo export` and `push` from a real log: the folder and the Hub get the same files."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.hub_stand_in import hub
from tests.support import connected, environment, nats_server
from tests.unit.synthetic_log import MIGRATION
from tests.unit.test_sharing import WEIGHTS, log_in


async def test_files_and_hub_are_equals(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path) as bus, hub() as standing:
            for event in await log_in(await bus.artifacts()):
                await bus.publish(event)
            ways = {"HF_ENDPOINT": standing.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
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
