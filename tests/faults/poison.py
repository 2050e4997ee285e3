"""Messages that are wrong in every way we could think of, drawn by a seed, for every subject of the log.

They are what anybody could publish, raw. Most are about migrations that nobody submitted. Those about the one that
goes on cannot be read, or are about shards that it never asks for: a forged event that looks right in every way is a
matter of rights, not of reading.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llamaduo.errors import BadEvent
from llamaduo.event_parts import CallCounts, Candidate
from llamaduo.events import (
    EVENT_TYPES,
    AdapterLoaded,
    AdapterRolledBack,
    BudgetRefused,
    CancelRequested,
    Event,
    MarksRequested,
    MigrationCancelled,
    MigrationStopped,
    PauseRequested,
    PromoteRequested,
    ResumeRequested,
    RollbackRequested,
    ServingRequested,
    TrafficCaptured,
    TrainingRequested,
    WorkFailed,
    WorkWithdrawn,
    encode_event,
    event_of,
)
from tests.simulated import START, learner, measured, ref, simulate, trained

Body = dict[str, Any]
WEIRD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**300, -(10**40), 0.5, 1e308, "", " ", "a\nb", "\u0000", "../../etc/passwd",
    "*", ">", "a b", "é\u202e\U0001f4a5", "x" * 5_000, "1", "NaN", [], [[]], {}, {"": None}, ["x"] * 50,
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-01T00:00:00", "obj:", "http://127.0.0.1:1/x",
)  # fmt: skip
WITH_ARTIFACTS = ("responses.requested", "references.requested", "responses.generated")
LARGE_BYTES = 100_000
LARGEST = 6
"""How many messages are as large as the bus takes: each is copied to the dead letters of several consumers."""


@dataclass(frozen=True)
class Poison:
    """One message."""

    kind: str
    subject: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def readable(self) -> bool:
        """Whether it is an event of the contract after all, on its own subject: then it is worked on as one."""
        try:
            event_of(self.subject, self.body)
        except BadEvent:
            return False
        return True


def samples() -> dict[str, Body]:
    """A valid body for every type of event."""
    adapter = trained(0).adapter
    candidate = Candidate(kind="adapter", round=0, adapter=adapter)
    shard: Body = {"migration": "m-1", "candidate": candidate, "split": "test", "shard": 0, "of": 2}
    command: Body = {"migration": "m-1", "command": "c-12345678"}
    serving = ServingRequested(
        migration="m-1", round=0, candidate=candidate, rows=ref("rows"), requests=2, concurrency=1
    )
    events: list[Event] = [
        *simulate(learner(0.2, 0.95), test=50, holdout=25),
        AdapterLoaded(migration="m-1", round=0, name="n", digest=adapter.digest, replica="r"),
        AdapterRolledBack(migration="m-1", round=0, alias="a", to=None, by="b", why="w"),
        BudgetRefused(migration="m-1", what="calls", limit=1, spent=1, job="j"),
        CancelRequested(**command), PauseRequested(**command), ResumeRequested(**command),
        PromoteRequested(**command, round=0), RollbackRequested(**command, round=0),
        MarksRequested(**shard, evaluator="exact-match", repeat=1, responses=ref("responses")),
        TrafficCaptured(migration="traffic-a", alias="a", traffic=ref("traffic"), rows=1, first=START, last=START),
        MigrationStopped(migration="m-1", rule="error"), MigrationCancelled(migration="m-1"),
        TrainingRequested(migration="m-1", round=0, base=1), serving, measured(serving, [0.1, 0.2]),
        WorkFailed(migration="m-1", consumer="trainer", subject="s", job="j", error="e", attempts=1),
        WorkWithdrawn(migration="m-1", consumer="trainer", job="j", calls=CallCounts()),
    ]  # fmt: skip
    bodies = {event.type: json.loads(encode_event(event.model_copy(update={"at": START}))) for event in events}
    assert set(bodies) == set(EVENT_TYPES)
    return bodies


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) within a JSON value."""
    found = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += _places(inner)
    return found


def _noise(draw: random.Random, _: Body) -> bytes:
    return draw.choice(
        [draw.randbytes(draw.randrange(400)), b"", b"null", b"[]", b'""', b"{}", b"0", b"\xef\xbb\xbf{}"]
    )


def _cut(draw: random.Random, body: Body) -> bytes:
    whole = json.dumps(body).encode()
    return whole[: draw.randrange(len(whole))]


def _wrong_letters(draw: random.Random, body: Body) -> bytes:
    whole = json.dumps(body | {"source": "HERE"}).encode()
    return whole.replace(b"HERE", draw.choice([b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"\x00", b"\n", b"\\x41"]))


def _no_number(draw: random.Random, body: Body) -> bytes:
    whole = json.dumps(body | {"submission": "HERE"}).encode()
    return whole.replace(b'"HERE"', draw.choice([b"NaN", b"-Infinity", b"1e999", b"1" + b"0" * 4_000, b"01", b"1.5"]))


def _nested(draw: random.Random, body: Body) -> bytes:
    depth = draw.choice([50, 150, 250, 20_000])
    opening, closing = draw.choice([(b"[", b"]"), (b'{"a":', b"}")])
    return json.dumps(body).encode()[:-1] + b',"more":' + opening * depth + b"0" + closing * depth + b"}"


def _twice(draw: random.Random, body: Body) -> bytes:
    again = json.dumps({draw.choice(sorted(body)): draw.choice(WEIRD)}).encode()
    return again[:-1] + b"," + json.dumps(body).encode()[1:-1] + b"," + again[1:]


def _another_type(draw: random.Random, body: Body) -> bytes:
    types = [*sorted(EVENT_TYPES), "x.y", "", "Migration.Requested"]
    return json.dumps(body | {"type": draw.choice([one for one in types if one != body["type"]])}).encode()


def _another_version(draw: random.Random, body: Body) -> bytes:
    return json.dumps(body | {"schema_version": draw.choice([0, -1, 99, "2", 1.5, None, 10**30])}).encode()


def _changed(draw: random.Random, body: Body) -> bytes:
    for _ in range(draw.randint(1, 3)):
        container, key = draw.choice(_places(body))
        if draw.random() < 0.3:
            container.pop(key)
        else:
            container[key] = copy.deepcopy(draw.choice(WEIRD))
        if not body:
            break
    return json.dumps(body).encode()


def _nobodys(_: random.Random, body: Body) -> bytes:
    return json.dumps(body).encode()


def _large(draw: random.Random, body: Body) -> bytes:
    return json.dumps(body | {"more": draw.choice(["x", "é", '"', "\\"]) * (LARGE_BYTES // 6)}).encode()


KINDS: Mapping[Callable[[random.Random, Body], bytes], int] = {
    _noise: 10, _cut: 10, _wrong_letters: 8, _no_number: 8, _nested: 6, _twice: 8, _another_type: 10,
    _another_version: 8, _changed: 24, _nobodys: 3, _large: 1,
}  # fmt: skip
"""How often each is drawn, as weights."""


def _headers(draw: random.Random, number: int, living: str) -> dict[str, str]:
    named = {"Nats-Msg-Id": f"poison-{number}", "content-type": "application/json"}
    more = draw.choice([
        {}, {"llamaduo-migration": living}, {"llamaduo-migration": "x" * 3_000}, {"llamaduo-migration": "../é"},
        {f"x-{i}": "y" * 200 for i in range(40)}, {"ce-type": "x.y", "ce-id": "z", "llamaduo-dead-letter": "1"},
    ])  # fmt: skip
    return draw.choice([{}, named]) | more


def _of_the_living(draw: random.Random, bodies: Mapping[str, Body], number: int, living: str) -> Poison:
    """Work on a shard that nobody asked for, whose artifact is not what its reference says."""
    subject = draw.choice(WITH_ARTIFACTS)
    body = copy.deepcopy(bodies[subject]) | {
        "migration": living, "candidate": {"kind": "nearest" if subject == "references.requested" else "base"},
        "shard": 100_000 + number, "of": 200_000,
    }  # fmt: skip
    wrong = draw.choice(["x" * 64, "0" * 64, draw.randbytes(32).hex()])
    reference: Body = {"uri": draw.choice([f"obj:{wrong}", "obj:", "file:///etc/passwd", "s3://x/y", wrong])}
    reference |= {"sha256": wrong, "size": draw.choice([0, 1, 10**6, 10**15])}
    body["responses" if subject == "responses.generated" else "rows"] = reference
    return Poison("artifact", subject, json.dumps(body).encode(), _headers(draw, number, living))


def poisons(count: int, seed: int, living: str, most: int) -> list[Poison]:
    """`count` messages; `living` is the migration that goes on, `most` bytes what the bus takes at once."""
    draw, bodies, made = random.Random(seed), samples(), list[Poison]()
    subjects = sorted(bodies)
    for number in range(count - LARGEST):
        if draw.random() < 0.02:
            made.append(_of_the_living(draw, bodies, number, living))
            continue
        [make] = draw.choices(list(KINDS), list(KINDS.values()))
        subject, seed_of_body = draw.choice(subjects), draw.random()

        def body_for(migration: str) -> bytes:
            own = copy.deepcopy(bodies[subject]) | {"migration": migration}  # noqa: B023
            return make(random.Random(seed_of_body), own)  # noqa: B023

        poison = Poison(make.__name__.strip("_"), subject, body_for(living), _headers(draw, number, living))
        if poison.readable or draw.random() < 0.5:
            poison = Poison(poison.kind, subject, body_for(f"nobody-{number}"), poison.headers)
        made.append(poison)
    for number in range(LARGEST):
        subject = subjects[number * 4]
        made.append(Poison("largest", subject, b"x" * (most - draw.randrange(64, 300)), {}))
    draw.shuffle(made)
    return made
