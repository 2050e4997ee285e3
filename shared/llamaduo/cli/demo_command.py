"""`llamaduo demo`: a whole migration on this machine, with no key and no GPU, from start to end."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from llamaduo.bus.connection import Bus
    from llamaduo.cli.system import System
    from llamaduo.migrations.fold import MigrationView

EXAMPLE = Path("examples") / "support-triage"
KEY_VARIABLE = "DEMO_API_KEY"
OWN_FOLDERS = ("nats", "logs", "run", "adapters", "training")
OWN_FILES = ("emulator-ledger.jsonl", "report.json", "report.html", "migration.yaml")
SAMPLE = "Hi, Where is my yoga mat? Order A-4821. This is urgent!"


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Go on serving at the end, until Ctrl-C.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other splits and samples.")] = 0,
) -> None:
    """Run the main job on a made-up task: real NATS, real training, real vLLM; the service LLM is an emulator.

    Round 0 fails on 30 rows, the emulator writes more, a later round passes and is served. Writes report.json and
    report.html to the state folder's `demo`. Exit code 0 only if the migration completed.
    """
    from llamaduo.cli.connect import run
    from llamaduo.cli.doctor import find_demo_model
    from llamaduo.cli.state import STATE_VARIABLE, read_note, state_dir
    from llamaduo.errors import UserInputError

    outer = state_dir()
    home = outer / "demo"
    if read_note(home) is not None:
        raise UserInputError(f"a demo is running on {home}", hint=f"llamaduo --state {home} down")
    model = find_demo_model(outer, Path.cwd())
    if model is None:
        raise UserInputError("the demo's small model is not on this machine", hint="make setup, or llamaduo doctor")
    _clear(home)
    os.environ[STATE_VARIABLE] = str(home)
    raise typer.Exit(run(_demo(home, model, seed, keep=keep)))


def _clear(home: Path) -> None:
    """Take away what an earlier demo left: its unfinished work would compete with this one's."""
    for name in OWN_FOLDERS:
        shutil.rmtree(home / name, ignore_errors=True)
    for name in OWN_FILES:
        (home / name).unlink(missing_ok=True)


def find_example() -> Path | None:
    """The example's folder: here, or in the checkout that this package is installed from."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[3]):
        if (root / EXAMPLE / "migration.yaml").is_file():
            return (root / EXAMPLE).absolute()
    return None


def write_spec(example: Path, home: Path, *, model: Path, url: str, seed: int) -> Path:
    """The example's spec with this machine's addresses put in, as `migration.yaml` in the demo's folder."""
    import yaml

    spec: dict[str, Any] = yaml.safe_load((example / "migration.yaml").read_text("utf-8"))
    spec["coverage"] = str(example / spec["coverage"])
    spec["base_model"] = str(model)
    spec["service_llm"] = {**spec["service_llm"], "base_url": url, "api_key_env": KEY_VARIABLE}
    spec["seed"] = seed
    path = home / "migration.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True), "utf-8")
    return path


async def _demo(home: Path, model: Path, seed: int, *, keep: bool) -> int:
    from llamaduo.cli.connect import the_bus
    from llamaduo.cli.migrate_command import submit
    from llamaduo.cli.submission import prepare
    from llamaduo.cli.system import Plan, running
    from llamaduo.errors import UserInputError

    example = find_example()
    if example is None:
        raise UserInputError(f"no {EXAMPLE} here", hint="call it in a checkout of LlamaDuo")
    started = time.monotonic()
    key = secrets.token_urlsafe(18)
    environment = dict(os.environ) | {KEY_VARIABLE: key, "LLAMADUO_EMULATOR_API_KEY": key}
    typer.echo("The service LLM of this demo is an emulator: a scripted teacher, no model and no evidence about one.")
    plan = Plan(home, nats_port=0, emulator=(), environment=environment)
    async with running(plan) as system:
        assert system.emulator_url is not None
        typer.echo(f"bus {system.nats_url}, emulator {system.emulator_url}, logs {home / 'logs'}")
        file = write_spec(example, home, model=model, url=system.emulator_url, seed=seed)
        prepared = prepare(file, environment=environment)
        async with the_bus() as bus:
            await submit(bus, prepared)
            typer.echo(f"submitted {prepared.migration}: {len(prepared.rows)} rows, spec {file}")
            code = await _follow_or_fail(bus, system, prepared.migration)
            view = await _view(bus, prepared.migration)
            await _finish(bus, view, home)
            await _say_how_to_chat(view, home, keep=keep)
        typer.echo(f"the demo took {time.monotonic() - started:.0f} s")
        if keep and code == 0:
            typer.echo("still serving; Ctrl-C stops it")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return code
    return code


async def _follow_or_fail(bus: Bus, system: System, migration: str) -> int:
    """Watch to the end. LlamaDuoError as soon as a service cannot stay up: nothing would ever come."""
    from llamaduo.cli.processes import tail
    from llamaduo.cli.watch_command import follow
    from llamaduo.errors import LlamaDuoError

    async def look() -> None:
        while True:
            if (child := system.failing()) is not None:
                name, log = child.program.name, child.program.log
                raise LlamaDuoError(f"{name} died {child.quick_deaths} times; the end of {log}:\n{tail(log)}")
            await asyncio.sleep(0.5)

    following, looking = asyncio.create_task(follow(bus, migration)), asyncio.create_task(look())
    try:
        done, _ = await asyncio.wait({following, looking}, return_when=asyncio.FIRST_COMPLETED)
        if looking in done:
            looking.result()
        return following.result()
    finally:
        for task in (following, looking):
            task.cancel()
        await asyncio.gather(following, looking, return_exceptions=True)


async def _view(bus: Bus, migration: str) -> MigrationView:
    from llamaduo.cli.connect import all_views

    return (await all_views(bus))[migration]


async def _finish(bus: Bus, view: MigrationView, home: Path) -> None:
    from llamaduo.cli.report_command import write_report
    from llamaduo.cli.watching import summary
    from llamaduo.migrations.report import build_report

    report = build_report(view, datetime.now(UTC))
    await write_report(bus, view, report, home / "report.json", home / "report.html")
    typer.echo("")
    typer.echo(summary(report))
    typer.echo("")
    typer.echo(f"report: {home / 'report.json'}")
    typer.echo(f"        {home / 'report.html'}")


async def _say_how_to_chat(view: MigrationView, home: Path, *, keep: bool) -> None:
    """Ask the served model something, and say how to go on."""
    from llamaduo.cli.chat_command import answer, endpoint_session, find_endpoint
    from llamaduo.errors import LlamaDuoError

    try:
        async with endpoint_session(60) as session:
            served = await find_endpoint(session, view)
            messages = [
                {"role": "system", "content": "Triage this message as JSON."},
                {"role": "user", "content": SAMPLE},
            ]
            text = await answer(session, served, messages, {"max_tokens": 64, "temperature": 0.0})
    except LlamaDuoError as error:
        typer.echo(f"nothing to chat with: {error}")
        return
    typer.echo(f"asked through {served.url}: {SAMPLE}")
    typer.echo(f"{served.name}: {text}")
    name = view.spec.name if view.spec else view.migration
    if not keep:
        typer.echo(f"serve it again: llamaduo --state {home} up")
    typer.echo(f"chat with it:   llamaduo --state {home} chat {name}")
