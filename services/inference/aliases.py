"""What each alias means now, and what a promotion or a roll-back makes of it."""

from __future__ import annotations

from collections.abc import Sequence
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
    """By alias; the one that changed last is the last."""
    _bases: dict[str, str] = field(default_factory=dict)
    _promoted: dict[tuple[str, str], AdapterPromoted] = field(default_factory=dict)

    @property
    def served(self) -> frozenset[str]:
        """Names under which vLLM must go on serving what the aliases mean."""
        return frozenset(serving.promoted.name for serving in self.now.values())

    def of_base(self, base_model: str | None) -> list[Serving]:
        """What must be served while the engine holds this base model."""
        return [serving for serving in self.now.values() if serving.base_model == base_model]

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
        # Taken out first, so that the alias that changed last is the last one.
        self.now.pop(alias, None)
        if promoted is not None:
            self.now[alias] = Serving(promoted, self._bases.get(promoted.migration, ""))


def before(view: MigrationView, number: int) -> AdapterPromoted | None:
    """What this migration's alias meant before the adapter of round `number` was promoted."""
    earlier = [p for p in view.of_type(AdapterPromoted) if p.round != number]
    return max(earlier, key=lambda p: p.at) if earlier else None


def base_to_hold(
    held: str | None, *, idle: bool, needed: Sequence[str], aliases: Sequence[Serving], first: str | None
) -> str | None:
    """The base model that the engine should hold while nobody asks for another; None: it need not be started.

    `needed` are the base models of migrations under way, `aliases` what is served (the last to change is the last),
    `first` the base model to start with where nothing else says which.
    """
    of_alias = aliases[-1].base_model if aliases else None
    if held is None:
        return of_alias if of_alias is not None and (of_alias in needed or not needed) else next(iter(needed), first)
    if of_alias is None or held in needed or not idle:
        return held
    return of_alias
