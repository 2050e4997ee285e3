"""One NATS user per service, from the bus's own table: writes deploy/nats/users.conf.

A service publishes the events of its contract and no other, takes messages from its own durables and no other,
and reads only the replies that are meant for it. Streams, durables and buckets are made by the operator alone.
Passwords come from the server's environment, `NATS_PASSWORD_<USER>`; none is in the file.

Use: python -m deploy.nats.users
"""

from __future__ import annotations

from pathlib import Path

from llamaduo.bus import topology
from llamaduo.events import Event, subject_of

TARGET = Path(__file__).with_name("users.conf")
OPERATOR = "operator"
SHARED = ["$JS.ACK.>", "$JS.API.>", "$JS.FC.>", "$KV.>", f"$O.{topology.ARTIFACTS}.>"]
"""Open to every service: its acks, questions about streams and consumers, the buckets and the artifacts."""
ADMINISTRATION = [
    "$JS.API.ACCOUNT.>",
    "$JS.API.CONSUMER.DELETE.EVENTS.>",
    "$JS.API.CONSUMER.DURABLE.>",
    "$JS.API.CONSUMER.PAUSE.>",
    "$JS.API.META.>",
    "$JS.API.SERVER.>",
    "$JS.API.STREAM.CREATE.>",
    "$JS.API.STREAM.DELETE.>",
    "$JS.API.STREAM.LEADER.>",
    "$JS.API.STREAM.MSG.DELETE.>",
    "$JS.API.STREAM.PEER.>",
    "$JS.API.STREAM.RESTORE.>",
    "$JS.API.STREAM.SNAPSHOT.>",
    "$JS.API.STREAM.UPDATE.>",
    *(f"$JS.API.STREAM.PURGE.{s}" for s in (topology.EVENTS, topology.DEAD_LETTERS)),
    *(f"$JS.API.STREAM.PURGE.KV_{bucket}" for bucket in topology.BUCKETS),
]


def services() -> dict[str, tuple[list[type[Event]], list[str]]]:
    """User -> the events it publishes and its durables; each evaluator of ours is a user of its own."""
    users: dict[str, tuple[list[type[Event]], list[str]]] = {}
    for name, contract in topology.SERVICES.items():
        if name == OPERATOR:
            continue
        durables = [durable.name for durable in contract.durables]
        if all(durable.startswith("evaluator-") for durable in durables):
            users |= {durable: (list(contract.publishes), [durable]) for durable in durables}
        else:
            users[name] = (list(contract.publishes), durables)
    return users


def password_variable(user: str) -> str:
    """The environment variable of the server that holds a user's password."""
    return "NATS_PASSWORD_" + user.upper().replace("-", "_")


def permissions(user: str) -> tuple[list[str], list[str], list[str]]:
    """What a service may publish, may not publish although it lies within that, and may subscribe to."""
    users = services()
    publishes, own = users[user]
    allowed = [subject_of(model) for model in publishes]
    allowed += [f"{topology.DEAD_LETTER_PREFIX}>", f"{topology.PROGRESS_PREFIX}>", *SHARED]
    denied = list(ADMINISTRATION)
    for durable in sorted({name for _, names in users.values() for name in names}):
        # Nobody but the operator makes or changes a durable; nobody but its owner takes or settles its messages.
        create = f"$JS.API.CONSUMER.CREATE.{topology.EVENTS}.{durable}"
        denied += [create, f"{create}.>"]
        if durable not in own:
            next_message = f"$JS.API.CONSUMER.MSG.NEXT.{topology.EVENTS}.{durable}"
            denied += [next_message, f"$JS.ACK.{topology.EVENTS}.{durable}.>"]
    inbox = f"_INBOX_{user}.>"
    return sorted(set(allowed)), sorted(denied), [inbox]


def _listed(subjects: list[str], indent: str) -> str:
    return "[\n" + "".join(f'{indent}  "{subject}"\n' for subject in subjects) + f"{indent}]"


def render() -> str:
    """The whole file."""
    parts = [
        "# Written by `python -m deploy.nats.users` from the bus's topology; a test fails when it drifts.\n",
        "authorization {\n  users = [\n",
        f"    {{ user: {OPERATOR}, password: ${password_variable(OPERATOR)} }}\n",
    ]
    for user in services():
        allowed, denied, inboxes = permissions(user)
        parts.append(
            f"    {{\n      user: {user}\n      password: ${password_variable(user)}\n      permissions: {{\n"
            f"        publish: {{\n          allow: {_listed(allowed, ' ' * 10)}\n"
            f"          deny: {_listed(denied, ' ' * 10)}\n        }}\n"
            f"        subscribe: {{ allow: {_listed(inboxes, ' ' * 8)} }}\n      }}\n    }}\n"
        )
    parts.append("  ]\n}\n")
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
