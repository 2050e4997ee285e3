"""How a text comes back as a copy that is not letter for letter the same: one function a kind, chance given."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Final

SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    "account": ("profile",),
    "activate": ("enable", "switch on"),
    "allowed": ("permitted",),
    "amount": ("sum",),
    "arrive": ("come", "get here"),
    "arrived": ("come", "shown up"),
    "bill": ("statement",),
    "broken": ("damaged", "faulty"),
    "buy": ("purchase",),
    "cancel": ("call off", "stop"),
    "cancelled": ("called off",),
    "change": ("alter", "modify"),
    "charge": ("fee", "cost"),
    "charged": ("billed",),
    "check": ("verify",),
    "cost": ("price",),
    "country": ("nation",),
    "declined": ("refused", "rejected"),
    "delete": ("remove",),
    "deposit": ("payment",),
    "exchange": ("swap", "conversion"),
    "fee": ("charge",),
    "find": ("locate",),
    "get": ("obtain", "receive"),
    "happened": ("occurred",),
    "help": ("assist",),
    "incorrect": ("wrong",),
    "invoice": ("bill",),
    "issue": ("problem",),
    "know": ("understand",),
    "late": ("delayed",),
    "long": ("much time",),
    "lost": ("misplaced",),
    "missing": ("gone", "absent"),
    "money": ("funds", "cash"),
    "need": ("require",),
    "new": ("fresh",),
    "open": ("start",),
    "order": ("request",),
    "pay": ("settle",),
    "payment": ("transaction",),
    "phone": ("mobile",),
    "please": ("kindly",),
    "problem": ("issue",),
    "received": ("got",),
    "refund": ("reimbursement", "money back"),
    "replace": ("swap",),
    "sent": ("dispatched",),
    "send": ("dispatch", "post"),
    "show": ("display",),
    "stolen": ("robbed",),
    "stuck": ("jammed",),
    "tell": ("inform",),
    "transaction": ("payment",),
    "transfer": ("remittance", "move"),
    "try": ("attempt",),
    "urgent": ("pressing",),
    "use": ("employ",),
    "verify": ("confirm",),
    "want": ("wish",),
    "withdraw": ("take out",),
    "withdrawal": ("payout",),
    "wrong": ("incorrect",),
}
BEFORE: Final = (
    "Hi there, I hope you can help me with something.",
    "Good morning!",
    "I have been a customer of yours for three years now.",
    "Sorry to bother you again, but I was not told last time.",
    "Quick question:",
    "I looked through all of the pages and found nothing.",
)
AFTER: Final = (
    "Thanks a lot for your help.",
    "I would be glad about a quick reply, as I travel tomorrow.",
    "Please explain it to me step by step.",
    "Regards, Robin",
    "My friend has had the same thing.",
    "Let me know what you need from me.",
)
OTHER_WORDS: Final = ("maybe", "really", "today", "their", "such", "quite", "again", "another", "two", "something")


def exact(text: str, _chance: random.Random) -> str:
    """Letter for letter."""
    return text


def case_and_punctuation(text: str, chance: random.Random) -> str:
    """Other case; signs taken out, or put between words."""
    words = re.sub(r"[^\w\s']", " ", text).split()
    joined = chance.choice([" ", "  ", ", ", " - "]).join(words)
    return chance.choice([joined.lower(), joined.upper(), joined.title()]) + chance.choice(["", "!", "...", "??"])


def word_order(text: str, chance: random.Random) -> str:
    """The same words in another order."""
    words = text.split()
    return " ".join(chance.sample(words, len(words)))


def one_word_changed(text: str, chance: random.Random) -> str:
    """One word replaced by one that does not mean the same."""
    words = text.split()
    words[chance.randrange(len(words))] = chance.choice(OTHER_WORDS)
    return " ".join(words)


def synonyms(text: str, chance: random.Random) -> str:
    """Every word that has one gets a synonym."""

    def swap(found: re.Match[str]) -> str:
        others = SYNONYMS.get(found[0].lower())
        return chance.choice(others) if others else found[0]

    return re.sub(r"[A-Za-z]+", swap, text)


def text_added(text: str, chance: random.Random) -> str:
    """A sentence before it, after it, or both."""
    before, after = chance.choice([(True, False), (False, True), (True, True)])
    return " ".join([chance.choice(BEFORE)] * before + [text] + [chance.choice(AFTER)] * after)


def sentence_split(text: str, chance: random.Random) -> str:
    """Cut in two sentences, which may change places."""
    words = text.rstrip(string.punctuation).split()
    place = chance.randrange(1, len(words))
    halves = [" ".join(words[:place]), " ".join(words[place:])]
    if chance.random() < 0.5:
        halves.reverse()
    return " ".join(f"{half[:1].upper()}{half[1:]}." for half in halves)


def typos(text: str, chance: random.Random) -> str:
    """One slip of the finger in each five words, at least one."""
    letters = list(text)
    places = [place for place, char in enumerate(letters) if char.isalpha()]
    for place in chance.sample(places, min(len(places), max(1, len(text.split()) // 5))):
        slip = chance.randrange(3)
        if slip == 0:
            letters[place] = ""
        elif slip == 1:
            letters[place] *= 2
        else:
            letters[place] = chance.choice(string.ascii_lowercase)
    return "".join(letters)


def several_at_once(text: str, chance: random.Random) -> str:
    """Typos, other case and added text together."""
    return text_added(case_and_punctuation(typos(text, chance), chance), chance)


Disguise = Callable[[str, random.Random], str]
KINDS: Final[Mapping[str, Disguise]] = {
    "exact": exact,
    "case_and_punctuation": case_and_punctuation,
    "word_order": word_order,
    "sentence_split": sentence_split,
    "text_added": text_added,
    "typos": typos,
    "one_word_changed": one_word_changed,
    "synonyms": synonyms,
    "several_at_once": several_at_once,
}
NEAR_VERBATIM: Final = ("exact", "case_and_punctuation", "word_order", "sentence_split", "text_added", "typos")
LEAST_WORDS: Final = 3  # a text of two words has no order, and with one changed little is left of it


def disguised(texts: Sequence[str], kind: str, seed: int) -> list[tuple[str, str]]:
    """(text, its copy) for each text that can be disguised so; a copy of a kind but `exact` is never the text."""
    chance = random.Random(f"{kind} {seed}")
    pairs = []
    for text in texts:
        if kind != "exact" and len(text.split()) < LEAST_WORDS:
            continue
        copies = (KINDS[kind](text, chance) for _ in range(5))
        copy = next((one for one in copies if kind == "exact" or one != text), None)
        if copy is not None:
            pairs.append((text, copy))
    return pairs
