"""Reading a stream by sequence number: what a breaking connection does to an answer in many parts."""

from __future__ import annotations

from typing import Any

import pytest
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout
from nats.js.errors import NotFoundError

from llamaduo.bus.denials import Denials
from llamaduo.bus.reading import Incomplete, Stored, StreamReader


class Part:
    """One message of an answer; without a sequence number the end of it."""

    def __init__(self, seq: int | None, before: int, status: str | None = None, pending: int = 0) -> None:
        self.data = b"body" if status is None else b""
        self.headers = {"Nats-Last-Sequence": str(before), "Nats-Num-Pending": str(pending)}
        self.headers |= {"Status": status} if status else {"Nats-Sequence": str(seq), "Nats-Subject": "dataset.ready"}


class Answering:
    """A client that gets these parts, and then nothing more."""

    def __init__(self, *parts: Part) -> None:
        self._parts = iter(parts)

    def new_inbox(self) -> str:
        return "_INBOX.x"

    async def subscribe(self, _inbox: str) -> Answering:
        return self

    async def publish(self, *_given: Any, **_named: Any) -> None:
        pass

    async def next_msg(self, timeout: float) -> Part:
        try:
            return next(self._parts)
        except StopIteration:
            raise NatsTimeout from None

    async def unsubscribe(self) -> None:
        pass


def reader(*parts: Part) -> StreamReader:
    client: Any = Answering(*parts)
    return StreamReader(client, "EVENTS", Denials("test"))


async def test_a_whole_answer_says_whether_there_is_more() -> None:
    found, more = await reader(Part(2, 0), Part(5, 2), Part(None, 5, "204", pending=3)).batch(1)
    assert found == [Stored(2, "dataset.ready", b"body"), Stored(5, "dataset.ready", b"body")] and more
    assert await reader(Part(None, 0, "404")).batch(9) == ([], False)


@pytest.mark.parametrize(
    "parts",
    [
        [Part(2, 0), Part(7, 5), Part(None, 7, "204")],
        [Part(5, 2), Part(None, 5, "204")],
        [Part(2, 0), Part(None, 5, "204")],
    ],
    ids=["in the middle", "the first", "the last"],
)
async def test_a_part_that_got_lost_is_missed(parts: list[Part]) -> None:
    with pytest.raises(Incomplete):
        await reader(*parts).batch(1)


async def test_an_answer_that_breaks_off_or_is_none_is_an_error() -> None:
    with pytest.raises(NatsTimeout):
        await reader(Part(2, 0)).batch(1)
    with pytest.raises(NotFoundError):
        await reader(Part(None, 0, "503")).batch(1)
    with pytest.raises(NatsError, match="413"):
        await reader(Part(None, 0, "413")).batch(1)
