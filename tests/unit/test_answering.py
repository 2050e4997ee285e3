"""From a shard of rows to requests, and from generations to what evaluators read."""

from __future__ import annotations

from llamaduo.datasets import Message, dump_rows, load_shard, make_row
from services.inference.answering import TOO_LONG, answers_cut, is_too_long, shard_rows
from services.inference.engine import Generation


def test_a_prompt_that_does_not_fit_has_no_answer_and_says_why() -> None:
    rows = [
        make_row([Message(role="user", content=text), Message(role="assistant", content="yes")]) for text in "abc"
    ]
    generations = [
        Generation(rows[0].id, ["fine", "cut of"], ["stop", "length"], 1, 1),
        Generation(rows[1].id, ["", ""], ["prompt_too_long"] * 2, 0, 0),
        Generation(rows[2].id, ["", "x"], ["stop", "length"], 1, 1),
    ]
    first, second, third = load_shard(dump_rows(shard_rows(rows, generations)))
    assert (first.answers, first.errors) == (["fine", "cut of"], [])
    assert (second.answers, second.errors) == ([None, None], [TOO_LONG, TOO_LONG])
    assert (third.answers, third.errors) == (["", "x"], [])
    assert [is_too_long(generation) for generation in generations] == [False, True, False]
    assert answers_cut(generations) == 2
