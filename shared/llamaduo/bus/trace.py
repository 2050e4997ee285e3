"""W3C trace context: one trace per migration, so that a round can be followed across services."""

from __future__ import annotations

import secrets

from llamaduo.identity import identity


def traceparent(migration: str) -> str:
    """A `traceparent` header whose trace id is the migration's; a fresh span each time."""
    return f"00-{identity('trace', migration)[:32]}-{secrets.token_hex(8)}-01"
