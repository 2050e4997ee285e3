"""What an alias means after promotions and roll-backs, also after a restart that replays them."""

from __future__ import annotations

from llamaduo.events import AdapterPromoted, AdapterRolledBack, MigrationRequested
from services.inference.aliases import Aliases
from tests.simulated import requested, trained


def promoted(number: int) -> AdapterPromoted:
    adapter = trained(number).adapter
    return AdapterPromoted(
        migration="m-1", round=number, alias="triage", adapter=adapter, name=f"m-1-r{number}", by="a", why="b"
    )


def rolled_back(number: int, to: int | None) -> AdapterRolledBack:
    adapter = None if to is None else trained(to).adapter
    return AdapterRolledBack(migration="m-1", round=number, alias="triage", to=adapter, by="a", why="b", command="c")


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
    assert meaning(start, promoted(1), promoted(2), rolled_back(2, 1), promoted(2)) == ("m-1-r2", "base")
