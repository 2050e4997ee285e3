"""What is given away of a migration: files with their digests, honest cards, no held-out row, no secret."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml

from llamaduo.artifacts import ArtifactStore, ObjectStoreArtifacts, put_bytes
from llamaduo.cli.main import call
from llamaduo.datasets import Lineage, Message, dump_rows, make_row
from llamaduo.errors import LlamaDuoError, PermanentError, UserInputError
from llamaduo.events import AdapterTrained, AnyEvent, DatasetReady, ServingMeasured
from llamaduo.migrations.fold import fold
from llamaduo.migrations.report import build_report
from llamaduo.sharing import hub as to_hub
from llamaduo.sharing.bundle import Bundle, bundle_of
from llamaduo.sharing.folders import read_train, write_adapter, write_dataset
from tests.hub_stand_in import Hub, Repository, hub
from tests.support import environment
from tests.unit.synthetic_log import MIGRATION, SPEC, at, candidate, complete_log

CONFIG = b'{"r": 8, "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}'
WEIGHTS = b"\x02\0\0\0\0\0\0\0{}" + bytes(2_000)


def row(prompt: str, *, generated: bool = False) -> Any:
    messages = [Message(role="user", content=prompt), Message(role="assistant", content="answer")]
    made: dict[str, Any] = {
        "source": "generated",
        "lineage": Lineage(seeds=["s"], round=1, generator="gpt-x", prompt="0" * 64),
    }
    return make_row(messages, **(made if generated else {}))


SPLITS = {
    "train": [row("mine"), row("another"), row("written", generated=True)],
    "validation": [row("to choose by")],
    "test": [row("the secret question")],
    "holdout": [row("the other secret question")],
}


async def log_in(store: ArtifactStore) -> list[AnyEvent]:
    """The made-up log, with files behind the references of its data and adapters."""
    splits = {name: await put_bytes(store, dump_rows(rows), "x") for name, rows in SPLITS.items()}
    files = {
        "adapter_model.safetensors": await put_bytes(store, WEIGHTS, "x"),
        "adapter_config.json": await put_bytes(store, CONFIG, "x"),
        "README.md": await put_bytes(store, b"a card of somebody else's", "x"),
    }
    log: list[AnyEvent] = []
    for event in complete_log():
        changes: dict[str, Any] = {}
        if isinstance(event, DatasetReady):
            changes = {"splits": splits, "rows": {name: len(rows) for name, rows in SPLITS.items()}}
        if isinstance(event, AdapterTrained):
            base = {"files": files, "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct"}
            changes = {"adapter": event.adapter.model_copy(update=base)}
        log.append(event.model_copy(update=changes))
    return log


@pytest.fixture
def store(tmp_path: Path) -> ObjectStoreArtifacts:
    return ObjectStoreArtifacts((tmp_path / "store").as_uri())


async def bundle_in(store: ObjectStoreArtifacts, number: int | None = None, *, held_out: bool = False) -> Bundle:
    view = fold(await log_in(store))
    return bundle_of(view, build_report(view, at(100)), number, held_out=held_out)


def front_of(card: str) -> Any:
    return yaml.safe_load(card.split("---\n", 2)[1])


async def test_folders_hold_files_cards_and_lineage_and_no_held_out_row(
    tmp_path: Path, store: ObjectStoreArtifacts
) -> None:
    bundle = await bundle_in(store)
    data, adapter = tmp_path / "out" / "dataset", tmp_path / "out" / "adapter"
    written = await write_dataset(bundle, store, data)
    await write_adapter(bundle, store, adapter, written["train"], "team/data")
    assert sorted(p.name for p in data.iterdir()) == ["README.md", "llamaduo.json", "train.jsonl", "validation.jsonl"]
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "llamaduo.json"]
    assert sorted(p.name for p in adapter.iterdir()) == names
    everything = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert b"secret question" not in everything and b"somebody else" not in everything
    # The service LLM's address has a password in it, and is nobody else's business in any case.
    assert b"hunter2" not in everything and b"127.0.0.1" not in everything
    lineage = json.loads((adapter / "llamaduo.json").read_text())
    assert lineage == json.loads((data / "llamaduo.json").read_text())
    for name, digest in lineage["adapter"]["files"].items():
        assert hashlib.sha256((adapter / name).read_bytes()).hexdigest() == digest
    for split in ("train", "validation"):
        told = lineage["dataset"]["splits"][split]
        assert hashlib.sha256((data / f"{split}.jsonl").read_bytes()).hexdigest() == told["sha256"] and told["here"]
    assert not lineage["dataset"]["splits"]["test"]["here"]


async def test_the_model_card_tells_marks_with_intervals_and_who_wrote_what(
    tmp_path: Path, store: ObjectStoreArtifacts
) -> None:
    bundle = await bundle_in(store)
    await write_adapter(bundle, store, tmp_path / "a", await read_train(bundle, store, tmp_path / "r"), "team/data")
    card = (tmp_path / "a" / "README.md").read_text()
    front = front_of(card)
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct" and front["datasets"] == ["team/data"]
    assert "license" not in front, "to grant one is the owner's business"
    for said in (
        "It **passed** its gate.",
        "exact-match.exact at least 0.7",
        "| **this adapter** (round 1) |",
        "1 (0.72 to 1, n=8)",
        "| this adapter on the holdout |",
        "licence: Apache-2.0",
        "of them 2 the submitter's own",
        "Rows generated by gpt-x: 1",
        "openai:gpt-x at an address of the team's own answered the test prompts as well",
        bundle.trained.adapter.digest,
        bundle.data.digest,
    ):
        assert said in card, said


async def test_a_round_that_failed_says_so_and_shows_no_holdout(tmp_path: Path, store: ObjectStoreArtifacts) -> None:
    bundle = await bundle_in(store, 0)
    await write_adapter(bundle, store, tmp_path / "a", None)
    card = (tmp_path / "a" / "README.md").read_text()
    assert "It **failed** its gate." in card and "on the holdout" not in card and "datasets" not in front_of(card)


async def test_the_card_says_how_fast_it_was_served(tmp_path: Path, store: ObjectStoreArtifacts) -> None:
    measured = ServingMeasured(
        migration=MIGRATION,
        round=1,
        candidate=candidate("round-1"),
        name="served",
        concurrency=4,
        asked=100,
        seconds=[0.5] * 100,
        wall_s=12.5,
    )
    view = fold([*await log_in(store), measured])
    bundle = bundle_of(view, build_report(view, at(100)), 1, held_out=False)
    await write_adapter(bundle, store, tmp_path / "a", None)
    card = (tmp_path / "a" / "README.md").read_text()
    assert "As served: this box carries 8 requests/s: 100 test prompts to the adapter as served, 4 in flight" in card


async def test_test_rows_go_along_where_that_is_asked_for(tmp_path: Path, store: ObjectStoreArtifacts) -> None:
    await write_dataset(await bundle_in(store, held_out=True), store, tmp_path)
    assert {"test.jsonl", "holdout.jsonl"} <= {p.name for p in tmp_path.iterdir()}
    files = front_of((tmp_path / "README.md").read_text())["configs"][0]["data_files"]
    assert [one["split"] for one in files] == ["train", "validation", "test", "holdout"]


async def test_what_is_not_there_is_said(store: ObjectStoreArtifacts) -> None:
    log = await log_in(store)
    view = fold(log)
    with pytest.raises(UserInputError, match=r"round 7 has no adapter \(rounds that have one: 0, 1\)"):
        bundle_of(view, build_report(view, at(100)), 7, held_out=False)
    early = fold(log[:20])
    with pytest.raises(UserInputError, match=r"no round of .* has passed"):
        bundle_of(early, build_report(early, at(30)), None, held_out=False)


async def test_no_file_leaves_the_folder(tmp_path: Path, store: ObjectStoreArtifacts) -> None:
    bundle = await bundle_in(store)
    (ref, *_) = bundle.trained.adapter.files.values()
    bad = bundle.trained.adapter.model_copy(update={"files": {"../out": ref}})
    bundle = replace(bundle, trained=bundle.trained.model_copy(update={"adapter": bad}))
    with pytest.raises(PermanentError, match="plain name"):
        await write_adapter(bundle, store, tmp_path / "a", None)


# --- the Hub, by its own client against a local server


@pytest.fixture
async def standing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Hub]:
    async with hub() as found:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        for name in ("HF_TOKEN", "HF_TOKEN_FILE", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield found


async def command(standing: Hub, folder: Path, *arguments: str) -> str:
    """What Python says whose Hub is the stand-in; the client takes its address once, at its import."""
    where = {"HF_ENDPOINT": standing.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": standing.token}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        cwd=folder,
        env=environment(HF_HUB_DISABLE_XET="1", HF_HUB_OFFLINE="0", **where),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode == 0
    return out.decode()


def pushed(repo: str, kind: to_hub.Kind, folder: Path, *, token: str = "hf_right", public: bool = False) -> str:
    api, target = to_hub.api_of(token), to_hub.target_of(repo, kind, f"--{kind}")
    to_hub.prepare(api, target, public=public)
    return to_hub.push(api, target, folder, "round 1")


async def test_the_hub_gets_the_same_files_in_one_commit_each_and_gives_them_back(
    tmp_path: Path, store: ObjectStoreArtifacts, standing: Hub
) -> None:
    bundle = await bundle_in(store)
    data, adapter = tmp_path / "dataset", tmp_path / "model"
    written = await write_dataset(bundle, store, data)
    await write_adapter(bundle, store, adapter, written["train"], "team/data")
    for kind, folder in (("dataset", data), ("model", adapter)):
        for _ in range(2):
            await asyncio.to_thread(pushed, f"team/{folder.name}", kind, folder)  # type: ignore[arg-type]
        there = standing.repositories[f"{kind}s/team/{folder.name}"]
        assert there.private and there.commits == ["round 1", "round 1"]
        assert there.files == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert list(standing.large.values()) == [WEIGHTS]
    said = await command(standing, tmp_path, "-m", "llamaduo.cli.main", "merge", "all.jsonl", "hf://team/dataset")
    assert said == "all.jsonl: 3 rows, 2 of them your own\n"
    take = (
        "import pathlib as p, llamaduo.sharing.taking as t; print(t.take_adapter('hf://team/model', p.Path()).name)"
    )
    name = (await command(standing, tmp_path, "-c", take)).strip()
    assert {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} == {
        "adapter_config.json": CONFIG,
        "adapter_model.safetensors": WEIGHTS,
    }
    assert (tmp_path / "all.jsonl").read_bytes().splitlines() == sorted(
        (data / "train.jsonl").read_bytes().splitlines()
    )


async def test_nothing_goes_to_a_public_repository_unasked(tmp_path: Path, standing: Hub) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "file.txt").write_text("text")
    standing.repositories["datasets/team/open"] = Repository(private=False)
    with pytest.raises(UserInputError, match="team/open is public"):
        await asyncio.to_thread(pushed, "team/open", "dataset", tmp_path / "some")
    assert not standing.repositories["datasets/team/open"].commits
    await asyncio.to_thread(pushed, "team/open", "dataset", tmp_path / "some", public=True)
    await asyncio.to_thread(pushed, "team/new", "dataset", tmp_path / "some", public=True)
    assert standing.repositories["datasets/team/open"].commits == ["round 1"]
    assert not standing.repositories["datasets/team/new"].private


@pytest.mark.parametrize(
    ("repo", "token", "fail", "kind", "said"),
    [
        pytest.param("team/x", "hf_wrong", 0, UserInputError, "does not know this token", id="a wrong token"),
        pytest.param("others/x", "hf_right", 0, UserInputError, "may not write to others/x", id="no right"),
        pytest.param("team/x", "hf_right", 500, LlamaDuoError, "the Hub answered 500", id="down"),
    ],
)
async def test_a_refusal_is_one_line_without_the_token(
    tmp_path: Path, standing: Hub, repo: str, token: str, fail: int, kind: type[Exception], said: str
) -> None:
    standing.fail = fail
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "file.txt").write_text("text")
    with pytest.raises(kind, match=said) as caught:
        await asyncio.to_thread(pushed, repo, "model", tmp_path / "some", token=token)
    assert "\n" not in str(caught.value) and token not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_offline_and_without_a_network_is_said(
    tmp_path: Path, standing: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(LlamaDuoError, match=r"could not be reached .*llamaduo export"):
        await asyncio.to_thread(pushed, "team/x", "model", tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    try:
        with pytest.raises(LlamaDuoError, match=r"HF_HUB_OFFLINE is set"):
            await asyncio.to_thread(pushed, "team/x", "model", tmp_path)
    finally:
        huggingface_hub.close_session()


async def test_where_the_token_comes_from(tmp_path: Path, standing: Hub) -> None:
    with pytest.raises(UserInputError, match="HF_TOKEN"):
        to_hub.hub_token({})
    (tmp_path / "token").write_text("hf_of_login\n")
    assert to_hub.hub_token({}) == "hf_of_login"
    (tmp_path / "secret").write_text("hf_of_file\n")
    named = {"HF_TOKEN_FILE": str(tmp_path / "secret")}
    assert to_hub.hub_token(named) == "hf_of_file"
    assert to_hub.hub_token({**named, "HF_TOKEN": " hf_first "}) == "hf_first"
    with pytest.raises(UserInputError, match="cannot be read"):
        to_hub.hub_token({"HF_TOKEN_FILE": str(tmp_path / "gone")})


def test_what_a_command_cannot_do_is_said_before_it_looks_for_a_bus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMADUO_NATS_URL", "nats://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN_FILE", str(tmp_path / "gone"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, said in (
        (["export", "x", str(tmp_path / "full")], "is not an empty folder"),
        (["export", "x", str(tmp_path / "no" / "where")], "a folder cannot be made here"),
        (["push", "x"], "--adapter owner/name, --dataset, or both"),
        (["push", "x", "--adapter", "nobody"], "'nobody' is not owner/name"),
        (["push", "x", "--dataset", "team/x"], "HF_TOKEN_FILE: the token cannot be read"),
    ):
        assert call(arguments) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("repo", ["triage", "a/b/c", "team/", "../x", "hf://team/x", "team/x@main", ""])
def test_a_repository_is_an_owner_and_a_name(repo: str) -> None:
    with pytest.raises(UserInputError, match="is not owner/name"):
        to_hub.target_of(repo, "model", "--adapter")


def test_the_made_up_spec_has_a_secret_to_look_for() -> None:
    assert "hunter2" in SPEC["service_llm"]["base_url"]
