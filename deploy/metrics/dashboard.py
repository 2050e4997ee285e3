"""The Grafana dashboard as a table; writes deploy/metrics/grafana/dashboards/llamaduo.json.

Use: python -m deploy.metrics.dashboard
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TARGET = Path(__file__).with_name("grafana") / "dashboards" / "llamaduo.json"
DATASOURCE = {"type": "prometheus", "uid": "llamaduo"}
RATE = "$__rate_interval"
COLUMNS, HEIGHT = 24, 7


@dataclass(frozen=True)
class Panel:
    """One picture: query, what each line is called, and Grafana's name of the unit."""

    title: str
    expr: str
    legend: str = ""
    unit: str = "short"
    kind: Literal["timeseries", "stat"] = "timeseries"
    about: str = ""


def per_minute(metric: str, by: str) -> str:
    """How often something happens, a minute."""
    return f"sum by ({by}) (rate({metric}[{RATE}])) * 60"


def slowest(metric: str, by: str = "") -> str:
    """The seconds within which 95 of 100 are done."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile(0.95, sum by ({labels}) (rate({metric}_bucket[{RATE}])))"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Migrations": (
        Panel("Under way", "max by (stage) (llamaduo_migrations)", "{{stage}}"),
        Panel("Ended", "max by (outcome) (llamaduo_migrations_ended)", "{{outcome}}", kind="stat"),
        Panel("Rounds decided", "max by (verdict) (llamaduo_rounds_decided)", "{{verdict}}", kind="stat"),
        Panel("Dead letters", "max(llamaduo_dead_letters_waiting)", "waiting", kind="stat"),
        Panel(
            "Budget used",
            "max by (what) (llamaduo_budget_used_ratio)",
            "{{what}}",
            "percentunit",
            about="Of the migration that is nearest to the end of that budget.",
        ),
        Panel("Since the last event", "time() - max(llamaduo_last_event_timestamp_seconds)", "seconds", "s"),
        Panel("The log", "max(llamaduo_log_bytes)", "size", "bytes"),
        Panel(
            "Disk free",
            "min by (job) (llamaduo_disk_free_bytes / llamaduo_disk_size_bytes)",
            "{{job}}",
            "percentunit",
        ),
    ),
    "Work": (
        Panel(
            "Waiting", "max by (role) (llamaduo_consumer_lag)", "{{role}}", about="Messages nobody has been given."
        ),
        Panel("Given out, not settled", "max by (role) (llamaduo_consumer_unsettled)", "{{role}}"),
        Panel("In hand", "sum by (role, instance) (llamaduo_work_in_hand)", "{{role}} {{instance}}"),
        Panel("Jobs a minute", per_minute("llamaduo_jobs_total", "role, outcome"), "{{role}} {{outcome}}"),
        Panel(
            "Each replica's share",
            'sum by (role, instance) (increase(llamaduo_jobs_total{outcome="done"}[1h]))',
            "{{role}} {{instance}}",
            about="Jobs done in the last hour.",
        ),
        Panel("Seconds a job takes (95 of 100)", slowest("llamaduo_job_seconds", "role"), "{{role}}", "s"),
        Panel("Connected to the bus", "min by (job) (llamaduo_bus_connected)", "{{job}}"),
        Panel("Given up", "sum by (role) (increase(llamaduo_dead_letters_total[1h]))", "{{role}}"),
    ),
    "Service LLM": (
        Panel(
            "Calls a minute",
            per_minute("llamaduo_service_llm_calls_total", "model, outcome"),
            "{{model}} {{outcome}}",
        ),
        Panel(
            "Tokens a second",
            f"sum by (model, direction) (rate(llamaduo_service_llm_tokens_total[{RATE}]))",
            "{{model}} {{direction}}",
        ),
        Panel(
            "Dollars a day",
            "sum by (model) (increase(llamaduo_service_llm_cost_dollars_total[24h]))",
            "{{model}}",
            "currencyUSD",
        ),
        Panel(
            "Seconds a call takes (95 of 100)",
            slowest("llamaduo_service_llm_call_seconds", "model"),
            "{{model}}",
            "s",
        ),
        Panel(
            "Waiting for our rate limits",
            f"sum by (model) (rate(llamaduo_service_llm_permit_wait_seconds_total[{RATE}]))",
            "{{model}}",
            about="Calls that wait, on average.",
        ),
        Panel("Circuit open", "max by (provider) (llamaduo_service_llm_circuit_open)", "{{provider}}"),
        Panel(
            "Refused by a budget",
            "sum by (what) (increase(llamaduo_service_llm_budget_refusals_total[1h]))",
            "{{what}}",
        ),
    ),
    "Data and marks": (
        Panel("Generated rows kept, an hour", "sum(increase(llamaduo_synthetic_rows_added_total[1h]))", "kept"),
        Panel(
            "Generated rows dropped, an hour",
            "sum by (filter) (increase(llamaduo_synthetic_rows_removed_total[1h]))",
            "{{filter}}",
        ),
        Panel("Reference answers a minute", per_minute("llamaduo_reference_answers_total", "of"), "{{of}}"),
        Panel(
            "Mean mark",
            f"sum by (evaluator, metric) (rate(llamaduo_mark_sum[{RATE}]))"
            f" / sum by (evaluator, metric) (rate(llamaduo_mark_count[{RATE}]))",
            "{{evaluator}} {{metric}}",
        ),
        Panel(
            "Shards marked a minute",
            per_minute("llamaduo_shards_marked_total", "evaluator, outcome, instance"),
            "{{evaluator}} {{outcome}} {{instance}}",
        ),
        Panel(
            "Left unmarked, an hour",
            "sum by (evaluator, metric) (increase(llamaduo_marks_abstained_total[1h]))",
            "{{evaluator}} {{metric}}",
        ),
    ),
    "Training": (
        Panel("Loss", "llamaduo_training_loss", "{{instance}}"),
        Panel("Validation loss", "llamaduo_training_validation_loss", "{{instance}}"),
        Panel("Steps a minute", per_minute("llamaduo_training_steps_total", "instance"), "{{instance}}"),
        Panel(
            "Adapters made, a day",
            "sum by (device, precision) (increase(llamaduo_adapters_trained_total[24h]))",
            "{{device}} {{precision}}",
        ),
        Panel("Tokens learned from, a day", "sum(increase(llamaduo_training_learned_tokens_total[24h]))", "tokens"),
        Panel("Most memory", "max by (instance) (llamaduo_training_peak_memory_bytes)", "{{instance}}", "bytes"),
    ),
    "Inference": (
        Panel(
            "Shards a minute",
            per_minute("llamaduo_shards_answered_total", "outcome, instance"),
            "{{outcome}} {{instance}}",
        ),
        Panel("Answers a second", f"sum by (candidate) (rate(llamaduo_answers_total[{RATE}]))", "{{candidate}}"),
        Panel("Tokens a second", f"sum by (direction) (rate(llamaduo_answer_tokens_total[{RATE}]))", "{{direction}}"),
        Panel(
            "Adapters loaded, an hour",
            "sum by (outcome, instance) (increase(llamaduo_adapter_loads_total[1h]))",
            "{{outcome}} {{instance}}",
        ),
        Panel("Seconds to load an adapter (95 of 100)", slowest("llamaduo_adapter_load_seconds"), "seconds", "s"),
        Panel("Engine up", "min by (instance) (llamaduo_engine_up)", "{{instance}}"),
        Panel(
            "Engines started, a day",
            "sum by (instance) (increase(llamaduo_engine_changes_total[24h]))",
            "{{instance}}",
        ),
        Panel("Aliases", "max by (instance) (llamaduo_aliases)", "{{instance}}"),
        Panel("Aliases not served", "max by (instance) (llamaduo_aliases_unserved)", "{{instance}}"),
    ),
    "vLLM": (
        Panel("Requests running", "sum by (instance) (vllm:num_requests_running)", "{{instance}}"),
        Panel("Requests waiting", "sum by (instance) (vllm:num_requests_waiting)", "{{instance}}"),
        Panel("KV cache used", "max by (instance) (vllm:kv_cache_usage_perc)", "{{instance}}", "percentunit"),
        Panel(
            "Tokens generated a second",
            f"sum by (instance) (rate(vllm:generation_tokens_total[{RATE}]))",
            "{{instance}}",
        ),
        Panel(
            "Prompt tokens a second", f"sum by (instance) (rate(vllm:prompt_tokens_total[{RATE}]))", "{{instance}}"
        ),
        Panel(
            "Seconds to the first token (95 of 100)",
            slowest("vllm:time_to_first_token_seconds", "instance"),
            "{{instance}}",
            "s",
        ),
        Panel(
            "Seconds a request takes (95 of 100)",
            slowest("vllm:e2e_request_latency_seconds", "instance"),
            "{{instance}}",
            "s",
        ),
    ),
}


def shown(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """A panel as Grafana reads it."""
    return {
        "id": number,
        "title": panel.title,
        "description": panel.about,
        "type": panel.kind,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": COLUMNS // 4, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": "A", "datasource": DATASOURCE, "expr": panel.expr, "legendFormat": panel.legend, "range": True}
        ],
    }


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        panels.append(
            {"id": len(panels) + 1, "title": title, "type": "row", "collapsed": False, "panels": [], "gridPos": place}
        )
        y += 1
        for number, panel in enumerate(row):
            panels.append(shown(panel, len(panels) + 1, number % 4 * 6, y + number // 4 * HEIGHT))
        y += -(-len(row) // 4) * HEIGHT
    return {
        "uid": "llamaduo",
        "title": "LlamaDuo",
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "tags": ["llamaduo"],
        "templating": {"list": []},
        "annotations": {"list": []},
        "panels": panels,
    }


def render() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
