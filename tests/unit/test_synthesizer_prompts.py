"""What the service LLM is shown over a whole run of failing rounds: nothing of a row that is held."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from llamaduo.coverage_files import read_coverage
from llamaduo.datasets import Message, Row, make_row
from llamaduo.event_parts import FailingRow, Split
from llamaduo.migrations.spec import Splits
from services.synthesizer.asking import Pair, TeacherAnswer, TeacherPrompt
from services.synthesizer.fake_teacher import FakeTeacher
from services.synthesizer.merging import merge
from services.synthesizer.near_copies import words_of
from services.synthesizer.scrubbing import scrub
from services.synthesizer.splitting import split_coverage
from services.synthesizer.synthesis import synthesize
from tests.support import ROOT
from tests.unit.synthesizer_rows import record, row, spec, text

TICKETS = ROOT / "examples" / "support-triage" / "tickets.jsonl"
HELD: tuple[Split, ...] = ("test", "validation", "holdout")
ROUNDS = 3

Quote = Callable[[Row], list[str]]
QUOTES: dict[str, Quote] = {
    "verbatim": lambda one: [f"The user wrote {one.user_text!r}, and {one.answer} was expected of it."],
    "shouted": lambda one: [f"NOT GOOD: «{one.user_text.upper()}» NEEDS {one.answer.upper()} BY ALL MEANS"],
    "signs between": lambda one: [f"See here: {' -- '.join(one.user_text.split())}. The reply is off the point."],
    "escaped": lambda one: [f"In {json.dumps({'prompt': one.user_text, 'answer': one.answer})} the reply is wrong."],
    "markup": lambda one: [
        "It misreads " + " ".join(f"**{word}**" for word in one.user_text.split()) + " as a whole"
    ],
    "three words a time": lambda one: [
        "; then again ".join(
            " ".join(one.user_text.split()[at : at + 3]) for at in range(0, len(one.user_text.split()), 3)
        )
    ],
    "a piece each": lambda one: [
        f"Remark that the words {' '.join(one.user_text.split()[at : at + 3])} are overlooked by it."
        for at in range(0, 12, 3)
    ],
    "backwards": lambda one: [f"These words are there: {' '.join(reversed(one.user_text.split()))}"],
}


def tickets() -> dict[Split, list[Row]]:
    rows = split_coverage(read_coverage(TICKETS), Splits(train=40, validation=20, test=60, holdout=20), 3, 90).rows
    short = [row("Why though?", "other"), row("Lost it!", "other"), row("Any idea?", "other")]
    unspaced = [row("我昨天订的蓝色台灯什么时候能送到", "送货"), row("注文した青いランプが壊れていました", "破損")]
    own_system = make_row(
        [
            Message(role="system", content="The customer Ottilie Quendelbaum lives at Lindenallee in Kirchdorf."),
            Message(role="user", content="Could somebody ring me back about the lamp tomorrow?"),
            Message(role="assistant", content="other"),
        ]
    )
    return {**rows, "test": [*rows["test"], *short, *unspaced, own_system]}


async def whole_run(splits: dict[Split, list[Row]], quote: Quote, strategy: str) -> list[TeacherPrompt]:
    """Prompts of all rounds, with every test row failing each time; the teacher recites held rows when it can."""

    def answer(prompt: TeacherPrompt) -> TeacherAnswer:
        chance = random.Random(prompt.seed)
        held = [one for split in HELD for one in splits[split]]
        recited = [
            Pair(prompt=f"Hello! {one.user_text} Bye", answer=record(chance)) for one in chance.sample(held, 4)
        ]
        fresh = [Pair(prompt=text(chance), answer=splits["train"][chance.randrange(40)].answer) for _ in range(6)]
        return TeacherAnswer(pairs=[*recited, *fresh])

    teacher = FakeTeacher(answer)
    current = dict(splits)
    for number in range(1, ROUNDS + 1):
        new = await synthesize(
            splits=current,
            failures=[FailingRow(row=one.id, mark=0, reasons=quote(one)) for one in splits["test"]],
            spec=spec(strategy=strategy, uniform_share=0.1, rows_per_round=120),
            migration="m" * 24,
            round_number=number,
            teacher=teacher,
        )
        current["train"] = merge(current["train"], new.rows)
    return teacher.asked


def runs_of(text: str, length: int = 4) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


@pytest.mark.parametrize("how", QUOTES)
async def test_no_held_rows_text_is_in_any_prompt_of_a_run(how: str) -> None:
    splits = tickets()
    asked = await whole_run(splits, QUOTES[how], "targeted")
    assert len(asked) >= ROUNDS * 12
    shown = "\n".join(message.content for prompt in asked for message in prompt.messages)
    plain = f" {' '.join(words_of(shown))} "
    squeezed = plain.replace(" ", "")
    ours = "\n".join(f"{one.user_text}\n{one.answer}" for one in splits["train"])
    allowed, answers = runs_of(ours), {one.answer for one in splits["train"]}
    said = runs_of(shown)
    for split in HELD:
        for one in splits[split]:
            assert f" {' '.join(words_of(one.user_text))} " not in plain
            assert not (runs_of(one.user_text) & said) - allowed
            assert one.answer in answers or len(one.answer) < 15 or one.answer.lower() not in shown.lower()
            if not one.user_text.isascii():
                assert not any(one.user_text[at : at + 6] in squeezed for at in range(len(one.user_text) - 5))
    assert "quendelbaum lives" not in plain
    assert "lives at lindenallee in" not in plain


async def test_no_reason_tells_what_a_test_row_is_about_word_by_word() -> None:
    """A reason that lists most words of a short row lets it be written again, whatever their order."""
    target = "My blue lamp arrived broken yesterday."
    assert scrub("It names broken yesterday and the lamp that arrived and is blue.", [target]) == ""
    assert scrub("It takes a broken thing for a late one.", [target]) == "It takes a broken thing for a late one."


@pytest.mark.parametrize(
    ("reason", "said", "answer", "expected"),
    [
        ("The reply to «why though?» is too long.", ["Why though?"], "", "The reply to « … ?» is too long."),
        ("回答忽略了我昨天订的蓝色台灯 and is wrong", ["我昨天订的蓝色台灯什么时候能送到"], "", "and is wrong"),
        ("Expected a fee that was not due here.", ["Where?"], "a fee that was not due", ""),
        ("It says refund for a card arrival.", ["Where?"], "card arrival", "It says refund for a card arrival."),
    ],
)
def test_short_texts_other_scripts_and_answers(reason: str, said: list[str], answer: str, expected: str) -> None:
    assert scrub(reason, said, answer) == expected


async def test_an_answer_that_train_rows_have_may_be_named() -> None:
    splits = tickets()
    label = "balance not updated after bank transfer"
    splits["train"] = [row(f"{one.user_text}", label) for one in splits["train"]]
    splits["test"] = [row(one.user_text, label) for one in splits["test"]]
    reasons: Quote = lambda one: [f"The reply names another label than {one.answer} here."]  # noqa: E731
    targeted, uniform = [
        [prompt.messages[1].content for prompt in await whole_run(splits, reasons, strategy)]
        for strategy in ("targeted", "uniform")
    ]
    assert any(f"another label than {label} here" in content for content in targeted)
    assert not any("another label" in content for content in uniform)
