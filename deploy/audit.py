"""Asks a public list of vulnerabilities about each installed distribution, where one can be reached: `make audit`.

First it asks about an old release that is known to be vulnerable: a list that does not know that one is none.
Exit code 1 where a distribution has a known vulnerability. Where no list can be reached, that is said, and nothing
has been looked at.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIMIT_S = 600
KNOWN_TO_BE_BAD = "requests==2.19.0"
COMMON = ["--progress-spinner", "off", "--timeout", "5", "--format", "json"]
Told = dict[str, Any]


def ask(*arguments: str) -> Told | None:
    """What pip-audit answers; None where it does not."""
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "pip_audit", *arguments, *COMMON],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        found: Told = json.loads(asked.stdout)
    except (ValueError, subprocess.TimeoutExpired):
        return None
    return found


def vulnerabilities(told: Told) -> list[str]:
    """What an answer names: distribution, version, vulnerability, and the versions that mend it."""
    return [
        f"{part['name']} {part['version']}: {one['id']}, mended in {', '.join(one['fix_versions']) or 'no version'}"
        for part in told["dependencies"]
        for one in part.get("vulns", [])
    ]


def not_known(told: Told) -> list[str]:
    """Distributions that the list knows nothing of, good or bad."""
    return [part["name"] for part in told["dependencies"] if "skip_reason" in part]


def main() -> int:
    """The command line."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text(KNOWN_TO_BE_BAD + "\n", "utf-8")
        control = ask("--disable-pip", "--no-deps", "--requirement", str(file))
    if control is None or not vulnerabilities(control):
        print("audit: NOT RUN: no list of vulnerabilities can be reached from here")
        return 0
    told = ask("--skip-editable")
    if told is None:
        print("audit: the list of vulnerabilities stopped answering")
        return 1
    found, missed = vulnerabilities(told), not_known(told)
    for one in found:
        print(f"audit: {one}")
    looked_at = len(told["dependencies"]) - len(missed)
    print(f"audit: {looked_at} distributions, {len(found)} known vulnerabilities; not in the list: {missed}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
