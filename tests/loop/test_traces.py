"""One trace a round, across all services: told to a collector on this machine, by OTLP over HTTP."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from llamaduo.bus.trace import job_on, place_of, root_span, trace_id, traceparent
from llamaduo.events import EvalFailed, MigrationCompleted, WorkFailed
from services.inference.app import build as inference
from services.inference.settings import InferenceSettings
from services.judge.app import build as judge
from services.judge.settings import JudgeSettings
from services.synthesizer.app import build as synthesizer
from services.synthesizer.settings import SynthesizerSettings
from services.trainer.app import build as trainer
from services.trainer.settings import TrainerSettings
from services.verdict.app import build as verdict
from services.verdict.settings import VerdictSettings
from tests.faults.run import SPLITS
from tests.loop.test_loop import emulator, ended, spec_of, submit
from tests.loop.test_settling import dataset
from tests.support import NatsServer, connected, nats_server, serving, until


@dataclass(frozen=True)
class Told:
    """A span as it arrived."""

    service: str
    name: str
    trace: str
    span: str
    parent: str
    told: dict[str, str | int]
    seconds: float


@asynccontextmanager
async def collector(spans: list[Told]) -> AsyncIterator[str]:
    """Takes spans; its address."""

    async def take(request: web.Request) -> web.Response:
        for of_resource in ExportTraceServiceRequest.FromString(await request.read()).resource_spans:
            service = {one.key: one.value.string_value for one in of_resource.resource.attributes}["service.name"]
            for span in (span for scope in of_resource.scope_spans for span in scope.spans):
                told: dict[str, Any] = {
                    one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes
                }
                seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
                trace, own, parent = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                spans.append(Told(service, span.name, trace, own, parent, told, seconds))
        return web.Response(body=b"", content_type="application/x-protobuf")

    app = web.Application(client_max_size=2**26)
    app.add_routes([web.post("/v1/traces", take)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    finally:
        await runner.cleanup()


def traced_services(server: NatsServer, folder: Path, endpoint: str) -> list[Any]:
    common: dict[str, Any] = {"nats_url": server.url, "profile": "faults", "log_level": "WARNING"}

    def of(name: str) -> dict[str, Any]:
        return {**common, "replica": name, "state_dir": folder / name, "otlp_endpoint": endpoint}

    return [
        verdict(VerdictSettings(**of("verdict"))),
        synthesizer(SynthesizerSettings(**of("synthesizer"))),
        trainer(TrainerSettings(**of("trainer"), training_engine="fake")),
        inference(InferenceSettings(**of("inference"), inference_engine="fake")),
        judge(JudgeSettings(**of("exact"), evaluator="exact-match")),
        judge(JudgeSettings(**of("llm"), evaluator="llm-judge")),
    ]


async def test_a_round_is_one_trace_across_all_services(tmp_path: Path) -> None:
    spans: list[Told] = []
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path) as bus, emulator() as url, collector(spans) as endpoint:
            async with serving(*traced_services(server, tmp_path, endpoint)):
                migration = await submit(bus, spec_of(url, splits=SPLITS))
                view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
            assert isinstance(view.ended, MigrationCompleted), view.ended
    assert len(view.rounds) > 1
    of_trace: dict[str, list[Told]] = defaultdict(list)
    for span in spans:
        of_trace[span.trace].append(span)
    assert set(of_trace) == {trace_id(migration, number) for number in view.rounds}
    for number in view.rounds:
        told = of_trace[trace_id(migration, number)]
        assert {one.service.removeprefix("llamaduo-") for one in told} == {
            "synthesizer", "trainer", "inference", "evaluator-exact-match", "evaluator-llm-judge", "verdict",
        }  # fmt: skip
        ids = [one.span for one in told]
        assert len(set(ids)) == len(ids)
        (whole,) = [one for one in told if not one.parent]
        assert (whole.span, whole.name) == (root_span(migration, number), f"round {number}")
        assert {one.parent for one in told} - {""} <= set(ids), "each was set off by one that is there"
        assert all(one.told["llamaduo.migration"] == migration for one in told)
        assert {one.told["llamaduo.round"] for one in told} == {number}
        assert all(one.told["llamaduo.role"] for one in told if one is not whole)
        assert whole.seconds >= max(one.seconds for one in told)
        (training,) = [one for one in told if one.name == "trainer dataset.ready"]
        (caused,) = [one for one in told if one.span == training.parent]
        assert caused.service == "llamaduo-synthesizer", "the data came from there"


async def test_a_collector_that_is_away_holds_nothing_up(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        services = traced_services(server, tmp_path, "http://127.0.0.1:9/v1/traces")
        async with connected(server, tmp_path) as bus, emulator() as url:
            async with serving(*services):
                migration = await submit(bus, spec_of(url, splits=SPLITS))
                view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
            assert isinstance(view.ended, MigrationCompleted), view.ended


def test_what_a_failed_round_sets_off_belongs_to_the_next() -> None:
    failed = EvalFailed(migration="m-1", round=2, verdict="failed", marks={}, gate={}, rows=0)
    place = place_of(failed, {"traceparent": f"00-{trace_id('m-1', 2)}-{'a' * 16}-01"})
    assert (place.trace, place.round, place.parent) == (trace_id("m-1", 3), 3, root_span("m-1", 3))
    assert place.cause == (trace_id("m-1", 2), "a" * 16)


def test_an_event_that_names_no_round_stays_in_the_trace_of_its_publisher() -> None:
    lost = WorkFailed(
        migration="m-1", consumer="trainer", subject="s", job="j", error="e", attempts=1, dead_letter="d"
    )
    place = place_of(lost, {"traceparent": f"00-{trace_id('m-1', 4)}-{'b' * 16}-01"})
    assert (place.trace, place.round, place.parent, place.cause) == (trace_id("m-1", 4), 4, "b" * 16, None)


@pytest.mark.parametrize("header", [{}, {"traceparent": "nonsense"}, {"traceparent": f"00-{'c' * 32}-{'d' * 16}-01"}])
def test_a_header_of_somebody_else_changes_no_trace(header: dict[str, str]) -> None:
    place = place_of(dataset("m-1", 1), header)
    assert (place.trace, place.parent) == (trace_id("m-1", 1), root_span("m-1", 1))


def test_what_is_published_in_a_job_names_it_as_its_cause() -> None:
    event = dataset("m-1", 1)
    outside = traceparent(event)
    with job_on(event, None):
        inside = traceparent(event)
        place = place_of(event, {"traceparent": inside})
    assert outside == f"00-{trace_id('m-1', 1)}-{root_span('m-1', 1)}-01"
    assert inside != outside and inside.startswith(outside[:36]) and place.parent in inside
