"""The HTML page: whole for any report, nothing from outside, everything escaped."""

from __future__ import annotations

from html import escape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from llamaduo.events import AnyEvent, MigrationRequested, MigrationStopped
from llamaduo.migrations.filters import FILTERS
from llamaduo.migrations.fold import fold
from llamaduo.migrations.report import build_report
from llamaduo.migrations.report_html import SideBySide, report_html, report_picture
from llamaduo.migrations.stop_advice import ADVICE
from tests.unit.synthetic_log import MIGRATION, at, complete_log

LOG = complete_log()
EVIL = "<script>alert('x')</script><img src=http://evil.example/a.png>\" onload=\"x"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Checker(HTMLParser):
    """Collects tags and attributes and sees that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(events: list[AnyEvent], answers: list[SideBySide] | None = None) -> str:
    return report_html(build_report(fold(events), at(500)), answers or [])


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert not checker.tags & {"script", "img", "link", "iframe", "object", "embed", "form"}
    for name, value in checker.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "href", "action")
        assert name == "aria-label" or "http" not in (value or "")
    return checker


@pytest.mark.parametrize("length", range(1, len(LOG) + 1))
def test_every_prefix_makes_a_sound_page(length: int) -> None:
    check(page_of(LOG[:length]))


def test_shows_what_it_must() -> None:
    page = page_of(LOG)
    for text in (
        "completed",
        "round 0",
        "round 1",
        "holdout",
        "service LLM",
        "base model",
        "gate 0.7",
        "7 near_copy",
        "What the marks are worth",
        "smallest gap told",
        "its own logged answers",
        "test 1 less holdout 0.875",
    ):
        assert text in page
    assert page.count('class="chart"') == 2
    assert "prefers-color-scheme: dark" in page
    assert "url(" not in page
    assert "@import" not in page


def test_a_stop_comes_with_what_to_do() -> None:
    stopped = MigrationStopped(migration=MIGRATION, rule="no_gain", reason="no better mean in 3 rounds")
    page = page_of([*LOG[:3], stopped])
    check(page)
    assert "Stopped by the rule “no_gain”: no better mean in 3 rounds" in page
    assert escape(ADVICE["no_gain"]) in page
    assert "What to do" not in page_of(LOG)


def test_the_failing_rows_reasons_do_not_leak_markup() -> None:
    assert "<script>" not in page_of(LOG)


def test_answers_side_by_side_are_escaped() -> None:
    page = page_of(LOG, [SideBySide(prompt=EVIL, reference=EVIL, answers=[(EVIL, EVIL, EVIL)])])
    checker = check(page)
    assert "details" in checker.tags
    assert "&lt;script&gt;" in page


def test_hostile_names_are_escaped() -> None:
    def hostile(event: AnyEvent) -> AnyEvent:
        if event.type == "eval.scored":
            return event.model_copy(
                update={
                    "evaluator": EVIL,
                    "version": EVIL,
                    "metrics": dict.fromkeys([EVIL], next(iter(event.metrics.values()))),
                    "marks": [m.model_copy(update={"metric": EVIL}) for m in event.marks],
                }
            )
        if event.type == "dataset.ready":
            return event.model_copy(update={"removed": {EVIL: 1}, "rows": {"train": 3}})
        if event.type == "adapter.trained":
            return event.model_copy(update={"versions": {EVIL: EVIL}})
        if event.type == "adapter.promoted":
            return event.model_copy(update={"alias": EVIL, "name": EVIL, "by": EVIL, "why": EVIL})
        if event.type == "migration.completed":
            return event.model_copy(update={"reason": EVIL})
        if isinstance(event, MigrationRequested):
            return event.model_copy(update={"spec": {**event.spec, "base_model": EVIL}})
        return event

    check(page_of([hostile(event) for event in LOG]))


def test_each_filter_that_dropped_rows_has_a_word_on_it() -> None:
    removed = {"near_copy_held": 3, "self_check": 0, "unheard_of": 2}
    page = page_of(
        [event.model_copy(update={"removed": removed}) if event.type == "dataset.ready" else event for event in LOG]
    )
    check(page)
    assert "3 near_copy_held" in page
    assert "2 unheard_of" in page
    assert f"<i>near_copy_held</i>: {FILTERS['near_copy_held']}" in page
    assert "<i>self_check</i>" not in page


def test_the_picture_is_an_svg_file_of_its_own() -> None:
    picture = report_picture(build_report(fold(LOG), at(500)))
    root = ElementTree.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "exact-match.exact" in picture
    with pytest.raises(ValueError, match="nothing has been marked"):
        report_picture(build_report(fold(LOG[:2]), at(5)))
