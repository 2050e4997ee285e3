"""`python -m tests.http_fuzz --requests 10000 --seed 1`: all APIs, then a table; exit code 1 for a problem."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from tests.http_fuzz.fuzzing import Kind, Tally, fuzz
from tests.http_fuzz.running import emulator, endpoint, service, with_names
from tests.support import ROOT

APIS = {"emulator": (emulator, 0.5), "inference": (endpoint, 0.35), "health": (service, 0.15)}
"""How to run each, and its share of the requests: as it takes more of what strangers send."""
KINDS: tuple[Kind, ...] = ("sound", "broken", "stray", "raw")


def run(requests: int, number: int, folder: Path) -> Tally:
    """At least this many requests to all APIs together, by this seed."""
    tally = Tally()
    for name, (started, share) in APIS.items():
        home = folder / name
        home.mkdir()
        document = json.loads((ROOT / "docs" / "contract" / "http" / f"{name}.json").read_text("utf-8"))
        logged = logging.FileHandler(home / "endpoint.log")
        logging.getLogger().addHandler(logged)
        try:
            with started(home) as api:
                fuzz(api, with_names(api, document), -int(-requests * share // 1), number, tally)
        finally:
            logging.getLogger().removeHandler(logged)
            logged.close()
    return tally


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = run(options.requests, options.seed, Path(folder))
    for api in APIS:
        for kind in KINDS:
            print(f"{api:10} {kind:7} {tally.of(api, kind):6}  {tally.statuses(api, kind)}")
    for problem in list(dict.fromkeys(tally.problems))[:40]:
        print("PROBLEM", problem)
    seconds = time.monotonic() - began
    print(f"{tally.total} requests, {len(tally.problems)} problems, {seconds:.0f} s, seed {options.seed}")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
