"""`gate.serving` in a real loop: the adapter that will be served is measured where it will be, then served."""

from __future__ import annotations

from pathlib import Path

from llamaduo.events import AdapterLoaded, AdapterPromoted, MigrationCompleted, ResponsesGenerated, ServingMeasured
from llamaduo.migrations.serving_gate import carries
from tests.loop.test_loop import all_services, emulator, ended, spec_of, submit
from tests.support import connected, nats_server, serving, until


async def test_a_round_is_measured_as_served_before_it_passes(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        async with connected(server, tmp_path) as bus, emulator() as url, serving(*all_services(server, tmp_path)):
            spec = spec_of(
                url,
                gate={"absolute": {"exact-match.exact": 0.32}, "serving": {"latency_p95_s": 5, "requests": 250}},
                evaluators=["exact-match"],
                splits={"train": 60, "validation": 20, "test": 200, "holdout": 25},
                budgets={"rounds": 1},
            )
            migration = await submit(bus, spec)
            view = await until(lambda: ended(bus, migration), seconds=90, what="the end")
    assert isinstance(view.ended, MigrationCompleted), view.ended
    (measured,), (promoted,) = view.of_type(ServingMeasured), view.of_type(AdapterPromoted)
    assert (measured.name, measured.replica) == (promoted.name, "inference")
    assert measured.candidate.adapter == promoted.adapter
    assert measured.name in {loaded.name for loaded in view.of_type(AdapterLoaded)}
    assert len(measured.seconds) == measured.asked == 250 and 0 < measured.wall_s < 60
    assert view.passed is not None and carries(measured) in view.passed.note and measured.at <= view.passed.at
    # Nobody marks what was only timed.
    shards = [e for e in view.of_type(ResponsesGenerated) if e.candidate.key == "round-0" and e.split == "test"]
    assert sum(e.rows for e in shards) <= 200
