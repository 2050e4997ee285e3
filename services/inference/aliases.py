"""Which base model the engine should hold, so that what the aliases mean is served."""

from __future__ import annotations

from collections.abc import Sequence

from llamaduo.migrations.aliases import Serving


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
