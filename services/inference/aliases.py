"""What each alias means now, and what a promotion or a roll-back makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from llamaduo.events import AdapterPromoted, AdapterRolledBack, AnyEvent, MigrationRequested
from llamaduo.migrations.fold import MigrationView


@dataclass(frozen=True)
class Serving:
    """A promoted adapter and the base model it belongs to."""

    promoted: AdapterPromoted
    base_model: str


@dataclass
class Aliases:
    """Folded from broadcast events, of all migrations, ended ones too."""

    now: dict[str, Serving] = field(default_factory=dict)
    _bases: dict[str, str] = field(default_factory=dict)
    _promoted: dict[tuple[str, str], AdapterPromoted] = field(default_factory=dict)

    @property
    def served(self) -> frozenset[str]:
        """Names under which vLLM must go on serving what the aliases mean."""
        return frozenset(serving.promoted.name for serving in self.now.values())

    def take(self, event: AnyEvent) -> None:
        """One more event of the log."""
        if isinstance(event, MigrationRequested):
            self._bases[event.migration] = str(event.spec.get("base_model", ""))
        elif isinstance(event, AdapterPromoted):
            self._promoted[event.alias, event.adapter.digest] = event
            self._mean(event.alias, event)
        elif isinstance(event, AdapterRolledBack):
            self._mean(event.alias, self._promoted.get((event.alias, event.to.digest)) if event.to else None)

    def _mean(self, alias: str, promoted: AdapterPromoted | None) -> None:
        if promoted is None:
            self.now.pop(alias, None)
        else:
            self.now[alias] = Serving(promoted, self._bases.get(promoted.migration, ""))


def before(view: MigrationView, number: int) -> AdapterPromoted | None:
    """What this migration's alias meant before the adapter of round `number` was promoted."""
    earlier = [p for p in view.of_type(AdapterPromoted) if p.round != number]
    return max(earlier, key=lambda p: p.at) if earlier else None
