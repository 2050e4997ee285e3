"""What the evaluators that come with LlamaDuo declare: their metrics and scales.

It stands here because both need it: the judge, which runs them, and whoever checks a spec before it is submitted.
Evaluators of others are known only by what they say in their marks.
"""

from __future__ import annotations

from llamaduo.event_parts import MetricRange

EXACT_MATCH, LLM_JUDGE, PAIRWISE = "exact-match", "llm-judge", "pairwise"
CHRF, EMBEDDING, JSON_SCHEMA, LABEL_ACCURACY = "chrf", "embedding", "json-schema", "label-accuracy"
ROUGE_L, TOOL_CALL = "rouge-l", "tool-call"

_SHARE = MetricRange(low=0, high=1)
_POINTS = MetricRange(low=0, high=100)

METRICS: dict[str, dict[str, MetricRange]] = {
    EXACT_MATCH: {"exact": _SHARE},
    LLM_JUDGE: {"similarity": _POINTS, "precision": _POINTS},
    CHRF: {"f2": _SHARE},
    EMBEDDING: {"cosine": _POINTS},
    JSON_SCHEMA: {"valid": _SHARE},
    LABEL_ACCURACY: {"accuracy": _SHARE},
    PAIRWISE: {"wins": _SHARE},
    ROUGE_L: {"f1": _SHARE},
    TOOL_CALL: {"name": _SHARE, "arguments": _SHARE},
}
"""Evaluator -> metric -> scale."""

NOISY = (LLM_JUDGE, PAIRWISE)
"""Those that ask a service LLM: asked again they may mark the same answer differently."""

ALWAYS_RUN = (EXACT_MATCH, LLM_JUDGE)
"""Those that have a place on every bus and run unless they are left out."""

ON_WISH = tuple(sorted(set(METRICS) - set(ALWAYS_RUN)))
"""Those that run where they are asked for."""
