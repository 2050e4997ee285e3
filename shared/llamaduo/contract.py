"""The contract as documents: JSON Schemas, AsyncAPI and id test vectors, generated into `docs/contract/`.

python -m llamaduo.contract [--check] [FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from llamaduo import __version__
from llamaduo.bus.topology import DEAD_LETTER_PREFIX, PROGRESS_PREFIX, SERVICES, ServiceContract
from llamaduo.event_parts import Candidate
from llamaduo.events import (
    EVENT_TYPES,
    CancelRequested,
    DatasetReady,
    EvalFailed,
    EvalPassed,
    EvalScored,
    Event,
    MigrationCompleted,
    MigrationStopped,
    ResponsesGenerated,
    TrainingRequested,
    WorkFailed,
    subject_of,
)
from llamaduo.identity import SCHEME, adapter_digest, content_digest, identity, seed_of
from llamaduo.migrations.report import report_schema
from llamaduo.migrations.spec import MigrationSpec

ZEROS = "0" * 64
_SPEAKERS: dict[type[Event], str] = {EvalScored: "evaluator", WorkFailed: "consumer"}


def event_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of every event by type, self-contained; for validation of what is published."""
    return {name: model.model_json_schema(mode="serialization") for name, model in sorted(EVENT_TYPES.items())}


def asyncapi() -> dict[str, Any]:
    """AsyncAPI 3.0: a channel for each event, and what each service sends and receives."""
    channels: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for name, schema in event_schemas().items():
        key = name.replace(".", "_")
        channels[key] = {**_address(EVENT_TYPES[name]), "messages": {key: {"$ref": f"#/components/messages/{key}"}}}
        messages[key] = {
            "name": name,
            "title": (EVENT_TYPES[name].__doc__ or name).strip().split("\n")[0],
            "contentType": "application/json",
            "headers": {"$ref": "#/components/schemas/Headers"},
            "payload": {"schemaFormat": "application/schema+json;version=draft-2020-12", "schema": _inline(schema)},
        }
    for service, contract in SERVICES.items():
        operations |= _operations(service, contract)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "LlamaDuo events",
            "version": __version__,
            "description": "Events of a migration on NATS JetStream, stream EVENTS; subject = type, with who says it "
            f"behind it where only one may. Dead letters are on {DEAD_LETTER_PREFIX}<consumer>.<subject>, progress "
            f"(never stored) on {PROGRESS_PREFIX}<service>.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": {"Headers": _headers()}},
    }


def _address(model: type[Event]) -> dict[str, Any]:
    """The subject; where it carries who alone may say it, that as a parameter."""
    kind, speaker = subject_of(model), _SPEAKERS.get(model)
    if speaker is None:
        return {"address": kind}
    told = {speaker: {"description": f"`{speaker}` of the event; readers take no other's"}}
    return {"address": f"{kind}.{{{speaker}}}", "parameters": told}


def _operations(service: str, contract: ServiceContract) -> dict[str, Any]:
    def operation(action: str, model: type[Event], summary: str) -> dict[str, Any]:
        key = subject_of(model).replace(".", "_")
        return {
            "action": action,
            "summary": summary,
            "channel": {"$ref": f"#/channels/{key}"},
            "messages": [{"$ref": f"#/channels/{key}/messages/{key}"}],
            "tags": [{"name": service}],
        }

    found = {}
    for durable in contract.durables:
        for model in durable.events:
            name = f"{durable.name}.receives.{subject_of(model)}".replace(".", "_")
            found[name] = operation("receive", model, f"Work of {service}, on the durable {durable.name}.")
    for model in contract.reads:
        name = f"{service}.reads.{subject_of(model)}".replace(".", "_")
        found[name] = operation("receive", model, f"Broadcast: {service} folds it locally, without effects.")
    for model in contract.publishes:
        name = f"{service}.sends.{subject_of(model)}".replace(".", "_")
        found[name] = operation("send", model, contract.about)
    return found


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its own definitions written out where they are used (AsyncAPI refs are document-wide)."""
    definitions = schema.get("$defs", {})

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            ref = node.get("$ref")
            if isinstance(ref, str) and ref.startswith("#/$defs/"):
                return walk(
                    {**definitions[ref.removeprefix("#/$defs/")], **{k: v for k, v in node.items() if k != "$ref"}}
                )
            return {key: walk(value) for key, value in node.items() if key != "$defs"}
        return [walk(item) for item in node] if isinstance(node, list) else node

    walked: dict[str, Any] = walk(schema)
    return walked


def _headers() -> dict[str, Any]:
    names = {
        "Nats-Msg-Id": "the event's id: the broker drops repeats by it",
        "ce-specversion": "1.0",
        "ce-id": "the event's id",
        "ce-type": "the event's type",
        "ce-source": "/llamaduo/<service>/<replica>",
        "ce-time": "RFC 3339",
        "llamaduo-migration": "the migration's id",
        "traceparent": "W3C trace context",
    }
    return {
        "type": "object",
        "required": ["Nats-Msg-Id", "ce-id", "ce-type"],
        "properties": {name: {"type": "string", "description": text} for name, text in names.items()},
    }


def id_vectors() -> dict[str, Any]:
    """Test vectors of ids for other languages: the lines that are hashed, and the hash."""
    adapter = Candidate(kind="adapter", round=1)
    shard = {"migration": "m-1", "split": "test", "shard": 3, "of": 8}
    events: list[Event] = [
        DatasetReady(migration="m-1", round=0, splits={}, rows={}, digest=ZEROS),
        DatasetReady(migration="m-1", round=0, splits={}, rows={}, digest=ZEROS, submission=2),
        TrainingRequested(migration="m-1", round=0, base=1),
        ResponsesGenerated(**shard, candidate=Candidate(kind="base"), responses=None),
        ResponsesGenerated(**shard, candidate=Candidate(kind="adapter", round=0, base=1), responses=None),
        EvalScored(**shard, candidate=adapter, evaluator="exact-match", version="1", repeat=0),
        EvalFailed(migration="m-1", round=1, verdict="failed", marks={}, gate={}, rows=0),
        EvalPassed(migration="m-1", round=1, verdict="passed", marks={}, gate={}, rows=0, candidate=adapter),
        MigrationCompleted(migration="m-1"),
        MigrationStopped(migration="m-1", rule="rounds"),
        CancelRequested(migration="m-1", command="2f1c9a54-0000-4000-8000-000000000000"),
    ]
    return {
        "scheme": SCHEME,
        "rule": "sha256 hex of the UTF-8 lines joined by one newline, without a newline at the end",
        "events": [
            {
                "type": event.type,
                "lines": [
                    SCHEME,
                    event.answers or event.type,
                    event.migration,
                    *(str(part) for part in event.job_key()),
                    str(event.submission),
                ],
                "id": event.id,
            }
            for event in events
        ],
        "identity": [
            {"fields": ["a"], "id": identity("a")},
            {"fields": ["a", "b", "1"], "id": identity("a", "b", 1)},
            {"fields": ["Zürich", "日本"], "id": identity("Zürich", "日本")},
        ],
        "seed": [{"fields": ["m-1", "round-0", "row", "0"], "seed": seed_of("m-1", "round-0", "row", 0)}],
        "adapter_digest": [{"files": {"b": ZEROS, "a": ZEROS}, "digest": adapter_digest({"b": ZEROS, "a": ZEROS})}],
        "canonical_json": [
            {"value": {"b": [1, True, None], "a": "é"}, "sha256": content_digest({"b": [1, True, None], "a": "é"})}
        ],
    }


def documents() -> dict[str, Any]:
    """Every generated document by file name."""
    schemas = {f"events/{name}.schema.json": schema for name, schema in event_schemas().items()}
    return {
        "asyncapi.json": asyncapi(),
        "ids.json": id_vectors(),
        "spec.schema.json": MigrationSpec.model_json_schema(),
        "report.schema.json": report_schema(),
        **schemas,
    }


def render(document: Any) -> str:
    """A document as it stands in its file."""
    return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=False) + "\n"


def drifted(folder: Path) -> list[str]:
    """Names of files in `folder` that are not what the code says, missing or left over."""
    wanted = {name: render(document) for name, document in documents().items()}
    present = {str(p.relative_to(folder)): p.read_text("utf-8") for p in folder.rglob("*.json")}
    # The HTTP APIs are the services' own; `deploy.http_contract` writes them.
    present = {name: text for name, text in present.items() if not name.startswith("http/")}
    return sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))


def write(folder: Path) -> None:
    """Write every document; files that are no document any more are removed."""
    for name in drifted(folder) if folder.exists() else documents():
        (folder / name).unlink(missing_ok=True)
    for name, document in documents().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(document), "utf-8")


def main() -> None:
    """Command line; exit code 1 if `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs/contract"))
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    arguments = parser.parse_args()
    if not arguments.check:
        write(arguments.folder)
    elif names := drifted(arguments.folder):
        sys.exit(f"out of date: {', '.join(names)}: run `make docs`")


if __name__ == "__main__":
    main()
