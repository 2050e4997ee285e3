"""Writes `.env` for docker-compose.yml: a random password for every user of the bus. Standard library only.

An `.env` that is there keeps its values; only what is missing is added. Use: python3 deploy/make_env.py [FILE]
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USERS = ROOT / "deploy" / "nats" / "users.conf"


def completed(present: str, wanted: list[str]) -> str:
    """The file's text with a fresh random value for each variable that it does not set yet."""
    known = set(re.findall(r"^\s*([A-Z0-9_]+)=", present, flags=re.MULTILINE))
    if present and not present.endswith("\n"):
        present += "\n"
    # The leading letter keeps the server from reading a password as a number.
    return present + "".join(f"{name}=p{secrets.token_hex(16)}\n" for name in wanted if name not in known)


def main(path: Path) -> None:
    """Complete the file; only its owner can read it."""
    wanted = re.findall(r"\$(NATS_PASSWORD_[A-Z0-9_]+)", USERS.read_text(encoding="utf-8"))
    present = path.read_text(encoding="utf-8") if path.exists() else ""
    unfinished = path.with_name(path.name + ".new")
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(completed(present, wanted))
    unfinished.replace(path)
    print(f"{path}: the bus's passwords are set")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".env")
