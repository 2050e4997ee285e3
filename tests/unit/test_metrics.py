"""Metrics: named by convention, with labels of few values, and saying what was done."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import pkgutil
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Summary
from prometheus_client.metrics import MetricWrapperBase

import services
from deploy.metrics import dashboard
from llamaduo import telemetry
from llamaduo.event_parts import CallCounts
from llamaduo.events import EvalFailed, MigrationCancelled, WorkWithdrawn
from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.spec import ServiceLLM
from llamaduo.service_llm import metrics as llm_metrics
from llamaduo.service_llm.sending import Reply
from services.synthesizer import metrics as synthesizer_metrics
from services.trainer import metrics as trainer_metrics
from services.trainer.engine import TrainProgress
from services.verdict import metrics as verdict_metrics
from tests.simulated import requested
from tests.support import ROOT

UNITS = ("seconds", "bytes", "ratio", "dollars", "tokens")


def modules() -> list[Any]:
    found = [telemetry, llm_metrics]
    for one in pkgutil.iter_modules(services.__path__):
        if (Path(str(services.__path__[0])) / one.name / "metrics.py").is_file():
            found.append(importlib.import_module(f"services.{one.name}.metrics"))
    return found


def metrics() -> list[MetricWrapperBase]:
    return [value for module in modules() for value in vars(module).values() if isinstance(value, MetricWrapperBase)]


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("metric", metrics(), ids=lambda metric: str(metric._name))
def test_names_and_labels_follow_the_convention(metric: MetricWrapperBase) -> None:
    name = metric._name + ("_total" if isinstance(metric, Counter) else "")
    assert re.fullmatch(r"llamaduo_[a-z]+(_[a-z]+)*", name)
    assert isinstance(metric, Counter) or not name.endswith("_total")
    assert not isinstance(metric, Histogram) or name.endswith("_seconds")
    assert metric._documentation and not metric._documentation.endswith(".")
    assert not set(metric._labelnames) & {"migration", "round", "row", "adapter", "replica", "event", "job"}
    assert len(metric._labelnames) <= 2
    for unit in UNITS:  # a unit is the last word, before `_total`
        words = name.removesuffix("_total").split("_")
        assert unit not in words or words[-1] == unit or name == "llamaduo_last_event_timestamp_seconds"


def test_each_metric_is_made_in_a_module_for_metrics_alone() -> None:
    root = Path(telemetry.__file__).parents[2]
    allowed = {Path(str(module.__file__)) for module in modules()}
    for path in [*(root / "shared").rglob("*.py"), *(root / "services").rglob("*.py")]:
        made = re.search(r"\b(Counter|Gauge|Histogram|Summary)\(\s*\"", path.read_text("utf-8"))
        assert made is None or path in allowed, path
    assert len(metrics()) > 35 and all(isinstance(m, Counter | Gauge | Histogram | Summary) for m in metrics())


@pytest.fixture
def lines() -> Iterator[list[dict[str, str]]]:
    """What is logged inside, as JSON lines."""
    written: list[dict[str, str]] = []
    handler = logging.Handler()
    handler.setFormatter(telemetry.JsonLines("judge"))
    handler.emit = lambda record: written.append(json.loads(handler.format(record)))  # type: ignore[method-assign]
    logger = logging.getLogger("tests.lines")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield written
    logger.removeHandler(handler)


def test_lines_say_whose_job_they_are_about(lines: list[dict[str, str]]) -> None:
    log = logging.getLogger("tests.lines")
    log.info("before")
    with telemetry.log_lines_about(migration="m-1", event="e-1"):
        log.info("inside")
    log.info("after")
    assert [line["message"] for line in lines] == ["before", "inside", "after"]
    assert (lines[1]["migration"], lines[1]["event"]) == ("m-1", "e-1")
    assert not {"migration", "event"} & (set(lines[0]) | set(lines[2]))


def test_an_answer_counts_with_its_tokens_and_price() -> None:
    llm = ServiceLLM(model="openai:counted")
    llm_metrics.note_answer(llm, Reply("yes", "stop", 30, 2), 0.25, 1.5)
    llm_metrics.note_answer(llm, Reply("yes", "stop", 30, 2), 0.25, None)
    llm_metrics.note_failure(llm, "limited")
    assert value("llamaduo_service_llm_calls_total", model=llm.model, outcome="answered") == 2
    assert value("llamaduo_service_llm_calls_total", model=llm.model, outcome="limited") == 1
    assert value("llamaduo_service_llm_tokens_total", model=llm.model, direction="input") == 60
    assert value("llamaduo_service_llm_cost_dollars_total", model=llm.model) == 0.5
    assert value("llamaduo_service_llm_call_seconds_count", model=llm.model) == 1, "not of an answer in a batch"


def test_a_circuit_has_the_provider_and_its_server_as_label_and_no_secret() -> None:
    llm = ServiceLLM(model="openai:x", base_url="http://user:secret@there:81/v1")
    llm_metrics.note_circuit(llm, is_open=True)
    assert value("llamaduo_service_llm_circuit_open", provider="openai at there:81") == 1
    llm_metrics.note_circuit(llm, is_open=False)
    assert value("llamaduo_service_llm_circuit_open", provider="openai at there:81") == 0


def test_steps_of_an_earlier_try_are_not_counted_again() -> None:
    before = value("llamaduo_training_steps_total")
    told: list[TrainProgress] = []
    tell = trainer_metrics.counted(told.append)
    for step in (41, 42, 45):
        tell(TrainProgress(step=step, steps=50, loss=0.5, validation_loss=0.75))
    assert value("llamaduo_training_steps_total") - before == 5
    assert len(told) == 3
    assert (value("llamaduo_training_loss"), value("llamaduo_training_validation_loss")) == (0.5, 0.75)


def test_marks_are_summed_by_evaluator_and_metric() -> None:
    telemetry.note_marks("counted", [("score", 80.0), ("score", 40.0), ("score", None)])
    labels = {"evaluator": "counted", "metric": "score"}
    assert (value("llamaduo_mark_count", **labels), value("llamaduo_mark_sum", **labels)) == (2, 120)
    assert value("llamaduo_marks_abstained_total", **labels) == 1


def test_rows_are_counted_by_what_became_of_them() -> None:
    before = (
        value("llamaduo_synthetic_rows_added_total"),
        value("llamaduo_synthetic_rows_removed_total", filter="length"),
    )
    synthesizer_metrics.note_rows(7, {"length": 2})
    assert value("llamaduo_synthetic_rows_added_total") - before[0] == 7
    assert value("llamaduo_synthetic_rows_removed_total", filter="length") - before[1] == 2


def test_the_figures_of_the_log_are_the_same_however_often_it_is_read() -> None:
    view = MigrationView("m-a")
    request = requested("m-a", budgets={"calls": 12}).model_copy(update={"at": datetime(2026, 1, 1, tzinfo=UTC)})
    view.add(request)
    assert view.spec is not None
    hours, now = view.spec.budgets.hours, request.at + timedelta(hours=view.spec.budgets.hours / 4)
    failed = EvalFailed(migration="m-a", round=0, verdict="failed", marks={}, gate={}, rows=0)
    bought = WorkWithdrawn(migration="m-a", consumer="synthesizer", job="j", calls=CallCounts(made=6))
    ended = MigrationCancelled(migration="m-b")
    figures = verdict_metrics.LogFigures()
    for _ in range(2):
        for event in (request, failed, bought, ended):
            figures.take(event)
    figures.show([view], now)
    assert value("llamaduo_migrations", stage=view.stage) == 1
    assert value("llamaduo_migrations_ended", outcome="cancelled") == 1
    assert value("llamaduo_rounds_decided", verdict="failed") == 1
    assert value("llamaduo_rounds_decided", verdict="passed") == 0
    assert value("llamaduo_budget_used_ratio", what="calls") == 0.5
    assert value("llamaduo_budget_used_ratio", what="hours") == pytest.approx(0.25) and hours > 0
    figures.show([], now)
    assert value("llamaduo_migrations", stage=view.stage) == 0, "a stage that nobody is in is said to be empty"


def test_every_stage_that_a_view_can_name_has_its_gauge() -> None:
    words = set(re.findall(r'"([a-z]+)"', inspect.getsource(vars(MigrationView)["stage"].fget)))
    assert words - {"manual", "test"} == set(verdict_metrics.STAGES)


def test_the_disk_of_a_folder_that_is_not_there_yet_is_measured(tmp_path: Path) -> None:
    telemetry.note_disk(tmp_path / "not" / "yet")
    assert 0 < value("llamaduo_disk_free_bytes") <= value("llamaduo_disk_size_bytes")


def test_the_page_names_every_metric_with_its_labels_and_no_other() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| (`llamaduo_[^|]+) \|([^|]*)\|", text, re.MULTILINE)
    shown = {
        name: set(re.findall(r"`(\w+)`", labels)) for names, labels in rows for name in re.findall(r"\w{4,}", names)
    }
    assert shown == {
        metric._name + ("_total" if isinstance(metric, Counter) else ""): set(metric._labelnames)
        for metric in metrics()
    }


def test_the_dashboard_is_the_one_of_the_table_and_asks_for_metrics_that_there_are() -> None:
    assert dashboard.TARGET.read_text("utf-8") == dashboard.render(), "run: python -m deploy.metrics.dashboard"
    known = {metric._name + ("_total" if isinstance(metric, Counter) else "") for metric in metrics()}
    named = {
        re.sub("_(bucket|sum|count)$", "", name)
        for row in dashboard.ROWS.values()
        for panel in row
        for name in re.findall(r"llamaduo_\w+", panel.expr)
    }
    assert named <= known
    assert known - named <= {"llamaduo_log_messages", "llamaduo_log_limit_bytes"}, "what nobody sees"
    alerts = set(re.findall(r"llamaduo_\w+", (ROOT / "deploy" / "metrics" / "alerts.yml").read_text("utf-8")))
    assert alerts <= known
