"""Three NATS servers with everything kept three times: one may be lost at any time."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.errors import RetryableError
from llamaduo.events import MigrationCompleted
from llamaduo.migrations.fold import MigrationView
from llamaduo.settings import BusSettings
from tests.faults.run import SPLITS
from tests.loop.test_loop import all_services, emulator, ended, spec_of, submit
from tests.support import free_port, nats_binary, serving, until

STREAMS = ["EVENTS", "DEAD_LETTERS", "OBJ_artifacts", *(f"KV_{bucket}" for bucket in topology.BUCKETS)]


class Node:
    """One server of a cluster on this machine, which can be killed and started again."""

    def __init__(self, folder: Path, name: str, port: int, route: int, routes: list[int]) -> None:
        folder.mkdir(parents=True)
        self._folder, self.url = folder, f"nats://127.0.0.1:{port}"
        self._config = folder / "nats.conf"
        others = ", ".join(f'"nats://127.0.0.1:{other}"' for other in routes)
        self._config.write_text(
            f'server_name: {name}\nlisten: "127.0.0.1:{port}"\n'
            f'jetstream {{ store_dir: "{folder / "store"}" }}\n'
            f'cluster {{ name: test, listen: "127.0.0.1:{route}", routes: [{others}], no_advertise: true }}\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([nats_binary(), "-c", str(self._config)], stdout=log, stderr=log)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(20)


class Cluster:
    """Three nodes; `url` names all of them, as a service of ours has it."""

    def __init__(self, folder: Path) -> None:
        routes = [free_port() for _ in range(3)]
        self.nodes = [Node(folder / f"n{i}", f"n{i}", free_port(), routes[i], routes) for i in range(3)]
        self.url = ",".join(node.url for node in self.nodes)

    async def client(self, folder: Path) -> Bus:
        """A client, once JetStream has a leader."""
        bus = await Bus.connect(BusSettings(nats_url=self.url, profile="faults", state_dir=folder), "test")

        async def leads() -> bool:
            try:
                await bus.js.account_info()
            except Exception:
                return False
            return True

        await until(leads, seconds=60, what="a leader")
        return bus

    async def is_whole(self, bus: Bus) -> bool:
        """Whether every stream has three copies, all of them up to date."""
        try:
            infos = [await bus.js.stream_info(name) for name in STREAMS]
        except Exception:
            return False
        clusters = [info.cluster for info in infos]
        return all(
            one is not None and one.leader and [r.current for r in one.replicas or []] == [True, True]
            for one in clusters
        )


async def ended_in_time(bus: Bus, migration: str) -> MigrationView | None:
    """Its end, if the log can be read just now."""
    try:
        return await ended(bus, migration)
    except (RetryableError, TimeoutError):
        return None


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "cluster")
    for node in made.nodes:
        node.start()
    yield made
    for node in made.nodes:
        node.kill()


async def test_everything_is_kept_on_three_servers_and_stays_so(cluster: Cluster, tmp_path: Path) -> None:
    bus = await cluster.client(tmp_path)
    try:
        await topology.bootstrap(bus.js, profile="faults")
        assert {(await bus.js.stream_info(name)).config.num_replicas for name in STREAMS} == {1}
        await topology.bootstrap(bus.js, profile="faults", replicas=3)
        await topology.bootstrap(bus.js, profile="faults")
        assert {(await bus.js.stream_info(name)).config.num_replicas for name in STREAMS} == {3}
        await until(lambda: cluster.is_whole(bus), seconds=60, what="three copies of each")
    finally:
        await bus.close()


@pytest.mark.timeout(300)
async def test_a_migration_ends_though_one_server_after_the_other_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    bus = await cluster.client(tmp_path)
    try:
        await topology.bootstrap(bus.js, profile="faults", replicas=3)
        await until(lambda: cluster.is_whole(bus), seconds=60, what="three copies of each")
        services = all_services(cluster, tmp_path)  # type: ignore[arg-type]
        async with emulator(latency_ms=40) as url, serving(*services):
            killed = 0

            async def kill_in_turn() -> None:
                nonlocal killed
                while True:
                    await asyncio.sleep(6)
                    node = cluster.nodes[killed % 3]
                    node.kill()
                    killed += 1
                    await asyncio.sleep(2)
                    node.start()
                    await until(lambda: cluster.is_whole(bus), seconds=90, what="the server is back and up to date")

            killing = asyncio.create_task(kill_in_turn())
            try:
                # As many migrations as it takes to have a second server killed in the middle of one.
                for number in range(20):
                    migration = await submit(bus, spec_of(url, splits=SPLITS, name=f"triage-{number}"))
                    view = await until(lambda m=migration: ended_in_time(bus, m), seconds=200, what="the end")  # type: ignore[misc]
                    assert isinstance(view.ended, MigrationCompleted), view.ended
                    if killed >= 2:
                        break
            finally:
                killing.cancel()
            assert killed >= 2
    finally:
        await bus.close()
