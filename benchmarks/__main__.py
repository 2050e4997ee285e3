"""`python -m benchmarks NAME [--quick]`: the last line is one JSON object, also kept in `benchmarks/results/`."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.settling import settling
from benchmarks.verdict import verdict

BENCHMARKS: dict[str, Callable[[bool], Awaitable[dict[str, Any]]]] = {
    "settling": settling,
    "verdict": verdict,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: shows that it runs")
    arguments = parser.parse_args()

    async def run() -> dict[str, Any]:
        return await BENCHMARKS[arguments.name](arguments.quick)

    result = asyncio.run(run())
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{arguments.name}.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
