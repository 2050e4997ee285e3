"""The promises of docs/guarantees.md, held against what a run left behind. Knows JSON and nothing of the product.

Each check takes the evidence and tells what is wrong, in words; `violations` runs them all.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tests.faults.evidence import Evidence, Json, Message, claimed

MARK = "llamaduo-fault"
"""Header of what the harness itself has put into the log."""
ENDS = ("migration.completed", "migration.stopped", "migration.cancelled")
DECISIONS = ("eval.failed", "eval.passed")


def own(found: Evidence) -> list[Message]:
    """The log without what the harness published a second time."""
    return [message for message in found.log if MARK not in message.headers]


def candidate_of(body: Json) -> str:
    """Who answered, in one word that says the same as the whole record."""
    who = body["candidate"]
    return f"{who['kind']}-{who.get('round')}-{who.get('base', 0)}"


def shard_of(body: Json) -> tuple[Any, ...]:
    """Which shard of what."""
    return (body["migration"], candidate_of(body), body["split"], body["shard"], body["of"])


def event_ids(found: Evidence) -> list[str]:
    """Every event once, under the id it says it has."""
    counts = Counter(message.body["id"] for message in own(found))
    problems = [f"event {id_} is {count} times in the log" for id_, count in counts.items() if count > 1]
    return problems + [
        f"event {message.seq} has id {message.body['id']} and was sent under {message.headers.get('Nats-Msg-Id')}"
        for message in own(found)
        if message.headers.get("Nats-Msg-Id") != message.body["id"]
    ]


def question(body: Json) -> tuple[Any, ...] | None:
    """What an event answers, by what it says and not by its id; None where it may be said any number of times."""
    kind, migration = body["type"], body["migration"]
    if kind in ENDS:
        return ("end", migration)
    if kind in DECISIONS:
        return ("decision", migration, body["round"])
    if kind in ("responses.requested", "references.requested", "responses.generated"):
        return (kind, *shard_of(body))
    if kind == "marks.requested":
        return (kind, *shard_of(body), body["evaluator"], body["repeat"])
    if kind == "eval.scored":
        return (kind, *shard_of(body), body["evaluator"], body["repeat"])
    if kind in ("dataset.ready", "adapter.promoted", "migration.requested"):
        return (kind, migration, body.get("round"))
    if kind in ("adapter.trained", "training.requested"):
        return (kind, migration, body["round"], body.get("base", 0))
    return None


def effects(found: Evidence) -> list[str]:
    """Each job's effect once: no question is answered twice, whatever the answers' ids."""
    asked = Counter(key for message in own(found) if (key := question(message.body)) is not None)
    return [f"{count} times: {key}" for key, count in asked.items() if count > 1]


def marks(found: Evidence) -> list[str]:
    """Each row marked once per evaluator, candidate, split, repeat, sample and metric."""
    marked = Counter(
        (*shard_of(body)[:3], body["evaluator"], body["repeat"], mark["row"], mark.get("sample", 0), mark["metric"])
        for body in bodies(found, "eval.scored")
        for mark in body["marks"]
    )
    return [f"marked {count} times: {key}" for key, count in marked.items() if count > 1]


def announced(found: Evidence) -> list[str]:
    """What a job's record says came of it is what the log has.

    Only that an adapter is loaded is said by many jobs, and stands as the first of them said it.
    """
    logged = {message.body["id"]: message.body for message in own(found)}
    problems = []
    for key, record in found.buckets.get("work", {}).items():
        for result in record["results"] if record["state"] == "done" else []:
            body = json.loads(result)
            if body["id"] not in logged:
                problems.append(f"job {key} has a result that was never announced: {body['type']}")
            elif logged[body["id"]] != body and body["type"] != "adapter.loaded":
                problems.append(f"job {key}: {body['type']} in the log is not what was committed")
    return problems


def stored(found: Evidence) -> list[str]:
    """Every artifact that an event names is stored, and its bytes have that digest and size."""
    problems = []
    for name, (sha256, size) in found.objects.items():
        if sha256 != name:
            problems.append(f"object {name} holds {size} bytes with digest {sha256}")
    for message in own(found):
        for ref in _refs(message.body):
            name = ref["uri"].removeprefix("obj:")
            if name != ref["sha256"] or found.objects.get(name) != (ref["sha256"], ref["size"]):
                problems.append(
                    f"{message.body['type']} {message.seq} names {ref}, stored: {found.objects.get(name)}"
                )
    return problems


def digests(found: Evidence) -> list[str]:
    """A dataset's digest is that of its rows as stored, an adapter's that of its files as stored."""
    problems = []
    for body in bodies(found, "dataset.ready"):
        splits = {
            # A row of nobody's making has no lineage; in its digest that is written out.
            split: [{"lineage": None} | json.loads(line) for line in found.files.get(ref["sha256"], b"").splitlines()]
            for split, ref in body["splits"].items()
        }
        digest = _digest({split: _digest(sorted(map(_canonical, rows))) for split, rows in splits.items()})
        if digest != body["digest"]:
            problems.append(f"the dataset of round {body['round']} is {digest}, told: {body['digest']}")
        counts = {split: len(rows) for split, rows in splits.items()}
        if counts != body["rows"]:
            problems.append(f"the dataset of round {body['round']} has {counts} rows, told: {body['rows']}")
    for body in bodies(found, "adapter.trained"):
        files = body["adapter"]["files"]
        listing = "".join(
            f"{name}\n{found.objects.get(files[name]['sha256'], ('', 0))[0]}\n" for name in sorted(files)
        )
        if hashlib.sha256(listing.encode()).hexdigest() != body["adapter"]["digest"]:
            problems.append(f"the adapter of round {body['round']} is not its files")
    return problems


def asked_for(found: Evidence) -> list[str]:
    """Every answer, mark and adapter belongs to a request that stands before it."""
    problems, seen = [], set[tuple[Any, ...]]()
    for message in own(found):
        body, kind = message.body, message.body["type"]
        if kind in ("responses.requested", "references.requested", "responses.generated"):
            seen.add(("answers" if kind == "responses.generated" else "wish", *shard_of(body)))
        if kind == "marks.requested":
            seen.add(("again", *shard_of(body), body["evaluator"], body["repeat"]))
        if kind in ("dataset.ready", "migration.requested"):
            seen.add((kind, body["migration"], body.get("round")))
        needed: tuple[Any, ...] | None = None
        if kind == "responses.generated":
            needed = ("wish", *shard_of(body))
        elif kind == "eval.scored" and body["repeat"]:
            needed = ("again", *shard_of(body), body["evaluator"], body["repeat"])
        elif kind == "eval.scored":
            needed = ("answers", *shard_of(body))
        elif kind == "adapter.trained" or kind in DECISIONS:
            needed = ("dataset.ready", body["migration"], body["round"])
        if needed is not None and needed not in seen:
            problems.append(f"nobody had asked for {kind} {message.seq}: {needed}")
    return problems


def ends(found: Evidence) -> list[str]:
    """Every migration ends once, and nothing is decided or asked for after that."""
    problems, ended = [], Counter[str]()
    for message in own(found):
        body = message.body
        if body["type"] in (*DECISIONS, "responses.requested", "references.requested", "dataset.ready"):
            if ended[body["migration"]]:
                problems.append(f"{body['type']} {message.seq} comes after the end")
        elif body["type"] in ENDS:
            ended[body["migration"]] += 1
    asked = {body["migration"] for body in bodies(found, "migration.requested")}
    return problems + [f"migration {name} has {ended[name]} ends" for name in asked if ended[name] != 1]


def paid(found: Evidence) -> list[str]:
    """The emulator answered each call once, and once more for each time that the ledger lists it as bought again."""
    ledger = found.buckets.get("ledger", {})
    listed = {key for name, keys in ledger.items() if name.startswith("rebought.") for key in keys}
    problems = []
    for key, count in found.emulator.items():
        again = sum(bool(one.get("rebought")) for one in ledger.get(key, {}).get("attempts", []))
        if count["completed"] > 1 + again:
            problems.append(f"call {key} was paid {count['completed']} times, bought again by the ledger: {again}")
        if again and key not in listed:
            problems.append(f"call {key} was bought again and is not listed")
        if count["completed"] and not ledger.get(key, {}).get("attempts"):
            problems.append(f"call {key} was paid and never written down")
    return problems


def told(found: Evidence) -> list[str]:
    """The calls that a job's events say it made are the answers the ledger has bought for it; none is left out."""
    problems: list[str] = []
    bought = Counter[str]()
    for name, entry in found.buckets.get("ledger", {}).items():
        if isinstance(entry, dict) and entry.get("answer"):
            bought[entry["answer"]["job"]] += 1
            if found.emulator.get(name, {}).get("completed", 0) < 1:
                problems.append(f"the ledger has an answer to {name} that the emulator never gave")
    made = Counter[str]()
    for key, record in found.buckets.get("work", {}).items():
        for result in record["results"] if record["state"] == "done" else []:
            made[key.rpartition(".")[2]] += json.loads(result).get("calls", {}).get("made", 0)
    return problems + [
        f"events say that job {job} made {made[job]} calls, the ledger has {bought[job]} answers for it"
        for job in sorted(made | bought)
        if made[job] != bought[job]
    ]


def budgets(found: Evidence) -> list[str]:
    """No budget is passed: by the emulator's count, nor by what the door has settled and holds."""
    problems = []
    calls = sum(count["completed"] for count in found.emulator.values())
    for body in bodies(found, "migration.requested"):
        limits = body["spec"]["budgets"]
        account = found.buckets.get("budget", {}).get(f"budget.{body['migration']}", {})
        amounts = [account.get("settled", {}), *account.get("held", {}).values()]
        for what in ("calls", "tokens", "money"):
            limit = limits.get(what)
            total = sum(amount.get(what, 0) for amount in amounts)
            if limit is not None and total > limit + 1e-9:
                problems.append(f"{total:g} {what} are settled and held, allowed: {limit:g}")
        if limits.get("calls") is not None and calls > limits["calls"]:
            problems.append(f"{calls} calls were paid, allowed: {limits['calls']}")
    return problems


def nothing_claimed(found: Evidence) -> list[str]:
    """After the end nobody has a job in hand, but those whose lease has run out."""
    return [f"job {key} is still claimed" for key in claimed(found.buckets.get("work", {}), found.taken)]


def dead_letters(found: Evidence) -> list[str]:
    """Each dead letter is told of in an event, and each such event has its letter."""
    letters = {message.headers.get("llamaduo-dead-letter") for message in found.dead}
    said = {body["dead_letter"] for body in bodies(found, "work.failed") if body["dead_letter"]}
    return [f"dead letter {letter} is told of nowhere" for letter in letters - said] + [
        f"an event tells of dead letter {letter}, which is not there" for letter in said - letters
    ]


CHECKS: tuple[Callable[[Evidence], list[str]], ...] = (
    event_ids,
    effects,
    marks,
    announced,
    stored,
    digests,
    asked_for,
    ends,
    paid,
    told,
    budgets,
    nothing_claimed,
    dead_letters,
)


def violations(found: Evidence) -> list[str]:
    """Everything that is wrong, each with the check that says so."""
    return [f"{check.__name__}: {problem}" for check in CHECKS for problem in check(found)]


def bodies(found: Evidence, kind: str) -> Iterator[Json]:
    """The log's own events of one type."""
    return (message.body for message in own(found) if message.body["type"] == kind)


def _refs(value: Any) -> Iterator[Json]:
    if isinstance(value, dict):
        if {"uri", "sha256", "size"} <= value.keys():
            yield value
        for inner in value.values():
            yield from _refs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _refs(inner)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()
