"""The nearest train row's answer, copied: what no training at all gives."""

from __future__ import annotations

from llamaduo.datasets import Message, Row, make_row
from services.synthesizer.nearest import nearest_rows


def row(prompt: str, answer: str) -> Row:
    return make_row([Message(role="user", content=prompt), Message(role="assistant", content=answer)])


TRAIN = [
    row("Where is my parcel, please?", "tracking"),
    row("I want my money back", "refund"),
    row("Hello!", "other"),
]


def test_the_answer_comes_from_the_row_with_the_same_words_in_any_order() -> None:
    asked = [row("please: where is the parcel of MINE", "tracking"), row("Back I want my money!", "refund")]
    shard = nearest_rows(TRAIN, asked, samples=2)
    assert [one.answers for one in shard] == [["tracking", "tracking"], ["refund", "refund"]]
    assert [one.row for one in shard] == [one.id for one in asked]


def test_the_asked_rows_own_answer_plays_no_part() -> None:
    one, other = (nearest_rows(TRAIN, [row("Hello there", answer)])[0] for answer in ("refund", "tracking"))
    assert one.answers == other.answers == ["other"]


def test_the_order_of_train_rows_changes_nothing() -> None:
    twins = [row("A question", "one"), row("A question?", "two")]
    asked = [row("a question!", "x")]
    assert nearest_rows(twins, asked)[0].answers == nearest_rows(twins[::-1], asked)[0].answers


def test_without_train_rows_there_is_no_answer() -> None:
    (one,) = nearest_rows([], [row("Hello", "other")])
    assert one.answers == [None] and one.errors
