"""`llamaduo chat`: talk to the adapter that a migration serves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import aiohttp

    from llamaduo.bus.connection import Bus
    from llamaduo.events import AdapterLoaded
    from llamaduo.migrations.fold import MigrationView

TIMEOUT_S = 300


def chat(
    migration: Annotated[str | None, typer.Argument(help="Id, its beginning, or name; default: newest.")] = None,
    prompt: Annotated[str | None, typer.Option(help="One message; without it, a conversation.")] = None,
    system: Annotated[
        str | None, typer.Option(help="System message; default: the one that the training rows share.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.0,
) -> None:
    """Talk to what a migration serves, through vLLM's OpenAI endpoint.

    A model trained on single turns answers single turns best: /new forgets what was said, /quit leaves.
    """
    from llamaduo.cli.connect import all_views, choose, run, the_bus

    async def work() -> None:
        async with the_bus() as bus:
            view = choose(await all_views(bus), migration)
            told = system if system is not None else await shared_system_message(bus, view)
        async with endpoint_session(TIMEOUT_S) as session:
            served = await find_endpoint(session, view)
            options = {"max_tokens": max_tokens, "temperature": temperature}
            opening = [{"role": "system", "content": told}] if told else []
            if prompt is not None:
                typer.echo(await answer(session, served, [*opening, _user(prompt)], options))
                return
            typer.echo(f"{served.name} at {served.url}; /new starts over, /quit leaves", err=True)
            await converse(session, served, opening, options)

    run(work())


def endpoint_session(timeout_s: float) -> aiohttp.ClientSession:
    """For calls to an endpoint of ours, with the key of this environment, if it has one."""
    import aiohttp

    from llamaduo.api_keys import key_to_show
    from llamaduo.tls import http_session

    key = key_to_show(os.environ)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return http_session(timeout=aiohttp.ClientTimeout(total=timeout_s), headers=headers)


async def converse(
    session: aiohttp.ClientSession, served: AdapterLoaded, opening: list[dict[str, str]], options: dict[str, Any]
) -> None:
    """Ask and answer until the end of standard input or /quit."""
    said = list(opening)
    lines = lines_of_stdin()
    while True:
        typer.echo("> ", nl=False)
        line = await lines.get()
        if line is None or line == "/quit":
            return
        if line == "/new":
            said = list(opening)
        elif line.strip():
            said.append(_user(line))
            text = await answer(session, served, said, options)
            said.append({"role": "assistant", "content": text})
            typer.echo(text)


def lines_of_stdin() -> asyncio.Queue[str | None]:
    """Lines as they are typed, None at the end; read by a thread that never keeps the process from leaving."""
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens any more
            for line in sys.stdin:
                loop.call_soon_threadsafe(lines.put_nowait, line.rstrip("\n"))
            loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def endpoints(view: MigrationView) -> list[AdapterLoaded]:
    """Replicas that loaded what the alias means now, newest first."""
    from llamaduo.events import AdapterPromoted

    change = view.alias
    if isinstance(change, AdapterPromoted):
        digest = change.adapter.digest
    elif change is not None and change.to is not None:
        digest = change.to.digest
    else:
        return []
    loaded = [event for event in view.loaded if event.digest == digest and event.url]
    return sorted(loaded, key=lambda event: event.at, reverse=True)


async def find_endpoint(session: aiohttp.ClientSession, view: MigrationView) -> AdapterLoaded:
    """The newest replica that answers and has the adapter. LlamaDuoError if there is none."""
    import aiohttp

    from llamaduo.errors import LlamaDuoError

    found = endpoints(view)
    if not found:
        raise LlamaDuoError(f"nothing of {view.migration} is served: {view.stage}")
    for event in found:
        try:
            timeout = aiohttp.ClientTimeout(total=5)
            async with session.get(f"{base_url(event)}/models", timeout=timeout) as response:
                if response.status == 200:
                    return event
                if response.status == 401:
                    raise LlamaDuoError(
                        f"{event.url} asks for a key: set LLAMADUO_API_KEY, or LLAMADUO_API_KEY_FILE to its file"
                    )
        except (aiohttp.ClientError, TimeoutError):
            continue
    raise LlamaDuoError(
        f"{found[0].name} was served at {found[0].url}, which does not answer: is `llamaduo up` running?"
    )


def base_url(event: AdapterLoaded) -> str:
    """The address of a replica's OpenAI endpoint, ending in /v1."""
    url = event.url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


async def answer(
    session: aiohttp.ClientSession, served: AdapterLoaded, messages: list[dict[str, str]], options: dict[str, Any]
) -> str:
    """One answer. LlamaDuoError if the endpoint refuses."""
    import aiohttp

    from llamaduo.errors import LlamaDuoError

    body = {"model": served.name, "messages": messages, **options}
    try:
        async with session.post(f"{base_url(served)}/chat/completions", json=body) as response:
            text = await response.text()
            if response.status != 200:
                raise LlamaDuoError(f"{served.url} answered {response.status}: {text[:300]}")
            return str((await response.json())["choices"][0]["message"]["content"])
    except (aiohttp.ClientError, TimeoutError, KeyError, IndexError) as error:
        raise LlamaDuoError(f"{served.url} gave no answer: {error or type(error).__name__}") from error


async def shared_system_message(bus: Bus, view: MigrationView) -> str | None:
    """The system message of most training rows, if most have one: what the model is used to."""
    from llamaduo.artifacts import read_bytes
    from llamaduo.datasets import load_rows
    from llamaduo.errors import LlamaDuoError

    data = view.dataset(view.rounds[0]) if view.rounds else None
    if data is None or "train" not in data.splits:
        return None
    try:
        rows = load_rows(await read_bytes(await bus.artifacts(), data.splits["train"]))
    except (LlamaDuoError, ValueError):
        return None
    counts = Counter(next((m.content for m in row.messages if m.role == "system"), None) for row in rows)
    message, count = counts.most_common(1)[0] if counts else (None, 0)
    return message if message and count * 2 > len(rows) else None
