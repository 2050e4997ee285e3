"""One migration to its end by the paper's procedure (`paper_procedure.py`) and by ours: calls, tokens, money, time.

Same dataset, splits, gate, judge's prompt, filters, trainer and generator (fakes, so that what is compared is what
the service LLM is asked), and the same emulator, with a latency and a rate limit, counts both. Ours is the whole
system on a real nats-server with its defaults, its baselines and the holdout included, which the paper has not.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.limits import emulator, ledger_of, most_in_a_minute
from benchmarks.paper_procedure import Procedure, Run
from benchmarks.system import TICKETS, books, ended, submit, view_of, whole_system
from llamaduo.coverage_files import read_coverage
from llamaduo.events import DatasetReady, EvalScored, ResponsesGenerated
from llamaduo.migrations.fold import MigrationView
from llamaduo.migrations.spec import MigrationSpec, ServiceLLM
from llamaduo.service_llm import prices
from llamaduo.service_llm.ledger import LedgerEntry
from services.synthesizer.splitting import split_coverage

MODEL = "gpt-4o"
"""The name that the emulator goes by: for its prices."""
_IDLE_S = 2.0
_MIGRATION_S = 1_800


@dataclass(frozen=True)
class Setting:
    """What both are given. Latency in seconds is 600 / rpm, as when the paper's procedure was measured."""

    rpm: int
    test_rows: int
    procedure: Procedure

    @property
    def latency_ms(self) -> float:
        return 600_000 / self.rpm


FULL = Setting(1_200, 60, Procedure())
REFUSED = Setting(6_000, 60, Procedure())
"""Where one test row's judging is refused for good. A faster provider, for the sake of time."""
QUICK = Setting(6_000, 60, Procedure(answers=2, repeats=2))


def spec_of(setting: Setting, url: str) -> MigrationSpec:
    """A migration that fails in round 0 and passes in round 1, by both means of the judge."""
    return MigrationSpec.model_validate(
        {
            "name": "baseline",
            "coverage": str(TICKETS),
            "base_model": "fake",
            "service_llm": {"model": f"openai:{MODEL}", "base_url": url, "requests_per_minute": setting.rpm},
            "gate": {"absolute": {"llm-judge.similarity": 60, "llm-judge.precision": 60}},
            "evaluators": ["llm-judge"],
            "splits": {"train": 30, "validation": 20, "test": setting.test_rows, "holdout": 20},
            "recipe": {"steps": 5},
        }
    )


def rate_reached(times: Sequence[float]) -> float:
    """Requests a minute while there was work: pauses of more than two seconds are left out."""
    ordered = sorted(times)
    gaps = [after - before for before, after in itertools.pairwise(ordered)]
    busy = [gap for gap in gaps if gap <= _IDLE_S]
    return 60 * len(busy) / sum(busy) if busy else 0.0


def figures(llm: ServiceLLM, provider: dict[str, Any], times: Sequence[float], seconds: float) -> dict[str, Any]:
    """What one of them took, as the emulator counted it."""
    totals = provider["totals"]
    tokens_in, tokens_out = totals["prompt_tokens"], totals["completion_tokens"]
    rate = rate_reached(times)
    return {
        "calls": totals["completed"],
        "refused_429": totals["refused_429"],
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "money": round(prices.money(llm, tokens_in, tokens_out) or 0.0, 4),
        "seconds": round(seconds, 1),
        "calls_per_minute": round(rate, 1),
        "share_of_rate": round(rate / llm.requests_per_minute, 4),
        "most_in_60_s": most_in_a_minute(sorted(times)),
    }


async def by_paper(folder: Path, setting: Setting, url: str) -> dict[str, Any]:
    """The paper's procedure."""
    spec = spec_of(setting, url)
    folder.mkdir(parents=True)
    began = time.perf_counter()
    story = await Run(spec, setting.procedure, folder).migrate(read_coverage(TICKETS))
    took = time.perf_counter() - began
    return {
        **figures(spec.service_llm, await ledger_of(url), story.sent, took),
        "passed": story.passed,
        "rounds": len(story.means),
        "judge_calls_a_round": setting.test_rows * setting.procedure.answers * setting.procedure.repeats,
        "means": [[round(mean, 1) for mean in means] for means in story.means],
        "seconds_by_stage": {stage: round(spent, 1) for stage, spent in story.seconds.items()},
        "requests_lost_with_a_stage": story.lost,
        "rows_taken_out": story.rows_taken_out,
    }


async def by_ours(folder: Path, setting: Setting, url: str) -> dict[str, Any]:
    """Our loop, all its services in one process."""
    spec = spec_of(setting, url)
    async with whole_system(folder, ["llm-judge"]) as bus:
        migration = await submit(bus, spec)
        await ended(bus, migration, _MIGRATION_S)
        provider, entries = await books(bus, url)
        view = await view_of(bus, migration)
    times = [attempt.began for entry in entries.values() for attempt in entry.attempts]
    assert view.request is not None and view.ended is not None
    seconds = (view.ended.at - view.request.at).total_seconds()
    return {
        **figures(spec.service_llm, provider, times, seconds),
        "passed": view.passed is not None,
        "rounds": len(view.rounds),
        "calls_without_ledger": calls_without_ledger(view),
        "calls_by_purpose": dict(Counter(_purpose(entry) for entry in entries.values())),
        "judge_calls_a_round": [_marked(view, number) for number in view.rounds],
        "marks_withheld": sum(mark.value is None for one in view.of_type(EvalScored) for mark in one.marks),
    }


def calls_without_ledger(view: MigrationView) -> int:
    """Calls if no answer served twice: the fakes give many equal answers, which are marked once."""
    events: list[DatasetReady | ResponsesGenerated | EvalScored] = [
        *view.of_type(DatasetReady),
        *view.of_type(ResponsesGenerated),
        *view.of_type(EvalScored),
    ]
    return sum(event.calls.made + event.calls.from_ledger for event in events)


def _purpose(entry: LedgerEntry) -> str:
    return entry.purpose.partition("/")[0]


def _marked(view: MigrationView, number: int) -> int:
    scored = view.scored(f"round-{number}", "test", "llm-judge").values()
    return sum(one.calls.made + one.calls.from_ledger for shard in scored for one in shard)


def ratios(ours: dict[str, Any], paper: dict[str, Any]) -> dict[str, float]:
    """Ours by the paper's."""
    of = ("calls", "tokens_in", "tokens_out", "money", "seconds")
    return {
        **{f"{name}_ratio": round(ours[name] / paper[name], 4) for name in of},
        "calls_without_ledger_ratio": round(ours["calls_without_ledger"] / paper["calls"], 4),
    }


async def compare(folder: Path, setting: Setting, refused_text: str = "") -> dict[str, Any]:
    """Both in one setting, each with an emulator of its own that knows nothing yet."""
    played: dict[str, dict[str, Any]] = {}
    for name, play in (("ours", by_ours), ("paper", by_paper)):
        flags: dict[str, Any] = {"rpm": setting.rpm, "latency_ms": setting.latency_ms, "model_name": MODEL}
        if refused_text:
            flags["refused_text"] = refused_text
        with emulator(folder / name / "emulator", **flags) as url:
            played[name] = found = await play(folder / name / "run", setting, url)
        print(
            f"{name:>5}: {found['calls']} calls, ${found['money']:.2f}, {found['seconds']:.0f} s, "
            f"{100 * found['share_of_rate']:.1f} % of {setting.rpm} a minute, {found['rounds']} rounds",
            flush=True,
        )
    return {
        "rpm": setting.rpm,
        "test_rows": setting.test_rows,
        **ratios(played["ours"], played["paper"]),
        **{f"share_of_rate_{name}": found["share_of_rate"] for name, found in played.items()},
        **played,
    }


def one_test_row(setting: Setting) -> str:
    """The text of a test row that both have in their test split."""
    spec = spec_of(setting, "http://127.0.0.1/v1")
    rows = split_coverage(read_coverage(TICKETS), spec.splits, spec.seed, spec.synthesis.near_copy).rows["test"]
    return rows[0].user_text


async def baseline(quick: bool) -> dict[str, Any]:
    """Without a fault, then with one test row that the provider refuses to judge."""
    plain, refused = (QUICK, QUICK) if quick else (FULL, REFUSED)
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        without = await compare(folder / "plain", plain)
        with_one = await compare(folder / "refused", refused, one_test_row(refused))
    return {**without, "one_refusal": with_one}
