"""What the log learns of a file of captured rows."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from llamaduo.event_parts import ArtifactRef
from services.gateway.shipping import event_of

REF = ArtifactRef(uri="obj:x", sha256="0" * 64, size=1)


def test_it_learns_how_many_rows_there_are_and_from_when_to_when() -> None:
    body = b"".join(b'{"id":"%d","at":"2026-11-28T09:00:%02d.500+00:00"}\n' % (n, n) for n in range(3))
    event = event_of("triage", REF, body, "gateway/a")
    assert (event.alias, event.rows, event.migration) == ("triage", 3, "traffic-triage")
    assert event.first == datetime(2026, 11, 28, 9, 0, 0, 500_000, UTC)
    assert event.last == datetime(2026, 11, 28, 9, 0, 2, 500_000, UTC)
    alone = event_of("triage", REF, body.splitlines(keepends=True)[1], "gateway/a")
    assert alone.rows == 1 and alone.first == alone.last


def test_the_same_file_is_the_same_event_whoever_ships_it_and_another_file_is_another() -> None:
    body = b'{"at":"2026-11-28T09:00:00+00:00"}\n'
    one, again = (event_of("triage", REF, body, f"gateway/{replica}") for replica in "ab")
    other = event_of("triage", REF.model_copy(update={"sha256": "1" * 64}), body, "gateway/a")
    assert one.id == again.id != other.id


def test_a_file_that_holds_no_rows_is_told() -> None:
    for body in (b"no JSON\n", b'{"id":"1"}\n'):
        with pytest.raises((ValueError, KeyError)):
            event_of("triage", REF, body, "gateway/a")
