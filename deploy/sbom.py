"""Writes and checks the bill of materials (CycloneDX) of the Python environment it runs in.

Use: python -m deploy.sbom FILE            write it by cyclonedx-py, then check it
     python -m deploy.sbom --check FILE    check one: each installed distribution is in it, with version and licence
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OWN = "llamaduo"
LICENCES = ROOT / "deploy" / "licences.json"
"""Licences of distributions whose own metadata names none, looked up by a person."""


def write(file: Path) -> None:
    """The environment of this interpreter, the project itself as what is made of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    command = ["-m", "cyclonedx_py", "environment", "--pyproject", str(ROOT / "pyproject.toml")]
    more = ["--output-reproducible", "--output-format", "JSON", "--output-file", str(file), sys.executable]
    subprocess.run([sys.executable, *command, *more], check=True)
    found = json.loads(file.read_text("utf-8"))
    known = json.loads(LICENCES.read_text("utf-8"))
    for part in found.get("components", []):
        if not part.get("licenses") and (licence := known.get(normal(part["name"]))):
            part["licenses"] = [{"license": {"name": licence}}]
    file.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def problems(bill: dict[str, Any], installed: dict[str, str]) -> list[str]:
    """What is wrong with a bill of materials for these distributions (name -> version); empty where it is whole."""
    if bill.get("bomFormat") != "CycloneDX":
        return ["this is no CycloneDX document"]
    listed = {normal(part["name"]): part for part in bill.get("components", [])}
    found = []
    for name, version in sorted(installed.items()):
        part = listed.get(name)
        if part is None:
            found.append(f"{name} {version} is installed and not listed")
        elif part.get("version") != version:
            found.append(f"{name} is listed as {part.get('version')}, installed is {version}")
        elif not part.get("licenses"):
            found.append(f"{name} {version} has no licence: look it up and add it to {LICENCES.name}")
    return found


def installed_here() -> dict[str, str]:
    """Distributions of this interpreter's environment, but for this project: normal name -> version."""
    found = {normal(one.name): one.version for one in importlib.metadata.distributions() if one.name}
    return {name: version for name, version in found.items() if name != OWN}


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """The command line; exit code 1 where the bill is not whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    if not options.check:
        write(options.file)
    wrong = problems(json.loads(options.file.read_text("utf-8")), installed_here())
    for one in wrong:
        print(f"sbom: {one}")
    if not wrong:
        print(f"sbom: {options.file}: {len(installed_here())} distributions, each with version and licence")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
