"""The task's answer: one small JSON record with a fixed order of keys."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Triage:
    """What a support message says. `order` is a letter and four digits ("A4821") or None."""

    intent: str
    product: str
    order: str | None
    urgency: str

    def as_json(self) -> str:
        """One compact line; equal records give equal text."""
        fields = {
            "intent": self.intent,
            "product": self.product,
            "order": self.order,
            "urgency": self.urgency,
        }
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
