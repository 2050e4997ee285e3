"""`python -m benchmarks NAME [--quick]`: the last line is one JSON object, also kept in `benchmarks/results/`."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import faults, limits
from benchmarks.banking77 import run as banking77
from benchmarks.baseline import baseline
from benchmarks.burst import burst
from benchmarks.contamination import contamination
from benchmarks.gateway import gateway
from benchmarks.scaling import scaling
from benchmarks.settling import settling
from benchmarks.training import training
from benchmarks.verdict import verdict
from benchmarks.verdict_loop import verdict_loop


@dataclass(frozen=True)
class Benchmark:
    """What is measured, and the command-line options it has beside `--quick`."""

    run: Callable[[argparse.Namespace], Awaitable[dict[str, Any]]]
    options: Callable[[argparse.ArgumentParser], None] | None = None


BENCHMARKS = {
    "banking77": Benchmark(banking77.banking77, banking77.options),
    "baseline": Benchmark(lambda chosen: baseline(chosen.quick)),
    "burst": Benchmark(lambda chosen: burst(chosen.quick)),
    "contamination": Benchmark(lambda chosen: contamination(chosen.quick)),
    "faults": Benchmark(faults.faults, faults.options),
    "gateway": Benchmark(lambda chosen: gateway(chosen.quick)),
    "limits": Benchmark(limits.limits, limits.options),
    "scaling": Benchmark(lambda chosen: scaling(chosen.quick)),
    "settling": Benchmark(lambda chosen: settling(chosen.quick)),
    "training": Benchmark(lambda chosen: training(chosen.quick)),
    "verdict": Benchmark(lambda chosen: verdict(chosen.quick)),
    "verdict_loop": Benchmark(lambda chosen: verdict_loop(chosen.quick)),
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    for name, benchmark in sorted(BENCHMARKS.items()):
        own = names.add_parser(name)
        own.add_argument("--quick", action="store_true", help="a tenth of the work: shows that it runs")
        if benchmark.options is not None:
            benchmark.options(own)
    chosen = parser.parse_args()
    # So that what a benchmark has started ends with it.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))

    async def run() -> dict[str, Any]:
        return await BENCHMARKS[chosen.name].run(chosen)

    result = asyncio.run(run())
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{chosen.name}.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
