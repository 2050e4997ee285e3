"""Each check of the harness catches the violation it is there for; a sound run breaks none."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults import checker
from tests.faults.checker import MARK, violations
from tests.faults.evidence import Evidence, Json, Message

SERVICE = {"kind": "service"}
ROUND_0 = {"kind": "adapter", "round": 0, "base": 0}


def sound() -> Evidence:
    """A small migration that kept every promise."""
    found = Evidence(taken=1_000.0)
    rows: list[Json] = [{"id": f"r{n}", "messages": [], "lineage": None} for n in range(3)]
    train = "".join(json.dumps({"id": row["id"], "messages": []}) + "\n" for row in rows).encode()
    weights = b"weights"

    def say(kind: str, **fields: Any) -> Json:
        seq = len(found.log) + 1
        body = {"type": kind, "id": f"id{seq}", "migration": "m", **fields}
        found.log.append(Message(seq, kind, {"Nats-Msg-Id": f"id{seq}"}, body, 900.0 + seq))
        return body

    def store(body: bytes) -> Json:
        name = hashlib.sha256(body).hexdigest()
        found.objects[name], found.files[name] = (name, len(body)), body
        return {"uri": f"obj:{name}", "sha256": name, "size": len(body)}

    def finish(role: str, job: Json, *results: Json) -> None:
        done = {"state": "done", "until": 0.0, "results": [json.dumps(result) for result in results]}
        found.buckets.setdefault("work", {})[f"{role}.{job['id']}"] = done

    def digest(value: Any) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    lines = sorted(json.dumps(row, sort_keys=True, separators=(",", ":")) for row in rows)
    shard = {"split": "test", "shard": 0, "of": 1}
    asked = say("migration.requested", spec={"budgets": {"calls": 10, "tokens": None, "money": None}})
    data = say(
        "dataset.ready",
        round=0,
        splits={"train": store(train)},
        rows={"train": 3},
        digest=digest({"train": digest(lines)}),
    )
    finish("synthesizer", asked, data)
    listing = f"adapter.safetensors\n{hashlib.sha256(weights).hexdigest()}\n"
    adapter = {
        "files": {"adapter.safetensors": store(weights)},
        "digest": hashlib.sha256(listing.encode()).hexdigest(),
    }
    finish("trainer", data, say("adapter.trained", round=0, base=0, adapter=adapter))
    wish = say("references.requested", candidate=SERVICE, **shard)
    answers = say("responses.generated", candidate=SERVICE, responses=store(b"answers"), calls={"made": 1}, **shard)
    finish("synthesizer-references", wish, answers)
    say("responses.requested", candidate=ROUND_0, **shard)
    given = say("responses.generated", candidate=ROUND_0, responses=store(b"others"), calls={"made": 0}, **shard)
    marks = [{"row": f"r{n}", "sample": 0, "metric": "exact", "value": 1.0} for n in range(3)]
    scored = say(
        "eval.scored", candidate=ROUND_0, evaluator="llm-judge", repeat=0, marks=marks, calls={"made": 1}, **shard
    )
    finish("evaluator-llm-judge", given, scored)
    say("work.failed", dead_letter="letter")
    found.dead.append(Message(1, "dead.x", {"llamaduo-dead-letter": "letter"}, {}, 950.0))
    say("eval.passed", round=0)
    say("migration.completed")
    found.buckets["ledger"] = {
        "call-a": {"attempts": [{}], "answer": {"job": wish["id"]}},
        "call-b": {"attempts": [{}, {"rebought": True}], "answer": {"job": given["id"]}},
        "rebought.m": ["call-b"],
    }
    found.buckets["budget"] = {"budget.m": {"settled": {"calls": 3}, "held": {}}}
    found.emulator = {"call-a": {"arrived": 1, "completed": 1}, "call-b": {"arrived": 2, "completed": 2}}
    return found


def log_again(found: Evidence, kind: str, **changes: Any) -> None:
    """The first event of this type once more, as something else would have said it."""
    first = next(message for message in found.log if message.body["type"] == kind)
    body = copy.deepcopy(first.body) | {"id": "another"} | changes
    found.log.append(Message(len(found.log) + 1, kind, {"Nats-Msg-Id": body["id"]}, body, 999.0))


def first(found: Evidence, kind: str) -> Json:
    return next(message.body for message in found.log if message.body["type"] == kind)


def the_same_event_again(found: Evidence) -> None:
    found.log.append(copy.deepcopy(found.log[3]))


def an_event_under_another_id(found: Evidence) -> None:
    found.log[2].headers["Nats-Msg-Id"] = "other"


def two_adapters_of_a_round(found: Evidence) -> None:
    log_again(found, "adapter.trained")


def a_row_marked_twice(found: Evidence) -> None:
    body = first(found, "eval.scored")
    body["marks"].append(dict(body["marks"][0]))


def a_row_marked_in_two_shards(found: Evidence) -> None:
    log_again(found, "responses.generated", candidate=ROUND_0, shard=1)
    log_again(found, "eval.scored", shard=1)


def a_result_never_announced(found: Evidence) -> None:
    found.log = [message for message in found.log if message.body["type"] != "adapter.trained"]


def another_result_than_was_committed(found: Evidence) -> None:
    first(found, "adapter.trained")["loss"] = 1.0


def bytes_that_changed(found: Evidence) -> None:
    name = first(found, "responses.generated")["responses"]["sha256"]
    found.objects[name] = ("f" * 64, 7)


def bytes_that_are_gone(found: Evidence) -> None:
    del found.objects[first(found, "responses.generated")["responses"]["sha256"]]


def a_dataset_with_another_digest(found: Evidence) -> None:
    first(found, "dataset.ready")["digest"] = "0" * 64


def a_dataset_with_other_counts(found: Evidence) -> None:
    first(found, "dataset.ready")["rows"]["train"] = 4


def an_adapter_with_another_digest(found: Evidence) -> None:
    first(found, "adapter.trained")["adapter"]["digest"] = "0" * 64


def answers_nobody_asked_for(found: Evidence) -> None:
    log_again(found, "responses.generated", shard=1)


def marks_before_the_answers(found: Evidence) -> None:
    scored = next(message for message in found.log if message.body["type"] == "eval.scored")
    found.log.remove(scored)
    found.log.insert(0, scored)


def marks_again_that_nobody_asked_for(found: Evidence) -> None:
    log_again(found, "eval.scored", repeat=1)


def no_end(found: Evidence) -> None:
    found.log = [message for message in found.log if message.body["type"] != "migration.completed"]


def two_ends(found: Evidence) -> None:
    log_again(found, "migration.completed", type="migration.stopped")


def a_decision_after_the_end(found: Evidence) -> None:
    log_again(found, "eval.passed", round=1)


def a_call_paid_twice_unseen(found: Evidence) -> None:
    found.emulator["call-a"]["completed"] = 2


def a_call_bought_again_and_not_listed(found: Evidence) -> None:
    found.buckets["ledger"]["rebought.m"] = []


def a_call_never_written_down(found: Evidence) -> None:
    found.emulator["call-c"] = {"arrived": 1, "completed": 1}


def a_call_in_no_event(found: Evidence) -> None:
    found.buckets["ledger"]["call-c"] = {
        "attempts": [{}],
        "answer": {"job": first(found, "references.requested")["id"]},
    }
    found.emulator["call-c"] = {"arrived": 1, "completed": 1}


def a_call_of_a_job_without_a_result(found: Evidence) -> None:
    found.buckets["ledger"]["call-c"] = {"attempts": [{}], "answer": {"job": "lost"}}
    found.emulator["call-c"] = {"arrived": 1, "completed": 1}


def an_answer_that_was_never_given(found: Evidence) -> None:
    found.emulator["call-a"] = {"arrived": 1, "completed": 0}


def more_calls_than_the_budget(found: Evidence) -> None:
    found.buckets["budget"]["budget.m"]["held"] = {"x": {"calls": 8}}


def more_paid_than_the_budget(found: Evidence) -> None:
    found.emulator.update({f"call-{n}": {"arrived": 1, "completed": 1} for n in range(8)})


def a_job_still_claimed(found: Evidence) -> None:
    found.buckets["work"]["trainer.x"] = {"state": "running", "until": found.taken + 1, "results": []}


def a_dead_letter_nobody_tells_of(found: Evidence) -> None:
    found.dead.append(Message(2, "dead.y", {"llamaduo-dead-letter": "silent"}, {}, 951.0))


def a_dead_letter_that_is_not_there(found: Evidence) -> None:
    found.dead.clear()


PLANTED: dict[Callable[[Evidence], list[str]], list[Callable[[Evidence], None]]] = {
    checker.event_ids: [the_same_event_again, an_event_under_another_id],
    checker.effects: [two_adapters_of_a_round],
    checker.marks: [a_row_marked_twice, a_row_marked_in_two_shards],
    checker.announced: [a_result_never_announced, another_result_than_was_committed],
    checker.stored: [bytes_that_changed, bytes_that_are_gone],
    checker.digests: [a_dataset_with_another_digest, a_dataset_with_other_counts, an_adapter_with_another_digest],
    checker.asked_for: [answers_nobody_asked_for, marks_before_the_answers, marks_again_that_nobody_asked_for],
    checker.ends: [no_end, two_ends, a_decision_after_the_end],
    checker.paid: [a_call_paid_twice_unseen, a_call_bought_again_and_not_listed, a_call_never_written_down],
    checker.told: [a_call_in_no_event, a_call_of_a_job_without_a_result, an_answer_that_was_never_given],
    checker.budgets: [more_calls_than_the_budget, more_paid_than_the_budget],
    checker.nothing_claimed: [a_job_still_claimed],
    checker.dead_letters: [a_dead_letter_nobody_tells_of, a_dead_letter_that_is_not_there],
}


def test_a_sound_run_breaks_no_promise() -> None:
    assert violations(sound()) == []


def test_every_check_has_a_planted_violation() -> None:
    assert set(PLANTED) == set(checker.CHECKS)


@pytest.mark.parametrize(
    ("check", "plant"),
    [pytest.param(check, plant, id=plant.__name__) for check, plants in PLANTED.items() for plant in plants],
)
def test_a_planted_violation_is_caught_by_its_check(
    check: Callable[[Evidence], list[str]], plant: Callable[[Evidence], None]
) -> None:
    found = sound()
    plant(found)
    assert check(found), plant.__name__


def test_what_the_harness_itself_published_again_is_no_violation() -> None:
    found = sound()
    again = copy.deepcopy(found.log[3])
    found.log.append(Message(99, again.subject, {MARK: "duplicate"}, again.body, 999.0))
    assert violations(found) == []
