"""What to do when a migration does not go on: one line for each reason, for `watch`, `status` and the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llamaduo.events import MigrationCancelled, MigrationStopped

if TYPE_CHECKING:
    from llamaduo.migrations.fold import MigrationView

ADVICE: Final[dict[str, str]] = {
    "rounds": "look at marks by round: still rising, raise budgets.rounds or synthesis.rows_per_round; flat, take "
    "a larger base model or more recipe.steps; undecided near the gate, add test rows",
    "no_gain": "more data of this kind does not help: take a larger base model, a higher recipe.rank or more "
    "recipe.steps, write a better `task`, or read the failing rows for wrong references",
    "budget": "were the marks worth it? Then raise the budget that is named and submit again; `llamaduo plan` says "
    "what all rounds would take",
    "hours": "was something down (llamaduo status)? Else raise budgets.hours; a round that passed and is not served: "
    "llamaduo promote",
    "serving": "the answers are good enough and not fast enough here: a smaller base model, shorter answers, a "
    "faster box or another gate.serving; or serve it as it is: llamaduo promote MIGRATION --round N",
    "silent_evaluator": "llamaduo evaluator list shows who runs: start it, or raise marking.silent_after_s",
    "error": "llamaduo dlq list has the message and its reason: mend the cause, then submit again",
}
"""Rule -> next thing to do. docs/operate.md says more."""


def what_to_do(rule: str) -> str:
    """The advice on a stop; "" for a rule of another version."""
    return ADVICE.get(rule, "")


PAUSED: Final = "llamaduo resume MIGRATION goes on; llamaduo cancel MIGRATION ends it"
CANCELLED: Final = (
    "nothing more; what was made stays: llamaduo promote MIGRATION --round N serves an adapter of it, and "
    "llamaduo migrate SPEC --submission 2 begins anew"
)


def next_thing_to_do(view: MigrationView) -> str:
    """The advice on a migration that a rule, a pause or a cancel keeps from going on; "" for any other."""
    if isinstance(view.ended, MigrationStopped):
        return what_to_do(view.ended.rule)
    if isinstance(view.ended, MigrationCancelled) or (view.ended is None and view.cancel is not None):
        return CANCELLED
    return PAUSED if view.ended is None and view.paused else ""
