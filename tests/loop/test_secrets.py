"""Secrets are in nothing that a run writes: every file of it is searched for each of them, in many spellings."""

from __future__ import annotations

import base64
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llamaduo.masking import forms_of
from tests.loop.test_up import Cli, cli, ready, until, write_spec

__all__ = ["cli"]
pytestmark = pytest.mark.timeout(480)

CANARIES = {
    "OPENAI_API_KEY": "sk-canary-1f0a/provider+key?",
    "WRONG_API_KEY": "sk-canary-2b7c-not-the-right-key",
    "ANTHROPIC_API_KEY": "sk-canary-3d91-of-another-provider",
    "HF_TOKEN": "hf_canary4e55ofthehub",
    "LLAMADUO_ENGINE_API_KEY": "sk-canary-5a08-engine",
    "LLAMADUO_NATS_PASSWORD": "canary-6c2e-password-of-the-bus",
    "LLAMADUO_API_KEY": "ld-canary-7f31-own-api",
    "AWS_SECRET_ACCESS_KEY": "canary-8d44-of-a-cloud",
}
LARGEST = 200_000_000


@contextmanager
def provider(emulator: str, right: str) -> Iterator[tuple[str, list[int]]]:
    """A provider that repeats the key it was shown in a 401 and, now and then, in a 500; else the emulator answers.

    Yields its URL and the statuses of its failures.
    """
    failures: list[int] = []
    count = iter(range(1_000_000))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            shown = self.headers["Authorization"]
            if shown != f"Bearer {right}":
                return self._repeat(401, shown)
            if next(count) % 9 == 4 and failures.count(500) < 8:
                return self._repeat(500, shown)
            headers = {name: self.headers[name] for name in ("Content-Type", "Idempotency-Key") if self.headers[name]}
            request = urllib.request.Request(emulator + self.path.removeprefix("/v1"), body, headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return self._answer(answer.status, answer.read())

        def _repeat(self, status: int, shown: str) -> None:
            failures.append(status)
            coded = base64.b64encode(f"user:{shown.removeprefix('Bearer ')}".encode()).decode()
            message = f"Incorrect API key provided: {shown}. Basic {coded} does not help either."
            error = {"message": message, "type": "error", "code": None, "param": None}
            self._answer(status, json.dumps({"error": error}).encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", failures
    finally:
        server.shutdown()
        server.server_close()


def spellings(secret: str) -> set[bytes]:
    return {form.encode() for form in forms_of(secret)} | {secret.encode().hex().encode(), secret[::-1].encode()}


SPELLINGS = {name: spellings(secret) for name, secret in CANARIES.items()}


def found_in(folder: Path) -> list[str]:
    """Where a secret turns up in what lies in this folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            assert path.stat().st_size < LARGEST, path
            content = path.read_bytes()
            for name, forms in SPELLINGS.items():
                for form in forms:
                    if (place := content.find(form)) >= 0:
                        found.append(f"{name} in {path}: {content[max(0, place - 80) : place + 80]!r}")
    return found


def test_a_secret_in_any_spelling_would_be_found(tmp_path: Path) -> None:
    secret = CANARIES["OPENAI_API_KEY"]
    for number, text in enumerate(
        (
            secret,
            base64.b64encode(f"u:{secret}".encode()).decode(),
            base64.urlsafe_b64encode(f"xy{secret}z".encode()).decode(),
            base64.b64encode(secret.encode()).decode(),
            json.dumps(secret),
            "sk-canary-1f0a%2Fprovider%2Bkey%3F",
        )
    ):
        file = tmp_path / str(number)
        file.write_text(f"before {text} after")
        assert len(found_in(tmp_path)) >= 1, text
        file.unlink()
    assert found_in(tmp_path) == []


def test_no_secret_is_in_anything_that_a_run_writes(cli: Cli, tmp_path: Path) -> None:
    cli.environment |= CANARIES | {"LLAMADUO_LOG_LEVEL": "DEBUG", "LLAMADUO_NATS_USER": "operator"}
    written = tmp_path / "printed"
    written.mkdir()

    def keep(name: str, *arguments: str, code: int = 0) -> str:
        """What a command prints is written down, to be searched as well."""
        (written / name).write_text(text := cli.call(*arguments, code=code, timeout=200))
        return text

    keep("up", "up", "--emulator", "--nats-port", "0", "--detach")
    until(lambda: ready(cli))
    with provider(cli.note()["emulator_url"], CANARIES["OPENAI_API_KEY"]) as (url, failures):
        llm = {"model": "openai:scripted-teacher", "base_url": url, "requests_per_minute": 60_000}
        evaluators = ["exact-match", {"name": "llm-judge", "role": "advisory"}]
        good = write_spec(cli, tmp_path, service_llm=llm, evaluators=evaluators)
        lines = keep("migrate", "migrate", str(good), "--watch")
        assert "completed" in lines
        assert failures.count(500) > 5, "the provider has repeated the key"

        # A key that is wrong: the provider repeats it in a 401, and that ends the migration.
        bad = write_spec(cli, tmp_path, name="wrong", service_llm=llm | {"api_key_env": "WRONG_API_KEY"})
        assert "stopped" in keep("migrate-wrong", "migrate", str(bad), "--watch", code=1)
        assert 401 in failures
    letters = json.loads(keep("dlq", "dlq", "list", "--json"))
    for place, letter in enumerate(letters):
        keep(f"letter-{place}", "dlq", "show", letter["id"])
    told = [letter["error"] for letter in letters]
    assert any("Incorrect API key provided: Bearer ***" in error for error in told), told
    for name in ("support-triage", "wrong"):
        keep(f"events-{name}", "events", name, "--json")
        keep(f"report-{name}", "report", name, "--json")
        keep(f"page-{name}", "report", name, "--html", str(written / f"{name}.html"))
    keep("status", "status")
    keep("status-json", "status", "--json")
    keep("export", "export", "support-triage", str(written / "given-away"))
    keep("keys", "keys", "new", "ci", "--file", str(cli.state / "api-keys"))
    own = (written / "keys").read_text().strip()
    (written / "keys").unlink()
    cli.call("down")

    assert found_in(tmp_path) == []
    assert not any(own.encode() in path.read_bytes() for path in cli.state.rglob("*") if path.is_file())
    # What was searched is all of a run: the bus's own files, logs, the ledger of what was paid, artifacts.
    looked_at = {path.relative_to(tmp_path).parts[1] for path in cli.state.rglob("*") if path.is_file()}
    assert {"logs", "nats"} <= looked_at, looked_at
    assert any("***" in log.read_text("utf-8", "replace") for log in (cli.state / "logs").glob("*.log")), (
        "something was masked"
    )
