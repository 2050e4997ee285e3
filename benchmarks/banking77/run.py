"""The benchmark: targeted against uniform synthesis, several seeds, and one full run on all 77 intents."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.banking77 import curves
from benchmarks.banking77.compare import compared
from benchmarks.banking77.full import full_run

PARTS = ("all", "curves", "full")


def options(parser: argparse.ArgumentParser) -> None:
    """Its own options."""
    parser.add_argument("--part", choices=PARTS, default="all", help="what to run (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the comparison (default: 3)")
    parser.add_argument("--at-once", type=int, default=2, help="runs of one thread side by side (default: 2)")
    parser.add_argument("--folder", type=Path, help="keeps what was trained, so that a stopped benchmark goes on")
    parser.add_argument(
        "--models", type=Path, default=Path(".llamaduo/models"), help="where `make setup` put the model"
    )


async def banking77(chosen: argparse.Namespace) -> dict[str, Any]:
    """Run the parts asked for; hours on two cores, a few minutes with `--quick`."""
    if chosen.folder is not None:
        return await _run(chosen, chosen.folder)
    with tempfile.TemporaryDirectory(prefix="banking77-") as folder:
        return await _run(chosen, Path(folder))


async def _run(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = {"benchmark": "banking77", "quick": chosen.quick}
    if chosen.part != "curves":
        result["full"] = await full_run(folder / "full", chosen.models, quick=chosen.quick, threads=chosen.at_once)
        result["official_test_accuracy"] = result["full"]["official_test_accuracy"]
    if chosen.part != "full":
        recipe, planned, seeds = curves.RECIPE, curves.RUNS, chosen.seeds
        if chosen.quick:
            recipe = recipe.model_copy(update={"steps": 8, "validate_every": 4})
            planned, seeds = (("uniform", curves.AT), ("weak, half uniform", curves.AT)), 1
        runs = await curves.curves(folder / "curves", chosen.models, seeds, chosen.at_once, recipe, planned)
        result |= compared(runs, curves.AT * len(curves.LABELS))
        result["steps"] = recipe.steps
        result["runs"] = [{key: value for key, value in run.items() if key != "right"} for run in runs]
    return result
