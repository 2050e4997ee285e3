"""What an alias means after promotions and roll-backs, also after a restart that replays them."""

from __future__ import annotations

from llamaduo.events import AdapterPromoted, AdapterRolledBack, MigrationRequested
from llamaduo.migrations.aliases import Aliases
from tests.simulated import requested, trained


def promoted(number: int, migration: str = "m-1", command: str = "") -> AdapterPromoted:
    name = f"{migration}-r{number}"
    return AdapterPromoted(
        migration=migration, round=number, alias="triage", adapter=trained(number).adapter, name=name, by="a",
        why="b", command=command,
    )  # fmt: skip


def rolled_back(number: int, to: int | None, migration: str = "m-1") -> AdapterRolledBack:
    adapter = None if to is None else trained(to).adapter
    return AdapterRolledBack(
        migration=migration, round=number, alias="triage", to=adapter, by="a", why="b", command=f"c{number}"
    )


def meaning(*events: MigrationRequested | AdapterPromoted | AdapterRolledBack) -> tuple[str, str] | None:
    aliases = Aliases()
    for event in events:
        aliases.take(event)
    serving = aliases.now.get("triage")
    return (serving.promoted.name, serving.base_model) if serving else None


def test_the_last_promotion_counts_and_a_roll_back_undoes_it() -> None:
    start = requested()
    assert meaning(start) is None
    assert meaning(start, promoted(1), promoted(2)) == ("m-1-r2", "base")
    assert meaning(start, promoted(1), promoted(2), rolled_back(2, 1)) == ("m-1-r1", "base")
    assert meaning(start, promoted(1), rolled_back(1, None)) is None
    assert meaning(start, promoted(1), promoted(2), rolled_back(2, 1), promoted(2, command="again")) == (
        "m-1-r2",
        "base",
    )


def test_a_roll_back_reaches_what_an_older_migration_of_that_name_promoted() -> None:
    log = (requested("m-1"), requested("m-2", base_model="other"), promoted(1), promoted(0, "m-2"))
    assert meaning(*log) == ("m-2-r0", "other")
    assert meaning(*log, rolled_back(0, 1, "m-2")) == ("m-1-r1", "base")
    assert meaning(*log, rolled_back(0, 1, "m-2"), rolled_back(1, None)) is None


def test_of_several_base_models_it_is_the_one_that_was_promoted() -> None:
    start = requested(base_model="", base_models=["small", "large"])
    won = promoted(1).model_copy(update={"base": 1})
    assert meaning(start, promoted(0), won) == ("m-1-r1", "large")
    assert meaning(start, promoted(0), won, rolled_back(1, 0)) == ("m-1-r0", "small")


def test_what_was_taken_back_never_returns_by_another_roll_back() -> None:
    log = (requested(), promoted(0), promoted(1), rolled_back(1, 0))
    assert meaning(*log) == ("m-1-r0", "base")
    assert meaning(*log, rolled_back(0, None)) is None


def test_taking_back_what_is_not_on_top_leaves_the_alias_alone() -> None:
    log = (requested(), promoted(0), promoted(1), rolled_back(0, 1))
    assert meaning(*log) == ("m-1-r1", "base")
    assert meaning(*log, rolled_back(1, None)) is None


def test_an_event_that_comes_twice_counts_once() -> None:
    assert meaning(requested(), promoted(0), promoted(1), promoted(0)) == ("m-1-r1", "base")


def test_a_handler_asks_the_same_stack_for_what_a_roll_back_leads_to() -> None:
    aliases = Aliases()
    for event in (requested(), requested("m-2"), promoted(1), promoted(0, "m-2")):
        aliases.take(event)
    (left,) = aliases.without("triage", "m-2", 0)
    assert left.promoted.name == "m-1-r1"
    assert aliases.now["triage"].promoted.name == "m-2-r0"
