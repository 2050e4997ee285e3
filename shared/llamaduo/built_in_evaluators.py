"""What the evaluators that come with LlamaDuo declare: their metrics and scales.

It stands here because both need it: the judge, which runs them, and whoever checks a spec before it is submitted.
Evaluators of others are known only by what they say in their marks.
"""

from __future__ import annotations

from llamaduo.events import MetricRange

EXACT_MATCH, LLM_JUDGE = "exact-match", "llm-judge"

METRICS: dict[str, dict[str, MetricRange]] = {
    EXACT_MATCH: {"exact": MetricRange(low=0, high=1)},
    LLM_JUDGE: {"similarity": MetricRange(low=0, high=100), "precision": MetricRange(low=0, high=100)},
}
"""Evaluator -> metric -> scale."""
