"""What each alias means now, and what a promotion or a roll-back makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from llamaduo.events import AdapterPromoted, AdapterRolledBack, AnyEvent, MigrationRequested


@dataclass(frozen=True)
class Serving:
    """A promoted adapter and the base model it belongs to."""

    promoted: AdapterPromoted
    base_model: str


@dataclass
class Aliases:
    """Folded from broadcast events in the order of the log, of all migrations, ended ones too.

    Each alias has a stack of what was promoted and not taken back; it means the top.
    """

    now: dict[str, Serving] = field(default_factory=dict)
    """By alias; the one that changed last is the last."""
    _stacks: dict[str, list[Serving]] = field(default_factory=dict)
    _bases: dict[str, list[str]] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    @property
    def served(self) -> frozenset[str]:
        """Names under which vLLM must go on serving what the aliases mean."""
        return frozenset(serving.promoted.name for serving in self.now.values())

    def of_base(self, base_model: str | None) -> list[Serving]:
        """What must be served while the engine holds this base model."""
        return [serving for serving in self.now.values() if serving.base_model == base_model]

    def take(self, event: AnyEvent) -> None:
        """One more event of the log: a promotion goes on top, a roll-back takes out what it names, wherever it is."""
        if isinstance(event, MigrationRequested):
            several = event.spec.get("base_models")
            one = [event.spec.get("base_model", "")]
            self._bases[event.migration] = [str(name) for name in (isinstance(several, list) and several) or one]
        elif isinstance(event, AdapterPromoted | AdapterRolledBack) and event.id not in self._seen:
            self._seen.add(event.id)
            stack = self.without(event.alias, event.migration, event.round)
            if isinstance(event, AdapterPromoted):
                stack.append(Serving(event, self._base_of(event)))
            self._mean(event.alias, stack)

    def _base_of(self, event: AdapterPromoted) -> str:
        bases = self._bases.get(event.migration, [])
        return bases[event.base] if event.base < len(bases) else ""

    def without(self, alias: str, migration: str, number: int) -> list[Serving]:
        """What was promoted under an alias, without a migration's round; the last one is what it would mean."""
        taken_out = (migration, number)
        return [s for s in self._stacks.get(alias, []) if (s.promoted.migration, s.promoted.round) != taken_out]

    def _mean(self, alias: str, stack: list[Serving]) -> None:
        self._stacks[alias] = stack
        if stack and self.now.get(alias) == stack[-1]:
            return
        # Taken out first, so that the alias that changed last is the last one.
        self.now.pop(alias, None)
        if stack:
            self.now[alias] = stack[-1]
