"""`llamaduo export` and `llamaduo push`: a migration's adapter and data as folders, or on the Hugging Face Hub."""

from __future__ import annotations

import asyncio
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamaduo.bus.connection import Bus
    from llamaduo.sharing.bundle import Bundle

Migration = Annotated[str, typer.Argument(help="Id, its beginning, or name.")]
Round = Annotated[int | None, typer.Option("--round", min=0, help="Default: the round that passed.")]
WithTest = Annotated[
    bool, typer.Option("--with-test", help="Test and holdout rows as well: who has them can train on them.")
]


def export(
    migration: Migration,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    number: Round = None,
    with_test: WithTest = False,
) -> None:
    """Write a migration's adapter and data to a folder, each with a card and its lineage.

    \b
      llamaduo export support-triage given-away
        given-away/adapter    safetensors, adapter_config.json, README.md, llamaduo.json
        given-away/dataset    train.jsonl, validation.jsonl, README.md, llamaduo.json

    The cards hold marks with intervals, base model and its licence where known, and what was written by which model.
    `llamaduo push` puts the very same files on the Hugging Face Hub.
    """
    from llamaduo.cli.connect import run, the_bus
    from llamaduo.sharing.folders import write_adapter, write_dataset

    _check_folder(folder)

    async def work() -> None:
        async with the_bus() as bus:
            bundle = await _bundle(bus, migration, number, with_test=with_test)
            store = await bus.artifacts()
            with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}.") as name:
                whole = Path(name) / "whole"
                written = await write_dataset(bundle, store, whole / "dataset")
                await write_adapter(bundle, store, whole / "adapter", written.get("train"))
                if folder.exists():
                    folder.rmdir()
                whole.rename(folder)
        for part in ("adapter", "dataset"):
            typer.echo(f"written: {folder / part}")
        _tell(bundle)

    run(work())


def push(
    migration: Migration,
    adapter: Annotated[str | None, typer.Option(help="The model repository, owner/name.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The dataset repository, owner/name.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="For all to see; else a new repository is private.")
    ] = False,
    number: Round = None,
    with_test: WithTest = False,
) -> None:
    """Push a migration's adapter, its data, or both to the Hugging Face Hub, each in one commit.

    \b
      llamaduo push support-triage --adapter my-team/triage-lora --dataset my-team/triage-data

    The files are those of `llamaduo export`. New repositories are private unless --public; to one that is public
    nothing is pushed without it. The token is read from HF_TOKEN, the file HF_TOKEN_FILE names, or what
    `hf auth login` left.
    """
    from llamaduo.cli.connect import run, the_bus
    from llamaduo.errors import UserInputError
    from llamaduo.sharing import hub
    from llamaduo.sharing.folders import read_train, write_adapter, write_dataset

    if adapter is None and dataset is None:
        raise UserInputError(
            "say what goes where", field="--adapter", hint="--adapter owner/name, --dataset, or both"
        )
    # The data first: the adapter's card names it.
    targets = [hub.target_of(dataset, "dataset", "--dataset")] if dataset is not None else []
    targets += [hub.target_of(adapter, "model", "--adapter")] if adapter is not None else []
    api = hub.api_of(hub.hub_token(os.environ))

    async def work() -> None:
        async with the_bus() as bus:
            bundle = await _bundle(bus, migration, number, with_test=with_test)
            store = await bus.artifacts()
            with tempfile.TemporaryDirectory(prefix="llamaduo-push-") as name:
                folder = Path(name)
                if dataset is not None:
                    train = (await write_dataset(bundle, store, folder / "dataset")).get("train")
                else:
                    train = await read_train(bundle, store, folder / "read")
                await write_adapter(bundle, store, folder / "model", train, dataset)
                for target in targets:
                    await asyncio.to_thread(hub.prepare, api, target, public=public)
                message = f"{bundle.spec.name}, round {bundle.part.number} of {bundle.view.migration}"
                for target in targets:
                    address = await asyncio.to_thread(hub.push, api, target, folder / target.kind, message)
                    typer.echo(f"pushed: {target.repo} ({target.kind}) {address}")
        _tell(bundle)

    run(work())


async def _bundle(bus: Bus, migration: str, number: int | None, *, with_test: bool) -> Bundle:
    from llamaduo.cli.connect import all_views, choose
    from llamaduo.migrations.report import build_report
    from llamaduo.sharing.bundle import bundle_of

    view = choose(await all_views(bus), migration)
    return bundle_of(view, build_report(view, datetime.now(UTC)), number, held_out=with_test)


def _check_folder(folder: Path) -> None:
    """UserInputError for a folder that cannot be made, or that holds something."""
    from llamaduo.errors import UserInputError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserInputError("is not an empty folder", file=str(folder), hint="name a new one")
    parent = folder.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserInputError("a folder cannot be made here", file=str(parent))


def _tell(bundle: Bundle) -> None:
    if bundle.part.verdict != "passed":
        typer.echo(f"note: round {bundle.part.number} has not passed its gate; its card says so", err=True)
    rows = ", ".join(f"{bundle.data.rows[split]} {split}" for split in bundle.splits)
    typer.echo(f"round {bundle.part.number} of {bundle.view.migration}: rows {rows}")
