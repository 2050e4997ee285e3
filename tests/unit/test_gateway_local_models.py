"""What an alias means to the gateway: by the events of the log, and by a file at a start without the bus."""

from __future__ import annotations

from pathlib import Path

from llamaduo.events import AdapterLoaded
from services.gateway.local_models import MOST_ADDRESSES, Known, LocalModel, LocalModels, read_known, write_known
from tests.simulated import trained
from tests.unit.test_aliases import promoted, rolled_back


def loaded(number: int, replica: str, url: str) -> AdapterLoaded:
    digest = trained(number).adapter.digest
    return AdapterLoaded(
        migration="m-1", round=number, name=f"m-1-r{number}", digest=digest, replica=replica, url=url
    )


def known(*events: object) -> Known:
    models = LocalModels()
    for event in events:
        models.take(event)  # type: ignore[arg-type]
    return models.known()


def test_an_alias_means_what_was_promoted_where_it_is_served_the_newest_address_first() -> None:
    found = known(
        loaded(1, "a", "http://a/v1"), promoted(1), loaded(1, "b", "http://b/v1/"), loaded(2, "a", "http://c")
    )
    assert found == {"triage": LocalModel(name="m-1-r1", addresses=["http://b/v1", "http://a/v1"])}


def test_a_replica_that_moved_has_its_new_address_alone() -> None:
    found = known(promoted(1), loaded(1, "a", "http://old"), loaded(1, "b", "http://b"), loaded(1, "a", "http://new"))
    assert found["triage"].addresses == ["http://new", "http://b"]


def test_a_roll_back_leads_to_what_was_promoted_before_and_then_to_nothing() -> None:
    log = [promoted(1), loaded(1, "a", "http://a"), promoted(2), loaded(2, "a", "http://a")]
    assert known(*log)["triage"].name == "m-1-r2"
    assert known(*log, rolled_back(2, 1))["triage"].name == "m-1-r1"
    assert known(*log, rolled_back(2, 1), rolled_back(1, None)) == {}


def test_an_adapter_that_was_never_promoted_is_not_approved() -> None:
    assert known(loaded(1, "a", "http://a")) == {}


def test_what_is_promoted_and_not_loaded_yet_has_no_address() -> None:
    assert known(promoted(1)) == {"triage": LocalModel(name="m-1-r1")}
    assert known(promoted(1), loaded(1, "fake", "")) == {"triage": LocalModel(name="m-1-r1")}


def test_addresses_of_long_ago_are_forgotten() -> None:
    found = known(promoted(1), *(loaded(1, f"r{n}", f"http://{n}") for n in range(30)))["triage"].addresses
    assert found == [f"http://{n}" for n in range(29, 29 - MOST_ADDRESSES, -1)]


def test_what_is_known_outlives_the_process_and_a_spoilt_file_is_as_none(tmp_path: Path) -> None:
    path = tmp_path / "gateway" / "aliases.json"
    assert read_known(path) == {}
    there: Known = {"triage": LocalModel(name="m-1-r1", addresses=["http://a/v1"])}
    write_known(path, there)
    assert read_known(path) == there and [one.name for one in path.parent.iterdir()] == ["aliases.json"]
    path.write_text('{"triage": {"na')
    assert read_known(path) == {}
