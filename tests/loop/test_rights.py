"""Least rights on the bus, on a real server with the real file of users: each user, and all that it may not do.

What is forbidden is not listed here: it is everything that others may and this one may not, by the bus's own table.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

from deploy.nats import users as conf
from llamaduo.bus import topology
from llamaduo.bus.connection import Bus
from llamaduo.bus.dead_letters import find_dead, replay
from llamaduo.bus.denials import Denied
from llamaduo.bus.rights import OPERATOR, Rights, rights_of, somebody_elses, users
from llamaduo.errors import BadEvent, UserInputError
from llamaduo.event_parts import Candidate
from llamaduo.events import EvalScored, MigrationCompleted, encode_event, event_of, subject_for
from llamaduo.settings import BusSettings
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
from tests.loop.test_loop import emulator, ended, spec_of, submit
from tests.support import NatsServer, serving, until

STRANGER, STRANGER_CONTRACT = somebody_elses("stranger")
CONTRACTS = {**users(), STRANGER: STRANGER_CONTRACT}
RIGHTS: dict[str, Rights] = {user: rights_of(user, contract) for user, contract in CONTRACTS.items()}
STREAMS = [
    topology.EVENTS,
    topology.DEAD_LETTERS,
    f"OBJ_{topology.ARTIFACTS}",
    *(f"KV_{bucket}" for bucket in topology.BUCKETS),
]
DURABLES = sorted(durable.name for contract in CONTRACTS.values() for durable in contract.durables)
STREAM_ACTIONS = (
    "CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE", "MSG.GET", "SNAPSHOT", "RESTORE", "PEER.REMOVE",
    "LEADER.STEPDOWN",
)  # fmt: skip


def administration() -> Iterator[str]:
    """What only the operator may ask of the server."""
    yield from ("$JS.API.INFO", "$JS.API.STREAM.LIST", "$JS.API.STREAM.NAMES", "$JS.API.ACCOUNT.PURGE.$G")
    for stream in STREAMS:
        yield from (f"$JS.API.STREAM.{action}.{stream}" for action in STREAM_ACTIONS)
        yield from (f"$JS.API.CONSUMER.{action}.{stream}" for action in ("CREATE", "LIST", "NAMES"))
        for consumer in (*DURABLES, "anything"):
            yield f"$JS.API.CONSUMER.CREATE.{stream}.{consumer}"
            yield f"$JS.API.CONSUMER.CREATE.{stream}.{consumer}.eval.passed"
            yield f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{consumer}"
            yield from (
                f"$JS.API.CONSUMER.{action}.{stream}.{consumer}"
                for action in ("DELETE", "PAUSE", "RESET", "UNPIN", "LEADER.STEPDOWN")
            )


def one_of(pattern: str) -> str:
    """A subject that this right covers."""
    return pattern.replace("*", "x1").replace(">", "x1.x2.x3.x4.x5")


def covered(subject: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the rights covers this subject."""
    given = subject.split(".")
    for pattern in patterns:
        wanted = pattern.split(".")
        tail = wanted[-1] == ">"
        fits = len(given) >= len(wanted) if tail else len(given) == len(wanted)
        if fits and all(w in (g, "*", ">") for w, g in zip(wanted, given, strict=False)):
            return True
    return False


def forbidden(user: str) -> list[str]:
    """Every event, consumer, bucket, artifact and dead letter that is not this user's, and all administration."""
    tried = {one_of(pattern) for rights in RIGHTS.values() for pattern in rights.publish}
    tried |= set(topology.log_subjects()) - {subject for subject in topology.log_subjects() if "*" in subject}
    tried |= {f"$KV.{bucket}.somebody.key" for bucket in topology.BUCKETS}
    tried |= {f"$JS.API.DIRECT.GET.KV_{bucket}" for bucket in topology.BUCKETS}
    tried |= {f"$JS.API.DIRECT.GET.{topology.DEAD_LETTERS}", f"$JS.API.DIRECT.GET.{topology.EVENTS}.eval.passed"}
    tried |= {"eval.scored.somebody", "work.failed.somebody", "dead.somebody.eval.passed", "_INBOX_operator.x"}
    tried |= {*administration(), "$SYS.REQ.SERVER.PING", "anything.else"}
    return sorted(subject for subject in tried if not covered(subject, RIGHTS[user].publish))


def unheard(user: str) -> list[str]:
    """What this user may not listen to."""
    tried = {one_of(pattern) for rights in RIGHTS.values() for pattern in rights.subscribe}
    tried |= {">", "_INBOX.>", "_INBOX_operator.>", "$JS.>", "$KV.>", "$O.>", "$SYS.>", "progress.>", "dead.>"}
    return sorted(subject for subject in tried if not covered(subject, RIGHTS[user].subscribe))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """With the users of the repository, and one for a stranger's evaluator."""
    folder = tmp_path_factory.mktemp("rights")
    (folder / "users.conf").write_text(conf.render({"stranger": False}))
    passwords = {conf.password_variable(user): f"p-{user}" for user in [*RIGHTS, OPERATOR]}
    running = NatsServer(folder, more='include "users.conf"\n', **passwords)
    running.start()
    try:
        yield running
    finally:
        running.stop()


def settings_of(server: NatsServer, user: str, folder: Path) -> dict[str, Any]:
    return {
        "nats_url": server.url, "nats_user": user, "nats_password": f"p-{user}", "profile": "faults",
        "state_dir": folder, "log_level": "WARNING",
    }  # fmt: skip


@asynccontextmanager
async def bus_of(server: NatsServer, user: str, folder: Path) -> AsyncIterator[Bus]:
    bus = await Bus.connect(BusSettings(**settings_of(server, user, folder)), user)
    try:
        yield bus
    finally:
        await bus.close()


@pytest.fixture
async def operator(server: NatsServer, tmp_path: Path) -> AsyncIterator[Bus]:
    """On a bus that has been made, with a place for the stranger."""
    async with bus_of(server, OPERATOR, tmp_path) as bus:
        await topology.bootstrap(bus.js, profile="faults")
        await topology.add_evaluator(bus.js, "stranger", profile="faults")
        yield bus


async def refused(client: Client, said: list[str], subjects: list[str]) -> set[str]:
    """Which of these the server refuses to take from this client."""
    last = "nobody.may.publish.here"
    for subject in [*subjects, last]:
        await client.publish(subject, b"{}")

    # It answers in order: once this refusal has come, those of all before it have.
    async def heard() -> bool:
        return any(f'publish to "{last}"' in line for line in said)

    await until(heard, seconds=30, what="the refusal that must come")
    # nats-py tells of it in small letters.
    return {subject for subject in subjects if any(f'publish to "{subject.lower()}"' in line for line in said)}


@asynccontextmanager
async def client_of(server: NatsServer, user: str) -> AsyncIterator[tuple[Client, list[str]]]:
    """A plain client that is this user, and what the server complains of."""
    said: list[str] = []

    async def hear(error: Exception) -> None:
        said.append(str(error).lower())

    client = await nats.connect(
        server.url, user=user, password=f"p-{user}", inbox_prefix=f"_INBOX_{user}".encode(), error_cb=hear
    )
    try:
        yield client, said
    finally:
        await client.close()


@pytest.mark.parametrize("user", RIGHTS)
async def test_all_that_is_not_a_users_own_is_denied_and_stands_in_the_servers_log(
    operator: Bus, server: NatsServer, user: str
) -> None:
    tried = forbidden(user)
    assert len(tried) > 300
    others = [name for name in RIGHTS if name != user]
    for name in others:  # the table itself keeps them apart
        for durable in (one.name for one in CONTRACTS[name].durables):
            assert f"$JS.API.CONSUMER.MSG.NEXT.EVENTS.{durable}" in tried
            assert any(subject.startswith(f"$JS.ACK.EVENTS.{durable}.") for subject in tried)
            assert any(subject.startswith(f"$KV.work.{durable}.") for subject in tried)
        assert f"progress.{name}" in tried
    async with client_of(server, user) as (client, said):
        assert await refused(client, said, tried) == set(tried)
    log = (server.folder / "nats.log").read_text()
    for subject in tried:
        assert f'user:{user}" - Publish Violation - Subject "{subject}"' in log, subject


@pytest.mark.parametrize("user", RIGHTS)
async def test_a_users_own_is_allowed(operator: Bus, server: NatsServer, user: str) -> None:
    own = sorted(one_of(pattern) for pattern in RIGHTS[user].publish)
    async with client_of(server, user) as (client, said):
        assert await refused(client, said, own) == set()
        for pattern in RIGHTS[user].subscribe:
            await client.subscribe(pattern)
        await client.flush()
        assert not [line for line in said if "subscription" in line]


@pytest.mark.parametrize("user", RIGHTS)
async def test_a_user_hears_what_it_reads_and_no_replies_of_others(
    operator: Bus, server: NatsServer, user: str
) -> None:
    tried = unheard(user)
    async with client_of(server, user) as (client, said):
        for subject in tried:
            await client.subscribe(subject)

        async def all_refused() -> bool:
            return all(any(f'subscription to "{subject.lower()}"' in line for line in said) for subject in tried)

        await until(all_refused, seconds=30, what="every subscription refused")
        assert not [line for line in said if "publish" in line]


MARKS = EvalScored(
    migration="m-1",
    candidate=Candidate(kind="base"),
    split="test",
    shard=0,
    of=1,
    evaluator="exact-match",
    version="1",
)
END = MigrationCompleted(migration="m-1")


async def test_a_stranger_gives_no_verdict_and_no_marks_in_anothers_name(
    operator: Bus, server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bus_of(server, STRANGER, tmp_path) as bus:
        with caplog.at_level(logging.ERROR):
            for event in (END, MARKS):
                async with asyncio.timeout(3):  # told, not waited for
                    with pytest.raises(Denied, match=f"denies user {STRANGER} to publish on {subject_for(event)}"):
                        await bus.publish(event)
        assert subject_for(END) in caplog.text and subject_for(MARKS) in caplog.text
        assert bus.denials.recent is not None
        before = await operator.last_seq()
        # On its own subject, under a made-up id, it may say what it likes. Nobody takes it for another's.
        for number, lie in enumerate((END, MARKS)):
            await bus.republish("eval.scored.stranger", encode_event(lie), {"Nats-Msg-Id": f"made-up-{number}"})
            with pytest.raises(BadEvent):
                event_of("eval.scored.stranger", encode_event(lie))
        own = MARKS.model_copy(update={"evaluator": "stranger"})
        await bus.publish(own)
        read = [logged.event.id async for logged in operator.log(follow=False) if logged.seq > before]
        assert read == [own.id]


async def test_what_a_stranger_hides_under_anothers_id_hides_nothing(
    operator: Bus, server: NatsServer, tmp_path: Path
) -> None:
    """Ids are hashes of what was asked, so anybody can know them; and the server drops repeats of an id."""
    end = MigrationCompleted(migration="m-hidden")
    async with (
        bus_of(server, STRANGER, tmp_path / "s") as stranger,
        bus_of(server, "verdict", tmp_path / "v") as ours,
    ):
        assert await stranger.republish("eval.scored.stranger", b"{}", {"Nats-Msg-Id": end.id})
        assert await ours.publish(end)
    read = [logged.event async for logged in operator.log(follow=False) if logged.event.migration == "m-hidden"]
    assert read and {event.id for event in read} == {end.id}


async def test_the_operator_puts_no_strangers_letter_into_the_log(
    operator: Bus, server: NatsServer, tmp_path: Path
) -> None:
    forged = encode_event(MigrationCompleted(migration="m-forged"))
    async with bus_of(server, STRANGER, tmp_path) as bus:
        headers = {
            "Nats-Msg-Id": "forged", "llamaduo-dead-letter": "f0f0", "llamaduo-consumer": STRANGER,
            "llamaduo-subject": "migration.completed", "llamaduo-seq": "1",
        }  # fmt: skip
        await bus.publish_dead_letter(STRANGER, "responses.generated", forged, headers)
    with pytest.raises(UserInputError, match="the log has no such message"):
        await replay(operator, await find_dead(operator, "f0f0"))
    assert "m-forged" not in {logged.event.migration async for logged in operator.log(follow=False)}


async def test_a_password_may_be_in_a_file(operator: Bus, server: NatsServer, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("p-verdict\n")
    of: dict[str, Any] = {
        "nats_url": server.url,
        "nats_user": "verdict",
        "nats_password_file": file,
        "state_dir": tmp_path,
    }
    bus = await Bus.connect(BusSettings(**of), "verdict")
    assert await bus.last_seq() >= 0
    await bus.close()
    file.write_text("")
    for wrong, said in (
        (of, "LLAMADUO_NATS_PASSWORD_FILE: the bus's password is empty"),
        ({**of, "nats_password_file": tmp_path / "none"}, "LLAMADUO_NATS_PASSWORD_FILE: .* cannot be read"),
        ({**of, "nats_password_file": None}, "LLAMADUO_NATS_PASSWORD: there is a user and no password"),
        ({**of, "nats_password": "p", "nats_user": None}, "LLAMADUO_NATS_USER: there is a password and no user"),
    ):
        with pytest.raises(UserInputError, match=said):
            await Bus.connect(BusSettings(**wrong), "verdict")


async def test_no_bucket_is_wiped_by_one_message_nor_read_by_a_stranger(
    operator: Bus, server: NatsServer, tmp_path: Path
) -> None:
    jobs = await operator.bucket("work")
    await jobs.create("trainer.job", b"{}")
    async with bus_of(server, STRANGER, tmp_path) as bus:
        mine = await bus.bucket("work")
        await mine.create(f"{STRANGER}.job", b"{}")
        assert (await mine.get(f"{STRANGER}.job")) is not None
        with pytest.raises(Exception, match="rollup"):
            await bus.js.publish(f"$KV.work.{STRANGER}.job", b"", headers={"Nats-Rollup": "all"})
        for forbidden_act in (mine.get("trainer.job"), mine.create("trainer.other", b"{}"), bus.bucket("ledger")):
            async with asyncio.timeout(3):
                with pytest.raises(Denied):
                    await forbidden_act
    assert await jobs.get("trainer.job") is not None


async def test_a_service_under_anothers_user_ends_and_says_why(
    operator: Bus, server: NatsServer, tmp_path: Path
) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(Denied, match=f"denies user {STRANGER} to publish on .*consumer.info.events.verdict"):
            await verdict(VerdictSettings(**settings_of(server, STRANGER, tmp_path))).serve()


async def test_why_no_service_may_make_a_consumer(operator: Bus) -> None:
    """The name in the request's body is believed where its subject has none: permissions cannot tell them apart."""
    request = {"stream_name": topology.EVENTS, "config": {"name": "verdict", "ack_policy": "explicit"}}
    answer = await operator.client.request(
        f"$JS.API.CONSUMER.CREATE.{topology.EVENTS}", json.dumps(request).encode(), timeout=5
    )
    told = json.loads(answer.data)
    assert told.get("name") == "verdict" or "can not be updated" in told["error"]["description"]
    await topology.bootstrap(operator.js, profile="faults")


async def test_a_migration_runs_to_its_end_with_every_service_under_its_own_user(
    operator: Bus, server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def of(user: str) -> dict[str, Any]:
        return {**settings_of(server, user, tmp_path / user), "replica": user}

    services = [
        verdict(VerdictSettings(**of("verdict"))),
        synthesizer(SynthesizerSettings(**of("synthesizer"))),
        trainer(TrainerSettings(**of("trainer"), training_engine="fake")),
        inference(InferenceSettings(**of("inference"), inference_engine="fake")),
        judge(JudgeSettings(**of("evaluator-exact-match"), evaluator="exact-match")),
        judge(JudgeSettings(**of("evaluator-llm-judge"), evaluator="llm-judge")),
    ]
    with caplog.at_level(logging.ERROR):
        async with emulator() as url, serving(*services):
            migration = await submit(operator, spec_of(url))
            view = await until(lambda: ended(operator, migration), seconds=90, what="the end")
    assert isinstance(view.ended, MigrationCompleted), view.ended
    assert view.alias is not None
    assert {event.evaluator for event in view.of_type(EvalScored)} == {"exact-match", "llm-judge"}
    assert "denies" not in caplog.text
