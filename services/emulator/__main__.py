"""`python -m services.emulator` runs the server; `… corpus` writes the demo's coverage dataset."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import SettingsError

from llamaduo.errors import LlamaDuoError
from llamaduo.tls import listening
from services.emulator.app import make_app, start
from services.emulator.corpus import write_corpus
from services.emulator.ledger import Ledger
from services.emulator.settings import EmulatorSettings


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.emulator",
        description="An OpenAI-compatible stand-in for a service LLM: a scripted teacher, not a model. "
        "Each option is also read from LLAMADUO_EMULATOR_<OPTION>, which is where a key belongs.",
    )
    for name, field in EmulatorSettings.model_fields.items():
        parser.add_argument("--" + name.replace("_", "-"), dest=name, help=field.description)
    return parser


def _read_settings(arguments: list[str]) -> EmulatorSettings:
    given = {name: value for name, value in vars(_flags().parse_args(arguments)).items() if value is not None}
    return EmulatorSettings.model_validate({**EmulatorSettings().model_dump(exclude_unset=True), **given})


async def _serve(settings: EmulatorSettings) -> None:
    """Serves until SIGINT or SIGTERM; the first line on stdout is `{"host": …, "port": …, "model": …}`."""
    stopped = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stopped.set)
    with Ledger(settings.ledger_file) as ledger:
        context = listening(settings.tls_cert, settings.tls_key, prefix="LLAMADUO_EMULATOR_TLS_")
        runner, port = await start(make_app(settings, ledger), settings.host, settings.port, context)
        try:
            if settings.port_file is not None:
                # Renamed into place, so that a reader never sees an empty file.
                written = settings.port_file.with_name(settings.port_file.name + ".new")
                written.write_text(f"{port}\n")
                written.replace(settings.port_file)
            ready = {"host": settings.host, "port": port, "model": settings.model_name}
            sys.stdout.write(json.dumps(ready) + "\n")
            sys.stdout.flush()
            await stopped.wait()
        finally:
            await runner.cleanup()


def _write_corpus(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m services.emulator corpus", description=write_corpus.__doc__)
    parser.add_argument("--rows", type=int, required=True, help="rows to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other rows")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    options = parser.parse_args(arguments)
    write_corpus(options.out, options.rows, options.seed)


def main(arguments: list[str]) -> int:
    """Returns 0, or 2 with a line on stderr for settings, a ledger file or a port that cannot be used."""
    try:
        if arguments[:1] == ["corpus"]:
            _write_corpus(arguments[1:])
        else:
            asyncio.run(_serve(_read_settings(arguments)))
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            option = "--" + ".".join(str(part) for part in problem["loc"]).replace("_", "-")
            sys.stderr.write(f"{option if problem['loc'] else 'options'}: {problem['msg']}\n")
        return 2
    except (SettingsError, LlamaDuoError, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
