"""Prints what pyproject.toml asks for, so that an image can install it in a layer that code changes leave alone.

Use: python3 deploy/requirements_of.py pyproject.toml [extra ...]
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(text: str, extras: list[str]) -> list[str]:
    """The dependencies of the project and of these extras, in order. KeyError for an extra that is none."""
    project = tomllib.loads(text)["project"]
    asked = list(project["dependencies"])
    for extra in extras:
        asked += project["optional-dependencies"][extra]
    return list(dict.fromkeys(asked))


if __name__ == "__main__":
    path, *names = sys.argv[1:]
    print("\n".join(requirements(Path(path).read_text(encoding="utf-8"), names)))
