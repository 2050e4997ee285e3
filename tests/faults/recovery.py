"""How long after a fault its victim works again, by the log alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from tests.faults.checker import own
from tests.faults.evidence import Evidence, Message
from tests.faults.schedule import NATS, Fault


def seconds_to_recover(found: Evidence, fault: Fault, ended: float) -> float | None:
    """Seconds from the end of a fault to the victim's next event in the log; of anybody's where nats-server was hit.

    Time in which the victim had nothing to do is not counted: it runs from when the job of that event was asked,
    where that was after the fault. The verdict's events are of no job: there it runs from the first event that was
    not answered, which is rather too early. None where the victim had nothing more to say.
    """
    log = own(found)
    asked = _asked(found, log)
    unanswered: float | None = None
    for message in log:
        if fault.victim != NATS and _who(message) != fault.victim:
            unanswered = unanswered or message.at
        elif message.at > ended:
            return message.at - max(ended, asked.get(message.body["id"], unanswered or ended))
        else:
            unanswered = None
    return None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of all is not above (nearest rank). ValueError without values."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _who(message: Message) -> str:
    """The service that published it; its other replicas are called `<service>/2`."""
    return str(message.body.get("source", "")).partition("/")[2].partition("/")[0]


def _asked(found: Evidence, log: Sequence[Message]) -> dict[str, float]:
    """When the job was asked that an event came of, by the event's id."""
    times = {message.body["id"]: message.at for message in log}
    asked = {}
    for key, record in found.buckets.get("work", {}).items():
        job = key.rpartition(".")[2]
        for result in record["results"] if record["state"] == "done" and job in times else []:
            asked[json.loads(result)["id"]] = times[job]
    return asked
