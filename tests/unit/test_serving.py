"""What an alias means stays served: through changes of the engine, and after a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamaduo.artifacts import ArtifactStore, ObjectStoreArtifacts, put_bytes, read_bytes
from llamaduo.bus.connection import Bus
from llamaduo.bus.desk import Work
from llamaduo.datasets import Message, dump_rows, load_shard, make_row
from llamaduo.errors import AdapterRejected, PermanentError
from llamaduo.event_parts import Adapter, Candidate
from llamaduo.events import (
    AdapterLoaded,
    AdapterPromoted,
    AdapterRolledBack,
    AdapterTrained,
    Event,
    MigrationStopped,
    ResponsesGenerated,
    ResponsesRequested,
)
from llamaduo.migrations.aliases import Aliases
from llamaduo.migrations.fold import MigrationView, fold
from services.inference.app import Inference
from services.inference.engine import AdapterFiles, Generation, GenerationRequest, served_name
from services.inference.settings import InferenceSettings
from tests.adapter_files import write_adapter
from tests.simulated import requested, trained


class Recorded:
    """An engine that remembers what it is asked; each has an address of its own."""

    def __init__(self, base: str, rank: int, number: int) -> None:
        self.base, self.rank, self.base_url = base, rank, f"http://engine-{number}/v1"
        self.names: list[str] = []
        self.pinned: frozenset[str] = frozenset()
        self.up = False
        self.answers: list[Generation] = []

    async def start(self) -> None:
        self.up = True

    async def stop(self) -> None:
        self.up = False

    def healthy(self) -> bool:
        return self.up

    async def metrics(self) -> str:
        return ""

    def pin(self, names: frozenset[str]) -> None:
        self.pinned = names

    async def load(self, adapter: AdapterFiles) -> str:
        if adapter.rank is not None and adapter.rank > self.rank:
            raise AdapterRejected(f"rank {adapter.rank} is more than {self.rank}")
        self.names.append(adapter.name)
        return adapter.name

    async def unload(self, name: str) -> None:
        self.names.remove(name)

    async def generate(self, prompts: Sequence[GenerationRequest]) -> list[Generation]:
        return self.answers


@dataclasses.dataclass
class Replica:
    """An inference service without a bus: what it published, and every engine it started."""

    inference: Inference
    store: ArtifactStore
    engines: list[Recorded]
    published: list[Event]
    bus: Bus

    async def tick(self, *under_way: MigrationView) -> None:
        await self.inference.hold(under_way)
        await self.inference.adapters.load_aliases(self.bus)

    async def answer(self, asked: ResponsesRequested) -> ResponsesGenerated:
        """A shard of a migration whose submission is the first thing known of it."""

        async def view(migration: str) -> MigrationView:
            return fold([requested(migration, base_model=self.engines[-1].base)])

        work = cast("Work", SimpleNamespace(view=view, bus=self.bus))
        (generated,) = await self.inference.answer(asked, work)
        assert isinstance(generated, ResponsesGenerated)
        return generated

    async def work(self, base: str, rank: int = 8) -> None:
        """Somebody's migration needs the engine on this base model."""
        async with self.inference._engine_on(base, rank):
            pass

    def addresses(self, alias: Alias) -> list[str]:
        loaded = [event for event in self.published if isinstance(event, AdapterLoaded)]
        return [event.url for event in loaded if event.name == alias.name]

    @property
    def problem(self) -> str | None:
        return self.inference.adapters.problem()


@dataclasses.dataclass(frozen=True)
class Alias:
    """A promoted adapter on the log."""

    name: str
    events: tuple[Any, ...]


def start(tmp_path: Path, **settings: Any) -> Replica:
    given = InferenceSettings(state_dir=tmp_path / "state", replica="one", return_after_s=0, **settings)
    engines: list[Recorded] = []
    published: list[Event] = []
    store = ObjectStoreArtifacts(f"file://{tmp_path}/store")

    async def make(base: str, rank: int) -> Recorded:
        engines.append(Recorded(base, rank, len(engines) + 1))
        return engines[-1]

    async def artifacts() -> ArtifactStore:
        return store

    async def publish(event: Event) -> bool:
        published.append(event)
        return True

    bus = cast("Bus", SimpleNamespace(artifacts=artifacts, publish=publish))
    return Replica(Inference(given, make), store, engines, published, bus)


async def promoted(replica: Replica, tmp_path: Path, base: str, *, rank: int = 8) -> Alias:
    """An alias whose adapter is in the store, as the log has it; nothing has loaded it here."""
    migration = f"m-{base}"
    files = write_adapter(tmp_path / migration, {"model.q": (2, 2)}, rank=rank, seed=len(base))
    refs = {path.name: await replica.store.put_file(path, "") for path in files.folder.iterdir()}
    adapter = Adapter(digest=files.digest, files=refs, base_model=base, base_digest="0" * 64, rank=rank)
    name = served_name(migration, 0, files.digest)
    submission = requested(migration, base_model=base, name=f"alias-{base}")
    promotion = AdapterPromoted(
        migration=migration, round=0, alias=f"alias-{base}", adapter=adapter, name=name, by="a", why="b"
    )
    for event in (submission, promotion):
        replica.inference.aliases.take(event)
    return Alias(name, (submission, promotion))


def stopped(migration: str) -> MigrationStopped:
    return MigrationStopped(migration=migration, rule="rounds", reason="none passed")


async def test_a_higher_rank_on_the_same_base_brings_the_alias_back_at_its_new_address(tmp_path: Path) -> None:
    replica = start(tmp_path)
    alias = await promoted(replica, tmp_path, "small", rank=16)
    await replica.tick()
    await replica.work("small", rank=32)
    assert replica.engines[-1].names == []
    assert "alias-small is not loaded yet" in (replica.problem or "")
    await replica.tick()
    assert replica.engines[-1].names == [alias.name]
    assert replica.addresses(alias) == ["http://engine-1/v1", "http://engine-2/v1"]
    assert replica.engines[-1].pinned == {alias.name}
    assert replica.problem is None
    await replica.tick()
    assert len(replica.addresses(alias)) == 2


async def test_work_of_a_lower_rank_never_starts_an_engine_too_small_for_the_alias(tmp_path: Path) -> None:
    replica = start(tmp_path)
    await promoted(replica, tmp_path, "small", rank=16)
    await replica.work("small", rank=8)
    await replica.tick()
    assert (len(replica.engines), replica.problem) == (1, None)


async def test_another_base_takes_the_engine_and_gives_it_back(tmp_path: Path) -> None:
    replica = start(tmp_path)
    alias = await promoted(replica, tmp_path, "small")
    await replica.tick()
    other = fold([requested("m-2", base_model="large")])
    await replica.work("large")
    await replica.tick(other)
    assert replica.inference.room.base == "large"
    assert replica.problem == "alias alias-small is not served while the engine holds large: it needs small"
    await replica.tick()
    assert replica.engines[-1].base == "small"
    assert replica.problem is None
    assert replica.addresses(alias) == ["http://engine-1/v1", "http://engine-3/v1"]


async def test_with_an_engine_that_is_not_shared_other_work_is_refused_by_name(tmp_path: Path) -> None:
    replica = start(tmp_path, share_engine=False)
    await promoted(replica, tmp_path, "small")
    await replica.tick()
    with pytest.raises(PermanentError, match=r"alias-small on small.*LLAMADUO_SHARE_ENGINE"):
        await replica.work("large")
    await replica.work("small", rank=64)
    assert replica.inference.room.base == "small"


async def test_a_restart_with_aliases_on_two_bases_starts_one_engine_and_says_what_is_missing(tmp_path: Path) -> None:
    replica = start(tmp_path)
    older = await promoted(replica, tmp_path, "small")
    newer = await promoted(replica, tmp_path, "large")
    await replica.tick()
    await replica.tick()
    assert [engine.base for engine in replica.engines] == ["large"]
    assert replica.addresses(older) == []
    assert replica.addresses(newer) == ["http://engine-1/v1"]
    assert replica.problem == "alias alias-small is not served while the engine holds large: it needs small"


async def test_an_alias_that_cannot_be_loaded_does_not_keep_others_back_and_is_named(tmp_path: Path) -> None:
    replica = start(tmp_path, max_rank=8)
    refused = await promoted(replica, tmp_path, "small", rank=64)
    replica.inference.aliases.now["other"] = dataclasses.replace(
        replica.inference.aliases.now["alias-small"],
        promoted=refused.events[1].model_copy(
            update={
                "alias": "other",
                "name": "x",
                "adapter": refused.events[1].adapter.model_copy(update={"rank": 8}),
            }
        ),
    )
    await replica.tick()
    assert replica.engines[-1].names == ["x"]
    assert replica.problem == "alias alias-small is not loaded yet: rank 64 is more than 8"
    assert replica.addresses(refused) == []


async def test_an_engine_is_started_for_a_migration_before_it_asks(tmp_path: Path) -> None:
    replica = start(tmp_path)
    await replica.tick(fold([requested("m-1", base_model="small", recipe={"rank": 4})]))
    assert [(engine.base, engine.rank) for engine in replica.engines] == [("small", 4)]


def of(promotion: AdapterPromoted, migration: str, number: int) -> AdapterTrained:
    """That adapter, as trained in another migration's round."""
    return trained(number, migration).model_copy(update={"adapter": promotion.adapter})


async def test_what_an_ended_migration_left_is_unloaded_and_removed(tmp_path: Path) -> None:
    replica = start(tmp_path)
    submission, promotion = (await promoted(replica, tmp_path, "small")).events
    adapters, state = replica.inference.adapters, tmp_path / "state"
    back = AdapterRolledBack(migration=submission.migration, round=0, alias="alias-small", to=None, by="", why="")
    for event in (of(promotion, submission.migration, 0), back):
        adapters.take(event)
    await replica.work("small")
    await adapters.load(replica.engines[-1], replica.store, promotion.adapter, promotion.name)
    (state / "served" / promotion.name).mkdir(parents=True)
    await adapters.remove_ended()
    assert replica.engines[-1].names == [promotion.name]
    adapters.take(stopped(submission.migration))
    await adapters.remove_ended()
    assert replica.engines[-1].names == []
    assert list((state / "adapters").iterdir()) == []
    # The engine removes its own copy once it has unloaded it; one of an engine that is gone is removed here.
    assert (state / "served" / promotion.name).is_dir()
    again = start(tmp_path)
    for replayed in (stopped(submission.migration), of(promotion, submission.migration, 0)):
        again.inference.adapters.take(replayed)
    await again.inference.adapters.remove_ended()
    assert list((state / "served").iterdir()) == []


async def test_what_an_alias_or_another_migration_needs_stays(tmp_path: Path) -> None:
    replica = start(tmp_path)
    submission, promotion = (await promoted(replica, tmp_path, "small")).events
    adapters = replica.inference.adapters
    for event in (of(promotion, submission.migration, 0), stopped(submission.migration)):
        adapters.take(event)
    await replica.tick()
    await adapters.remove_ended()
    assert replica.engines[-1].names == [promotion.name]
    adapters.take(of(promotion, "m-other", 1))
    adapters.take(stopped("m-other"))
    await adapters.remove_ended()
    assert (tmp_path / "state" / "adapters" / promotion.adapter.digest).is_dir()


async def test_an_adapter_that_is_loaded_to_be_promoted_after_the_end_is_not_removed(tmp_path: Path) -> None:
    replica = start(tmp_path)
    submission, promotion = (await promoted(replica, tmp_path, "small")).events
    adapters = replica.inference.adapters
    adapters.aliases = replica.inference.aliases = Aliases()
    for event in (of(promotion, submission.migration, 0), stopped(submission.migration)):
        adapters.take(event)
    await replica.work("small")
    await adapters.load(replica.engines[-1], replica.store, promotion.adapter, promotion.name)
    await adapters.remove_ended()
    assert replica.engines[-1].names == [promotion.name]


async def test_answers_say_how_many_prompts_were_too_long_and_how_many_answers_were_cut(tmp_path: Path) -> None:
    replica = start(tmp_path)
    await replica.work("small", rank=16)
    rows = [make_row([Message(role="user", content=c), Message(role="assistant", content="yes")]) for c in "abc"]
    replica.engines[-1].answers = [
        Generation(rows[0].id, ["yes"], ["length"], 1, 1),
        Generation(rows[1].id, [""], ["prompt_too_long"], 0, 0),
        Generation(rows[2].id, ["no"], ["stop"], 1, 1),
    ]
    stored = await put_bytes(replica.store, dump_rows(rows), "application/x-ndjson")
    generated = await replica.answer(
        ResponsesRequested(
            migration="m-1", candidate=Candidate(kind="base"), split="test", shard=0, of=1, rows=stored, size=3
        )
    )
    assert (generated.rows, generated.too_long, generated.cut) == (3, 1, 1)
    assert generated.responses is not None
    shard = load_shard(await read_bytes(replica.store, generated.responses))
    assert [row.answers for row in shard] == [["yes"], [None], ["no"]]
