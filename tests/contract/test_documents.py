"""The contract in `docs/contract/` is what the code says, and holds for what is published."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from llamaduo.bus.topology import SERVICES
from llamaduo.contract import asyncapi, documents, drifted, event_schemas
from llamaduo.events import EVENT_TYPES, Event, encode_event
from llamaduo.identity import identity
from tests.simulated import learner, simulate
from tests.support import ROOT

CONTRACT = ROOT / "docs" / "contract"


def test_the_documents_are_up_to_date() -> None:
    assert drifted(CONTRACT) == [], "run `make docs`"


def test_a_changed_model_would_be_seen(tmp_path: Any) -> None:
    from llamaduo.contract import write

    write(tmp_path)
    assert drifted(tmp_path) == []
    (tmp_path / "ids.json").write_text("{}")
    (tmp_path / "left-over.json").write_text("{}")
    assert drifted(tmp_path) == ["ids.json", "left-over.json"]


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_every_event_has_a_valid_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(event_schemas()[name])


def test_what_is_published_is_valid_against_its_schema() -> None:
    log, schemas = simulate(learner(0.4, 0.9)), event_schemas()
    seen = set()
    for event in log:
        jsonschema.validate(json.loads(encode_event(event)), schemas[event.type])
        seen.add(event.type)
    assert len(seen) >= 9


def test_the_asyncapi_document_is_valid_and_lists_both_directions_of_every_service() -> None:
    document = asyncapi()
    schema = json.loads((ROOT / "tests" / "contract" / "asyncapi-3.0.0.schema.json").read_text("utf-8"))
    jsonschema.Draft7Validator(schema).validate(document)
    for service, contract in SERVICES.items():
        actions = {op["action"] for op in document["operations"].values() if op["tags"] == [{"name": service}]}
        assert actions == {"send", "receive"} if contract.reads else {"send"}


def test_every_event_is_published_by_somebody_and_taken_up_by_somebody() -> None:
    published: set[type[Event]] = {m for c in SERVICES.values() for m in c.publishes}
    taken: set[type[Event]] = {m for c in SERVICES.values() for d in c.durables for m in d.events}
    taken |= {m for c in SERVICES.values() for m in c.reads}
    assert published == taken == set(EVENT_TYPES.values())


def test_the_id_vectors_can_be_computed_from_their_lines_alone() -> None:
    import hashlib

    vectors = documents()["ids.json"]
    for vector in vectors["events"]:
        assert hashlib.sha256("\n".join(vector["lines"]).encode()).hexdigest() == vector["id"]
    passed, failed = (next(v for v in vectors["events"] if v["type"] == t) for t in ("eval.passed", "eval.failed"))
    assert passed["id"] == failed["id"], "the outcome is no part of an id"


def test_a_newline_in_an_identity_field_is_refused() -> None:
    with pytest.raises(ValueError, match="newline"):
        identity("a\nb")
