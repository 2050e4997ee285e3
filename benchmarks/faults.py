"""200 migrations under seeded faults, in shards of 50 that can be stopped and gone on with.

Every finished seed is one line of its shard's state file; a rerun plays those that are missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tests.faults.kinds import left_out
from tests.faults.recovery import percentile, seconds_to_recover
from tests.faults.run import Outcome, compare, play
from tests.faults.schedule import KINDS, SPAN, schedule
from tests.support import ROOT, free_port

SHARDS, SEEDS = 4, 50
HEADING = "## Fault runs"
Line = dict[str, Any]


def options(parser: argparse.ArgumentParser) -> None:
    """Beside `--quick`, which plays two seeds of a shard."""
    parser.add_argument("--shard", type=int, choices=range(SHARDS), help=f"which {SEEDS} seeds; left out: all")
    parser.add_argument("--out", type=Path, default=ROOT / ".llamaduo" / "faults", help="folder of the state files")
    parser.add_argument("--failed", action="store_true", help="play seeds that failed again, too")
    parser.add_argument(
        "--summary", action="store_true", help="play nothing; fold what is there, also into RESULTS.md"
    )


async def faults(chosen: argparse.Namespace) -> dict[str, Any]:
    """Play what is missing of the shard, then fold all shards."""
    chosen.out.mkdir(parents=True, exist_ok=True)
    if not chosen.summary:
        for shard in range(SHARDS) if chosen.shard is None else [chosen.shard]:
            await _play(chosen.out / f"shard-{shard}.jsonl", shard, 2 if chosen.quick else SEEDS, chosen.failed)
    result = summary([line for path in sorted(chosen.out.glob("shard-*.jsonl")) for line in read(path)])
    if chosen.summary:
        results = Path(__file__).parent / "RESULTS.md"
        results.write_text(with_section(results.read_text("utf-8"), section(result)), "utf-8")
    return result


def read(path: Path) -> list[Line]:
    """The lines of a state file; one that a kill tore is left out."""
    lines = []
    for text in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


async def _play(path: Path, shard: int, count: int, again: bool) -> None:
    done = {line["seed"] for line in read(path) if not (again and line["problems"])}
    seeds = [seed for seed in range(shard * SEEDS + 1, shard * SEEDS + count + 1) if seed not in done]
    if not seeds:
        return
    port, missing = free_port(), left_out()
    with tempfile.TemporaryDirectory(prefix="llamaduo-faults-") as temp:
        calm = await play(Path(temp) / "calm", port, [])
        if calm.problems:
            raise SystemExit(f"without faults: {calm.problems}")
        for seed in seeds:
            line = await _seed(Path(temp) / str(seed), port, seed, calm, missing)
            print(f"seed {seed}: {'FAILED' if line['problems'] else 'ok'} in {line['seconds']:.1f} s", flush=True)
            for problem in line["problems"]:
                print(f"  {problem}", flush=True)
            with path.open("a", encoding="utf-8") as file:
                if path.read_bytes()[-1:] not in (b"", b"\n"):
                    file.write("\n")
                file.write(json.dumps(line) + "\n")


async def _seed(folder: Path, port: int, seed: int, calm: Outcome, missing: dict[str, str]) -> Line:
    drawn = [fault for fault in schedule(seed, SPAN) if fault.kind not in missing]
    line: Line = {"seed": seed, "faults": [str(fault) for fault in drawn], "left_out": sorted(missing)}
    began = asyncio.get_running_loop().time()
    try:
        hurt = await play(folder, port, drawn)
    except AssertionError as error:
        seconds = asyncio.get_running_loop().time() - began
        return line | {"problems": [str(error)], "seconds": seconds, "struck": [], "calls": 0, "again": 0}
    struck = [
        {
            "kind": one.fault.kind,
            "victim": one.fault.victim,
            "recovery": seconds_to_recover(hurt.found, one.fault, one.ended),
        }
        for one in hurt.struck
    ]
    return line | {
        "problems": compare(calm, hurt),
        "seconds": hurt.seconds,
        "struck": struck,
        "calls": sum(hurt.keys.values()),
        "again": sum(count - 1 for count in hurt.keys.values() if count > 1),
    }


def summary(lines: list[Line]) -> dict[str, Any]:
    """All shards as one; of a seed that was played again the last line counts, and that it failed before is told."""
    last = {line["seed"]: line for line in lines}
    mended = {line["seed"] for line in lines if line["problems"] and line is not last[line["seed"]]}
    runs = [last[seed] for seed in sorted(last)]
    struck = [one for run in runs for one in run["struck"]]
    recovery: defaultdict[str, list[float]] = defaultdict(list)
    for one in struck:
        if one["recovery"] is not None:
            recovery[one["kind"]].append(one["recovery"])
    counts, seconds = Counter(one["kind"] for one in struck), [run["seconds"] for run in runs]
    return {
        "runs": len(runs),
        "failed": [run["seed"] for run in runs if run["problems"]],
        "failed_before": sorted(mended),
        "violations": sum(len(run["problems"]) for run in runs),
        "faults": len(struck),
        "left_out": sorted({kind for run in runs for kind in run["left_out"]}),
        "seconds": _spread(seconds),
        "calls": sum(run["calls"] for run in runs),
        "bought_again": sum(run["again"] for run in runs),
        "victims": dict(sorted(Counter(one["victim"] for one in struck).items())),
        "kinds": {kind: {"struck": counts[kind], "recovery_s": _spread(recovery[kind])} for kind in KINDS},
    }


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {"n": 0}
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {"n": len(values)} | {name: round(percentile(values, share), 2) for name, share in shares.items()}


def section(result: dict[str, Any]) -> str:
    """The summary as a section of RESULTS.md."""
    seconds, before, missing = result["seconds"], result["failed_before"], result["left_out"]
    told = [
        f"`python -m benchmarks faults`: {result['runs']} seeds, {result['faults']} faults;",
        f"runs with a violation: {len(result['failed'])}.",
        f"Failed at first and played again after a mend: seeds {before}." if before else "",
        f"Left out on that machine: {', '.join(missing)}." if missing else "",
        f"Seconds a run: p50 {seconds.get('p50')}, p99 {seconds.get('p99')}, at most {seconds.get('max')}.",
        f"Of {result['calls']} paid calls {result['bought_again']} were bought again, each listed.",
    ]
    lines = [
        HEADING,
        "",
        " ".join(filter(None, told)),
        "Victims: " + ", ".join(f"{name} {count}" for name, count in result["victims"].items()) + ".",
        "",
        "| fault | struck | recovery p50, s | p99, s | measured |",
        "|---|---|---|---|---|",
    ]
    for kind, one in result["kinds"].items():
        took = one["recovery_s"]
        lines.append(f"| {kind} | {one['struck']} | {took.get('p50', '')} | {took.get('p99', '')} | {took['n']} |")
    lines += [
        "",
        "Recovery is from the end of a fault to the victim's next event in the log (of nats-server: to anybody's),",
        "without the time in which it had nothing to do. After the victim's last event there is none to measure.",
        "",
    ]
    return "\n".join(lines)


def with_section(text: str, part: str) -> str:
    """The document with this section in place of the one before, or at its end."""
    before, found, rest = text.partition(HEADING + "\n")
    _, following, after = rest.partition("\n## ")
    return before.rstrip("\n") + "\n\n" + part + (following + after if found else "")
