"""Alerts and dashboard on a real Prometheus that scrapes every service during a migration, each its own process."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import shutil
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from llamaduo.bus.desk import Work
from llamaduo.bus.service import Service
from llamaduo.events import AdapterTrained, DatasetReady, Event, MigrationCompleted
from llamaduo.telemetry import JsonLines
from tests.faults.run import spec, wait_ready
from tests.faults.stage import SERVICES, Stage, staged
from tests.loop.test_loop import ended, submit
from tests.loop.test_settling import dataset, seen, trained
from tests.support import ROOT, connected, free_port, nats_server, service_settings, serving, until

METRICS = ROOT / "deploy" / "metrics"
JOBS = {
    "verdict": "verdict", "synthesizer": "synthesizer", "trainer": "trainer", "inference": "inference",
    "exact-match": "judge-exact", "llm-judge": "judge",
}  # fmt: skip


def program(name: str) -> str:
    """The path of a program of Prometheus's."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}: apt-get install prometheus")
    return found


def panels() -> list[dict[str, Any]]:
    """What a migration fills; no application asks the gateway during one."""
    board = json.loads((METRICS / "grafana" / "dashboards" / "llamaduo.json").read_text("utf-8"))
    shown = [panel for panel in board["panels"] if panel["type"] != "row"]
    return [panel for panel in shown if "llamaduo_gateway_" not in panel["targets"][0]["expr"]]


@pytest.mark.parametrize(
    "words",
    [["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(words: list[str]) -> None:
    done = subprocess.run([program("promtool"), *words], cwd=METRICS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@asynccontextmanager
async def vllm_stand_in() -> AsyncIterator[int]:
    """Figures named as vLLM names them, which rise from scrape to scrape; its port."""
    asked = 0

    async def figures(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        lines = [f"vllm:{name} 1" for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")]
        lines += [f"vllm:{name} {asked}" for name in ("generation_tokens_total", "prompt_tokens_total")]
        for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
            lines += [f'vllm:{name}_bucket{{le="{le}"}} {asked}' for le in ("1.0", "+Inf")]
        return web.Response(text="\n".join(lines) + "\n")

    app = web.Application()
    app.add_routes([web.get("/metrics/engine", figures)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def configured(folder: Path, stage: Stage, engine: int) -> Path:
    """The configuration that is shipped, with ports of this machine where it has names of compose services."""
    config = yaml.safe_load((METRICS / "prometheus.yml").read_text("utf-8"))
    ports = {job: (stage.folder / name / "port").read_text() for name, job in JOBS.items()}
    assert {job["job_name"] for job in config["scrape_configs"]} == {*JOBS.values(), "engine"}
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        of_job = [ports["inference"], str(engine)] if job["job_name"] == "engine" else [ports[job["job_name"]]]
        job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in of_job]}]
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(METRICS / "alerts.yml")]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def prometheus(folder: Path, config: Path) -> Iterator[str]:
    """A Prometheus of this test's own; its address."""
    port = free_port()
    command = [
        program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "prometheus.log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=1):
                    break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


async def asked(http: aiohttp.ClientSession, url: str, **params: str) -> Any:
    async with http.get(url, params=params) as answer:
        body = await answer.json()
    assert body["status"] == "success", body
    return body["data"]


async def has_data(http: aiohttp.ClientSession, url: str, expr: str, began: float) -> bool:
    """Whether a query gave a number at any moment since then."""
    query = expr.replace("$__rate_interval", "15s")
    data = await asked(
        http, f"{url}/api/v1/query_range", query=query, start=str(began), end=str(time.time()), step="1s"
    )
    return any(math.isfinite(float(value)) for series in data["result"] for _, value in series["values"])


@pytest.mark.timeout(240)
async def test_every_panel_has_data_and_no_alert_fires_in_a_migration_that_goes_well(tmp_path: Path) -> None:
    program("prometheus")
    began = time.time()
    with staged(tmp_path, free_port()) as stage:
        async with connected(stage.server, tmp_path) as bus, vllm_stand_in() as engine:
            for name in SERVICES:
                stage.start(name)
            await wait_ready(stage)
            with prometheus(tmp_path, configured(tmp_path, stage, engine)) as url:
                async with aiohttp.ClientSession() as http:

                    async def scraped() -> bool:
                        found = (await asked(http, f"{url}/api/v1/targets"))["activeTargets"]
                        return len(found) == 8 and all(target["health"] == "up" for target in found)

                    await until(scraped, seconds=60, what="a scrape of every service")
                    migration = await submit(bus, spec(stage.emulator_url))  # type: ignore[arg-type]
                    view = await until(lambda: ended(bus, migration), seconds=150, what="the end")
                    assert isinstance(view.ended, MigrationCompleted), view.ended

                    async def without_data() -> list[str]:
                        return [
                            panel["title"]
                            for panel in panels()
                            if not await has_data(http, url, panel["targets"][0]["expr"], began)
                        ]

                    async def all_have_data() -> bool:
                        return not await without_data()

                    try:
                        await until(all_have_data, seconds=30, what="data")
                    except AssertionError:
                        assert await without_data() == []
                    assert not await has_data(http, url, "llamaduo_nothing_of_the_kind", began)
                    (group,) = (await asked(http, f"{url}/api/v1/rules"))["groups"]
                    assert {rule["health"] for rule in group["rules"]} == {"ok"}
                    assert [rule["name"] for rule in group["rules"] if rule["state"] == "firing"] == []

                    async def says(query: str, number: float) -> bool:
                        data = await asked(http, f"{url}/api/v1/query", query=query)
                        return [float(one["value"][1]) for one in data["result"]] == [number]

                    rounds = len(view.rounds)
                    told = {
                        'max(llamaduo_migrations_ended{outcome="completed"})': 1,
                        "sum(llamaduo_rounds_decided)": rounds,
                        "sum(llamaduo_adapters_trained_total)": rounds,
                        "sum(llamaduo_training_steps_total)": 10 * rounds,
                        "sum(llamaduo_synthetic_rows_added_total)": sum(
                            data.added for n in view.rounds if (data := view.dataset(n))
                        ),
                        "sum(llamaduo_mark_count)": sum(
                            mark.value is not None
                            for shards in (view.events.values(),)
                            for event in shards
                            for mark in getattr(event, "marks", [])
                            if event.type == "eval.scored"
                        ),
                    }
                    for query, number in told.items():
                        await until(lambda q=query, n=number: says(q, n), seconds=20, what=f"{query} == {number}")  # type: ignore[misc]


async def test_lines_written_while_a_job_is_in_hand_say_whose_it_is(tmp_path: Path) -> None:
    """Those of threads and of tasks that the handler starts, too."""
    written: list[dict[str, str]] = []
    handler = logging.Handler()
    handler.setFormatter(JsonLines("trainer"))
    handler.emit = lambda record: written.append(json.loads(handler.format(record)))  # type: ignore[method-assign]
    log = logging.getLogger("tests.whose")
    log.addHandler(handler)

    async def work_on(event: DatasetReady, work: Work) -> Sequence[Event]:
        log.warning("handler %s", event.migration)
        await asyncio.to_thread(log.warning, "thread %s", event.migration)
        await asyncio.create_task(asyncio.to_thread(log.warning, "task %s", event.migration))
        return [trained(event)]

    with nats_server(tmp_path / "nats") as server:
        service = Service("trainer", service_settings(server, tmp_path), roles={"trainer": (work_on, 2)})
        async with connected(server, tmp_path) as bus, serving(service):
            asked_for = [dataset(f"m-{number}") for number in range(4)]
            for event in asked_for:
                await bus.publish(event)
            await until(lambda: seen(bus, AdapterTrained, 4))
    log.warning("after")
    of = {event.migration: event.id for event in asked_for}
    *lines, last = written
    assert len(lines) == 12 and "migration" not in last
    for line in lines:
        assert line["message"].endswith(f" {line['migration']}") and of[line["migration"]] == line["event"]


def test_the_table_of_alerts_has_those_that_there_are() -> None:
    rules = yaml.safe_load((METRICS / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8").split("## Alerts")[1].split("## ")[0]
    assert [f"| `{rule['alert']}` |" for rule in rules] == [
        line[: line.index("|", 1) + 1] for line in page.splitlines() if line.startswith("| `")
    ]
    tested = (METRICS / "alerts_test.yml").read_text("utf-8")
    for rule in rules:
        cases = [line for line in tested.splitlines() if f"alertname: {rule['alert']}" in line]
        assert any("exp_alerts: []" in line for line in cases), f"{rule['alert']}: where it must not fire"
        assert any("exp_alerts: []" not in line for line in cases), f"{rule['alert']}: where it must"
