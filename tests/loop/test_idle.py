"""What an idle judge weighs, as a process of its own on a real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from llamaduo.bus import topology
from tests.support import connected, environment, nats_server, until


@pytest.mark.parametrize("evaluator", ["exact-match", "llm-judge", "embedding"])
async def test_an_idle_judge_stays_under_120_mb(tmp_path: Path, evaluator: str) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path) as bus:
            await topology.add_evaluator(bus.js, evaluator, profile="faults")
            port = tmp_path / "port"
            env = environment(LLAMADUO_NATS_URL=server.url, LLAMADUO_PROFILE="faults", LLAMADUO_PORT_FILE=str(port))
            command = [sys.executable, "-m", "services.judge", "--evaluator", evaluator]
            with (tmp_path / "log").open("wb") as log:
                process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
            try:

                async def ready() -> bool:
                    if not port.exists():
                        return False
                    async with (
                        aiohttp.ClientSession() as http,
                        http.get(f"http://127.0.0.1:{port.read_text()}/readyz") as answer,
                    ):
                        return answer.status == 200

                await until(ready, seconds=60, what="readiness")
                megabytes = psutil.Process(process.pid).memory_info().rss / 1e6
                assert megabytes < 120, f"{megabytes:.0f} MB"
            finally:
                process.terminate()
                assert process.wait(20) == 0
