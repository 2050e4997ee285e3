"""`python -m tests.faults --seed N --runs K`: migrations under seeded kills; a failing seed can be played again."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.run import Outcome, compare, play
from tests.faults.schedule import schedule
from tests.support import free_port


async def _main(seed: int, runs: int, minutes: float, span: float) -> int:
    port = free_port()
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
            failed += not await _one(Path(temp) / str(number), port, number, calm, span)
            done += 1
    print(f"{done - failed} passed, {failed} failed")
    return 1 if failed else 0


async def _one(folder: Path, port: int, seed: int, calm: Outcome, span: float) -> bool:
    faults = schedule(seed, span)
    try:
        hurt = await play(folder, port, faults)
        problems, seconds = compare(calm, hurt), hurt.seconds
        twice = sum(count > 1 for count in hurt.keys.values())
        note = f"{twice} calls bought again, {len(hurt.listed)} listed"
    except AssertionError as error:
        problems, seconds, note = [str(error)], 0.0, ""
    print(f"seed {seed}: {'ok' if not problems else 'FAILED'} in {seconds:.1f} s, {note}", flush=True)
    if problems:
        print("  faults: " + ", ".join(f"{f.victim} at {f.after}" for f in faults))
        for problem in problems:
            print(f"  {problem}")
        print(f"  again: python -m tests.faults --seed {seed} --runs 1")
    return not problems


def main() -> None:
    """Command line; exit code 1 if any run broke a promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed of the first run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60, help="start no further run after this")
    parser.add_argument("--span", type=float, default=8, help="seconds in which the faults strike")
    arguments = parser.parse_args()
    sys.exit(asyncio.run(_main(arguments.seed, arguments.runs, arguments.minutes, arguments.span)))


if __name__ == "__main__":
    main()
