"""The bill of materials lists all that is installed, and an audit that looked at nothing does not call it sound."""

from __future__ import annotations

from typing import Any

import pytest

from deploy import audit, sbom

INSTALLED = {"aiohttp": "3.1", "ruff": "0.1"}


def bill(**changes: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {"name": "aiohttp", "version": "3.1", "licenses": [{"license": {"id": "MIT"}}]},
        {"name": "Ruff", "version": "0.1", "licenses": [{"license": {"id": "MIT"}}]},
    ]
    return {"bomFormat": "CycloneDX", "components": [part | changes.get(str(part["name"]), {}) for part in parts]}


def test_a_whole_bill_of_materials_has_no_problems() -> None:
    assert sbom.problems(bill(), INSTALLED) == []


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (bill(Ruff={"name": "other"}), "ruff 0.1 is installed and not listed"),
        (bill(Ruff={"version": "0.2"}), "ruff is listed as 0.2, installed is 0.1"),
        (bill(aiohttp={"licenses": []}), "aiohttp 3.1 has no licence"),
        ({"components": []}, "no CycloneDX document"),
    ],
)
def test_what_is_missing_in_it_is_named(made: dict[str, Any], says: str) -> None:
    [problem] = sbom.problems(made, INSTALLED)
    assert says in problem


def test_what_is_installed_here_is_seen() -> None:
    found = sbom.installed_here()
    assert {"aiohttp", "pydantic", "schemathesis", "pytest-asyncio"} <= set(found) and "llamaduo" not in found


def answer(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(parts)}


BAD = {"name": "requests", "version": "2.19.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.20.0"]}]}
GOOD = {"name": "aiohttp", "version": "3.1", "vulns": []}
SKIPPED = {"name": "requests", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("control", "whole", "code", "says"),
    [
        (answer(BAD), answer(GOOD), 0, "1 distributions, 0 known vulnerabilities"),
        (answer(BAD), answer(GOOD, BAD), 1, "requests 2.19.0: PYSEC-1, mended in 2.20.0"),
        (
            answer(BAD),
            answer(GOOD, SKIPPED),
            0,
            "1 distributions, 0 known vulnerabilities; not in the list: ['requests']",
        ),
        (answer(SKIPPED), answer(GOOD), 0, "NOT RUN"),
        (None, answer(GOOD), 0, "NOT RUN"),
        (answer(BAD), None, 1, "stopped answering"),
    ],
)
def test_an_audit_says_what_it_looked_at(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    control: dict[str, Any] | None,
    whole: dict[str, Any] | None,
    code: int,
    says: str,
) -> None:
    monkeypatch.setattr(audit, "ask", lambda *words: control if "--requirement" in words else whole)
    assert audit.main() == code
    assert says in capsys.readouterr().out
