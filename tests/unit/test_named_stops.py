"""Every way in which a migration does not go on has a name, a reason and a next thing to do, wherever one looks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import get_args

import pytest

from llamaduo.cli.report_command import line_of_migration, migration_row, why_it_stands
from llamaduo.cli.watching import line_of, summary
from llamaduo.events import AnyEvent, CancelRequested, MigrationCancelled, MigrationStopped, PauseRequested
from llamaduo.migrations.fold import fold
from llamaduo.migrations.report import build_report
from llamaduo.migrations.report_html import report_html
from llamaduo.migrations.stop_advice import ADVICE, CANCELLED, PAUSED
from tests.support import ROOT
from tests.unit.synthetic_log import MIGRATION, at, complete_log

LOG, NOW = complete_log(), at(1000)

RULES = get_args(MigrationStopped.model_fields["rule"].annotation)


def stops_in_the_code() -> Iterator[str]:
    """The rule of every `Stop(...)` and `MigrationStopped(..., rule="...")` that is written anywhere."""
    for folder in ("shared/llamaduo", "services"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    rules = [k.value for k in node.keywords if k.arg == "rule"]
                    if node.func.id == "Stop":
                        rules += node.args[:1]
                    elif node.func.id != "MigrationStopped":
                        continue
                    assert rules, f"{path}:{node.lineno}: a stop without a rule"
                    yield from (str(rule.value) for rule in rules if isinstance(rule, ast.Constant))


def test_every_rule_of_the_contract_is_used_and_no_other() -> None:
    assert set(stops_in_the_code()) == set(RULES) == set(ADVICE)


def test_every_rule_is_explained_to_operators() -> None:
    text = (ROOT / "docs" / "operate.md").read_text("utf-8")
    assert all(f"\n| `{rule}` | " in text for rule in RULES)


STANDING: list[tuple[AnyEvent, str]] = [
    *(
        (MigrationStopped(migration=MIGRATION, rule=rule, reason=f"because of {rule}"), ADVICE[rule])
        for rule in RULES
    ),
    (MigrationCancelled(migration=MIGRATION, reason="because of somebody"), CANCELLED),
]


@pytest.mark.parametrize(("end", "advice"), STANDING, ids=lambda value: getattr(value, "rule", ""))
def test_an_end_without_a_pass_says_why_and_what_to_do_everywhere(end: AnyEvent, advice: str) -> None:
    view = fold([*LOG[:3], end])
    reason = str(getattr(end, "reason"))  # noqa: B009 - not every event has one
    report = build_report(view, NOW)
    assert (report.ended_because, report.what_to_do) == (reason, advice)
    row = migration_row(view)
    assert why_it_stands(row) == [reason, f"what to do: {advice}"]
    rule = getattr(end, "rule", "cancelled")
    assert rule in line_of_migration(row)
    for text in (summary(report), str(line_of(end))):
        assert reason in text
    assert advice in summary(report)
    assert reason in report_html(report, [])


def test_what_was_paused_or_is_being_cancelled_says_how_to_go_on() -> None:
    paused = fold([*LOG[:3], PauseRequested(migration=MIGRATION, command="c-12345678")])
    assert why_it_stands(migration_row(paused)) == [f"what to do: {PAUSED}"]
    assert PAUSED in summary(build_report(paused, NOW))
    cancelled = fold([*LOG[:3], CancelRequested(migration=MIGRATION, command="c-12345678")])
    assert why_it_stands(migration_row(cancelled)) == [f"what to do: {CANCELLED}"]


def test_what_goes_on_or_has_passed_is_not_explained() -> None:
    assert why_it_stands(migration_row(fold(LOG[:3]))) == []
    assert why_it_stands(migration_row(fold(LOG))) == []
