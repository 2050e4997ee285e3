"""One NATS user per service, from the bus's own table: writes deploy/nats/users.conf.

What each may do is in llamaduo/bus/rights.py; everything else is denied. Passwords come from the server's
environment, `NATS_PASSWORD_<USER>`, or from variables of the same name in its configuration; none is in the file.

Use: python -m deploy.nats.users                      write it anew; users of others' evaluators stay
     python -m deploy.nats.users --evaluator NAME     give somebody else's evaluator a user, too
       --asks-service-llm                             which may pay from a migration's budget
     python -m deploy.nats.users --remove NAME        take it away again
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from llamaduo.built_in_evaluators import ALWAYS_RUN, NOISY
from llamaduo.bus.rights import OPERATOR, Rights, rights_of, somebody_elses, users

TARGET = Path(__file__).with_name("users.conf")
NAME = r"[a-z][a-z0-9-]{0,40}"


def password_variable(user: str) -> str:
    """The variable of the server that holds a user's password."""
    return "NATS_PASSWORD_" + user.upper().replace("-", "_")


def others_in(text: str) -> dict[str, bool]:
    """Evaluators of others that such a file has users for -> whether they ask a service LLM."""
    found = re.findall(rf"^ *# evaluator of others: ({NAME})(, asks a service LLM)?$", text, flags=re.MULTILINE)
    return {name: bool(asks) for name, asks in found}


def render(others: Mapping[str, bool] | None = None) -> str:
    """The whole file; `others` as in `others_in`."""
    blocks = [_block(user, rights_of(user, contract)) for user, contract in users().items()]
    for name, asks in sorted((others or {}).items()):
        user, contract = somebody_elses(name, asks_service_llm=asks)
        note = f"    # evaluator of others: {name}{', asks a service LLM' if asks else ''}\n"
        blocks.append(note + _block(user, rights_of(user, contract)))
    return (
        "# Written by `python -m deploy.nats.users` from the bus's topology; a test fails when it drifts.\n"
        "authorization {\n  users = [\n"
        f"    {{ user: {OPERATOR}, password: ${password_variable(OPERATOR)} }}\n"
        f"{''.join(blocks)}  ]\n}}\n"
    )


def _block(user: str, rights: Rights) -> str:
    return (
        f"    {{\n      user: {user}\n      password: ${password_variable(user)}\n      permissions: {{\n"
        f"        publish: {{ allow: {_listed(rights.publish)} }}\n"
        f"        subscribe: {{ allow: {_listed(rights.subscribe)} }}\n      }}\n    }}\n"
    )


def _listed(subjects: tuple[str, ...]) -> str:
    return "[\n" + "".join(f'          "{subject}"\n' for subject in subjects) + "        ]"


def main(target: Path = TARGET, given: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the users of the bus and what each may do.")
    parser.add_argument("--evaluator", metavar="NAME", help="give an evaluator of somebody else's a user, too")
    parser.add_argument("--asks-service-llm", action="store_true", help="with --evaluator: it may pay for calls")
    parser.add_argument("--remove", metavar="NAME", help="take the user of such an evaluator away")
    arguments = parser.parse_args(given)
    others = others_in(target.read_text(encoding="utf-8")) if target.exists() else {}
    name = arguments.evaluator
    if name is not None:
        if not re.fullmatch(NAME, name):
            parser.error("a name has lower-case letters, digits and dashes, and begins with a letter")
        if name in ALWAYS_RUN:
            parser.error(f"{name} has a user already")
        others[name] = arguments.asks_service_llm or name in NOISY
    if arguments.remove is not None and others.pop(arguments.remove, None) is None:
        parser.error(f"there is no user for an evaluator {arguments.remove}")
    target.write_text(render(others), encoding="utf-8")
    if name is not None:
        user = somebody_elses(name)[0]
        print(f"{target}: user {user}, with the password in ${password_variable(user)} of the server")


if __name__ == "__main__":
    main()
