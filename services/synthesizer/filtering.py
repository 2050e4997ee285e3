"""Keeps the good ones of the pairs a teacher wrote, and counts why the others were dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llamaduo.datasets import Row
from llamaduo.event_parts import Split
from llamaduo.identity import canonical_json
from services.synthesizer.answer_form import answer_form, conform
from services.synthesizer.asking import Pair
from services.synthesizer.called_tools import called_rightly
from services.synthesizer.held_rows import HeldRows
from services.synthesizer.near_copies import CopyFinder, comparable, shared_frame

Dropped = Literal["malformed", "invalid_call", "near_copy_held", "duplicate", "near_copy_train"]
FILTERS: tuple[Dropped, ...] = ("malformed", "invalid_call", "near_copy_held", "duplicate", "near_copy_train")
LENGTH_SLACK = 20  # characters, so that a set of one-word answers does not forbid a longer word


class Screen:
    """The filters of one round. Each admitted pair is compared with by the later ones.

    A pair is dropped by the first of: `malformed` (empty, more than twice as long as nearly all of the
    team's own rows, or not the JSON object that all their answers are), `invalid_call` (calls no tool that is
    offered as its schema allows; in words only where the team's rows answer so too), `near_copy_held` (gives a
    validation, test or holdout row away: contamination), `duplicate` (a prompt we have, but for case and
    punctuation), `near_copy_train` (resembles a train row or one admitted before).
    """

    def __init__(self, splits: Mapping[Split, Sequence[Row]], near_copy: float) -> None:
        own = [row for rows in splits.values() for row in rows if row.source == "coverage"]
        self._form = answer_form([row.answer for row in own if not row.tools])
        self._answered_in_words = {
            canonical_json(row.tools)
            for row in own
            if row.tools and not row.messages[-1].tool_calls and not row.follows_a_tool
        }
        self._frame = shared_frame(row.user_text for row in own)
        self._prompt_limit = _length_limit([row.user_text for row in own])
        self._answer_limit = _length_limit([row.answer for row in own])
        held = [row for split, rows in splits.items() if split != "train" for row in rows]
        train = [comparable(row.user_text, self._frame) for row in splits["train"]]
        self._held = HeldRows(held, self._frame, near_copy)
        self._ours = CopyFinder(train, near_copy)
        self._seen = {text.whole for text in train}

    def admit(self, pair: Pair, tools: Sequence[Mapping[str, Any]] | None = None) -> Pair | Dropped:
        """The pair in its final form, or the filter that drops it; `tools` are those that its prompt offers."""
        prompt = pair.prompt.strip()
        if not tools:
            answer = conform(pair.answer, self._form)
        else:
            words_too = canonical_json(list(tools)) in self._answered_in_words
            answer = called_rightly(pair.answer, tools, words_too=words_too)
            if answer is None:
                return "invalid_call"
        if not prompt or not answer or not _is_unicode(prompt + answer):
            return "malformed"
        if len(prompt) > self._prompt_limit or len(answer) > self._answer_limit:
            return "malformed"
        text = comparable(prompt, self._frame)
        if self._held.given_away(text, answer):
            return "near_copy_held"
        if text.whole in self._seen:
            return "duplicate"
        if self._ours.resembles(text):
            return "near_copy_train"
        self._ours.add(text)
        self._seen.add(text.whole)
        return Pair(prompt=prompt, answer=answer)


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can hold and no file can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _length_limit(texts: Sequence[str]) -> int:
    """Twice the length below which 99 % of the texts are, in characters."""
    lengths = sorted(len(text) for text in texts)
    return 2 * lengths[min(len(lengths) - 1, int(len(lengths) * 0.99))] + LENGTH_SLACK if lengths else 0
