"""`python -m tests.faults --seed N --runs K`: migrations under seeded faults; a failing seed can be played again."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.kinds import left_out
from tests.faults.run import Outcome, compare, play, told
from tests.faults.schedule import KINDS, SPAN, Fault, schedule
from tests.support import free_port


async def _main(seed: int, runs: int, minutes: float, span: float, kinds: list[str]) -> int:
    port, missing = free_port(), left_out()
    for kind, why in missing.items():
        print(f"left out: {kind}: {why}")
    with tempfile.TemporaryDirectory(prefix="llamaduo-faults-") as temp:
        calm = await play(Path(temp) / "calm", port, [])
        print(f"without faults: {calm.seconds:.1f} s, {calm.effects['verdicts']}", flush=True)
        if calm.problems:
            print(f"  FAILED: {calm.problems}")
            return 1
        began, failed, done = time.monotonic(), 0, 0
        for number in range(seed, seed + runs):
            if (time.monotonic() - began) / 60 > minutes:
                break
            faults = [fault for fault in schedule(number, span, kinds) if fault.kind not in missing]
            problems = await _one(Path(temp) / str(number), port, number, calm, faults)
            if problems:
                only = "" if len(kinds) == len(KINDS) else f" --kinds {','.join(kinds)}"
                print(f"  again: python -m tests.faults --seed {number} --runs 1 --span {span:g}{only}", flush=True)
            failed += bool(problems)
            done += 1
    print(f"{done - failed} passed, {failed} failed")
    return 1 if failed else 0


async def _one(folder: Path, port: int, seed: int, calm: Outcome, faults: list[Fault]) -> list[str]:
    """Play a seed and print what came of it; what is wrong."""
    try:
        hurt = await play(folder, port, faults)
        problems, seconds = compare(calm, hurt), f"{hurt.seconds:.1f} s"
        note = f"{len(hurt.struck)} of {len(faults)} faults struck, {len(hurt.listed)} calls listed as bought again"
    except AssertionError as error:
        problems, seconds, note = [str(error)], "?", "no end"
    print(f"seed {seed}: {'FAILED' if problems else 'ok'} in {seconds}, {note}")
    print(f"  faults: {told(faults)}", flush=True)
    for problem in problems:
        print(f"  {problem}", flush=True)
    return problems


def _kinds(given: str) -> list[str]:
    names = given.split(",")
    if unknown := set(names) - set(KINDS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    return [name for name in KINDS if name in names]


def main() -> None:
    """Command line; exit code 1 if any run broke a promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of the first run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60, help="start no further run after this")
    parser.add_argument("--span", type=float, default=SPAN, help="seconds in which the faults strike")
    parser.add_argument(
        "--kinds", type=_kinds, default=list(KINDS), help="of faults, with commas between; all if left out"
    )
    chosen = parser.parse_args()
    sys.exit(asyncio.run(_main(chosen.seed, chosen.runs, chosen.minutes, chosen.span, chosen.kinds)))


if __name__ == "__main__":
    main()
