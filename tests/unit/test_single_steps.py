"""Steps without a bus: what is refused before anything is paid, when a gate is decided, who may see a key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from llamaduo.cli.main import call
from llamaduo.cli.own_engine import own_engine
from llamaduo.cli.state import STATE_VARIABLE
from llamaduo.cli.step_files import check_out, read_answers, read_failures
from llamaduo.cli.step_process import step_environment
from llamaduo.cli.submission import prepare
from llamaduo.errors import LlamaDuoError, UserInputError
from llamaduo.event_parts import FailingRow, RowMark
from llamaduo.migrations.spec import MigrationSpec
from llamaduo.single_steps import MarksAsked, MarksDone, SynthesisAsked, VerdictAsked, buying, task_id
from services.judge.once import judge_once
from services.synthesizer.once import synthesize_once
from services.verdict.once import decide_once
from tests.unit.judge_tasks import row, task
from tests.unit.test_cli_submission import GOOD, write
from tests.unit.test_emulator_server import emulator

ROWS = 60


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No state of the developer's, no key, and a short patience with a run that goes on."""
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("llamaduo.single_steps.LEAVING_S", 0.0)
    monkeypatch.chdir(tmp_path)


def spec_of(**changes: Any) -> MigrationSpec:
    gate = {"absolute": {"exact-match.exact": 0.7}}
    return task(**{"gate": gate, "evaluators": ["exact-match"], **changes}).spec


async def marked(
    tmp_path: Path, spec: MigrationSpec, right: Callable[[int], bool], bar: Callable[[int], bool] | None = None
) -> MarksDone:
    """Marks by exact match for answers of which those are right for whose number that holds."""

    def shard(is_right: Callable[[int], bool]) -> list[Any]:
        return [row(f"r{n}", "yes", "yes" if is_right(n) else "no") for n in range(ROWS)]

    asked = MarksAsked(
        task="s-1",
        folder=tmp_path,
        spec=spec,
        answers=shard(right),
        bar=shard(bar) if bar else [],
        evaluators=["exact-match"],
    )
    return await judge_once(asked)


@pytest.mark.parametrize(
    ("right", "verdict", "failing"),
    [(lambda n: True, "passed", 0), (lambda n: n % 3 == 0, "failed", 40), (lambda n: n % 4 > 0, "undecided", 15)],
)
async def test_the_gate_is_decided_as_in_round_0(
    tmp_path: Path, right: Callable[[int], bool], verdict: str, failing: int
) -> None:
    spec = spec_of()
    done = await decide_once(VerdictAsked(spec=spec, marks=await marked(tmp_path, spec, right)))
    assert done.verdict == verdict
    assert {one.row for one in done.failures} == {f"r{n}" for n in range(ROWS) if not right(n)}
    assert len(done.failures) == failing
    interval = done.marks["exact-match"]["exact"]
    assert interval.n == ROWS and interval.low <= 1 - failing / ROWS <= interval.high


async def test_a_step_asks_in_a_batch_where_its_spec_says_so_and_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with emulator(batch_ms=0) as server:
        llm = {"model": "openai:teacher", "base_url": f"{server.root}/v1", "batch": True}
        answers = [row(f"r{n}", "yes", f"no {n}") for n in range(5)]
        spec = spec_of(service_llm=llm)
        asked = MarksAsked(task="s-1", folder=tmp_path, spec=spec, answers=answers, evaluators=["llm-judge"])
        for _ in range(2):  # the second time all is in the ledger
            [scored] = (await judge_once(asked)).scored
            assert (scored.calls.made, scored.calls.batched) == (5, 5)
        _, ledger = await server.get("/emulator/ledger")
    totals: Any = ledger["totals"]
    assert totals["batched"] == totals["completed"] == 5
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("judge: batch_") and line.endswith("completed, 5 of 5 calls; it may take up to 24 h")


async def test_a_gate_of_parity_needs_the_bar_and_takes_it(tmp_path: Path) -> None:
    spec = spec_of(gate={"parity": {"margin": 30}})
    alone = await decide_once(VerdictAsked(spec=spec, marks=await marked(tmp_path, spec, lambda n: True)))
    assert alone.verdict is None and "--bar" in alone.note and alone.marks

    def perfect(_: int) -> bool:
        return True

    def bad(n: int) -> bool:
        return n % 6 == 0

    for right, bar, verdict in ((perfect, bad, "passed"), (bad, perfect, "failed")):
        marks = await marked(tmp_path, spec, right, bar)
        assert (await decide_once(VerdictAsked(spec=spec, marks=marks))).verdict == verdict


async def test_a_gate_on_serving_is_not_passed_by_marks_alone(tmp_path: Path) -> None:
    absolute = {"exact-match.exact": 0.7}
    spec = spec_of(gate={"absolute": absolute, "serving": {"latency_p95_s": 1}})
    done = await decide_once(VerdictAsked(spec=spec, marks=await marked(tmp_path, spec, lambda n: True)))
    assert done.verdict is None and "gate.serving" in done.note
    done = await decide_once(VerdictAsked(spec=spec, marks=await marked(tmp_path, spec, lambda n: False)))
    assert done.verdict == "failed"
    spec = spec_of(gate={"absolute": absolute, "serving": {}})
    done = await decide_once(VerdictAsked(spec=spec, marks=await marked(tmp_path, spec, lambda n: True)))
    assert done.verdict == "passed"


async def test_an_evaluator_that_did_not_mark_leaves_the_gate_open(tmp_path: Path) -> None:
    spec = spec_of(evaluators=["exact-match", "llm-judge"])
    done = await decide_once(VerdictAsked(spec=spec, marks=await marked(tmp_path, spec, lambda n: True)))
    assert done.verdict is None and done.note == "llm-judge did not mark"
    assert done.marks["exact-match"]["exact"].mean == 1


async def test_a_metric_that_nobody_gives_is_said(tmp_path: Path) -> None:
    spec = spec_of(gate={"absolute": {"exact-match.exakt": 0.7}})
    with pytest.raises(UserInputError, match=r"exact-match\.exakt"):
        await decide_once(VerdictAsked(spec=spec, marks=await marked(tmp_path, spec, lambda n: True)))


async def test_a_step_runs_once_at_a_time(tmp_path: Path) -> None:
    asked = MarksAsked(task="s-1", folder=tmp_path, spec=spec_of(), answers=[], evaluators=[])
    async with buying(asked, "judge") as (client, job):
        with pytest.raises(UserInputError, match="another `llamaduo judge`"):
            async with buying(asked, "judge"):
                pass
        async with buying(asked.model_copy(update={"task": "s-2"}), "judge") as (_, other):
            assert other != job
    async with buying(asked, "judge") as (again, same):
        assert same == job and again is not client


def test_what_may_change_between_two_runs_is_no_part_of_the_task(tmp_path: Path) -> None:
    def of(text: str) -> str:
        prepared = prepare(write(tmp_path, text), environment={}, keys_needed=False)
        return task_id(prepared.spec, prepared.rows)

    assert of(GOOD) == of(GOOD.replace("0.7", "0.6") + "budgets: {calls: 9}\ntask: sort them\n")
    assert len({of(GOOD), of(GOOD + "seed: 1\n"), of(GOOD.replace("name: s", "name: z"))}) == 3


async def test_failures_of_another_dataset_are_refused(tmp_path: Path) -> None:
    spec = write(tmp_path, GOOD + "synthesis: {near_copy: 100}\n")
    prepared = prepare(spec, environment={}, keys_needed=False)
    asked = SynthesisAsked(
        task="s-1",
        folder=tmp_path,
        spec=prepared.spec,
        coverage=prepared.rows,
        failures=[FailingRow(row="elsewhere", mark=0)],
    )
    with pytest.raises(UserInputError, match="none of the 1 failing rows"):
        await synthesize_once(asked)


def test_only_named_credentials_reach_a_step() -> None:
    ours = {"PATH": "/bin", "OPENAI_API_KEY": "s", "AWS_SECRET": "s", "MY_KEY": "k", "MY_KEY_FILE": "f"}
    assert step_environment(ours, None) == ours
    assert step_environment(ours, []) == {"PATH": "/bin"}
    assert step_environment(ours, ["MY_KEY"]) == {"PATH": "/bin", "MY_KEY": "k", "MY_KEY_FILE": "f"}


ANSWER = row("r1", "yes", "no").model_dump_json()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no rows"),
        ("{", "1: not JSON"),
        (f"{ANSWER}\n[]\n", "2: must be a mapping"),
        (f'{ANSWER}\n{{"row": "r2", "reference": "yes", "answers": []}}\n', "2: messages: this key is missing"),
        (f"{ANSWER}\n{ANSWER}\n", "2: row r1 stands here twice"),
        (ANSWER.replace('["no"]', "[1]"), "1: answers.0: must be text"),
    ],
)
def test_a_file_that_holds_no_answers_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(text)
    with pytest.raises(UserInputError) as refused:
        read_answers(file)
    assert says in str(refused.value) and str(file) in str(refused.value)


def test_missing_files_and_marks_taken_for_failures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="no such file"):
        read_failures(tmp_path / "none.jsonl")
    mark = RowMark(row="r1", metric="exact", value=0.0).model_dump_json()
    (tmp_path / "marks.jsonl").write_text(mark)
    with pytest.raises(UserInputError, match=r"mark: this key is missing \(`llamaduo judge --failures`"):
        read_failures(tmp_path / "marks.jsonl")


def test_no_result_replaces_what_was_read(tmp_path: Path) -> None:
    data = tmp_path / "tickets.jsonl"
    data.write_text("{}")
    (tmp_path / "link").symlink_to(data)
    for out in (data, tmp_path / "link"):
        with pytest.raises(UserInputError, match="one of the files that are read"):
            check_out("--out", out, [tmp_path / "none", data])
    with pytest.raises(UserInputError, match="is a folder"):
        check_out("--out", tmp_path, [])
    with pytest.raises(UserInputError, match="no such folder"):
        check_out("--out", tmp_path / "none" / "out.jsonl", [])
    check_out("--out", tmp_path / "out.jsonl", [data])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["synthesize", "SPEC", "--out", "new.jsonl"], "OPENAI_API_KEY is not set"),
        (["generate", "SPEC", "--out", "a.jsonl"], "OPENAI_API_KEY is not set"),
        (["judge", "SPEC", "answers.jsonl", "--out", "m.jsonl"], "OPENAI_API_KEY is not set"),
        (["synthesize", "SPEC", "--out", "tickets.jsonl"], "one of the files that are read"),
        (["generate", "SPEC", "--out", "a.jsonl", "--model", "m"], "of use only with --url"),
        (["generate", "SPEC", "--out", "a.jsonl", "--url", "host:1"], "must begin with http"),
        (["generate", "SPEC", "--out", "a.jsonl", "--url", "http://h", "--api-key-env", "sk-1"], "never the key"),
        (
            ["judge", "SPEC", "answers.jsonl", "--out", "m.jsonl", "--evaluator", "exact-mach"],
            "did you mean 'exact-match'?",
        ),
        (["judge", "SPEC", "none.jsonl", "--out", "m.jsonl", "--evaluator", "exact-match"], "no such file"),
        (["judge", "SPEC", "answers.jsonl", "--out", "m.jsonl", "--failures", "m.jsonl"], "file of marks as well"),
    ],
)
def test_wrong_input_is_one_line_and_code_2_before_anything_starts(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = str(write(tmp_path))
    (tmp_path / "answers.jsonl").write_text(ANSWER)
    assert call([spec if one == "SPEC" else one for one in arguments]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("llamaduo: ") and says in line
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("command", ["synthesize", "generate", "judge"])
def test_help_teaches_by_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call([command, "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"llamaduo {command} migration.yaml" in said and "Needs no bus" in said and "kept" in said


async def test_a_server_says_itself_what_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    served, keys = ["one"], []

    async def models(request: web.Request) -> web.Response:
        keys.append(request.headers["Authorization"])
        return web.json_response({"data": [{"id": name} for name in served]} if served else [])

    monkeypatch.setenv("OPENAI_API_KEY", "not-for-this-server")
    app = web.Application()
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        for address in (url, f"{url}/v1", f"{url}/v1/"):
            engine = await own_engine(address, None, "MY_KEY", 4)
            assert (engine.model, engine.base_url, engine.concurrency) == ("openai:one", f"{url}/v1", 4)
        served.append("two")
        with pytest.raises(UserInputError, match="serves one, two"):
            await own_engine(url, None, "MY_KEY", 4)
        assert (await own_engine(url, "two", "MY_KEY", 4)).model == "openai:two"
        served.clear()
        with pytest.raises(LlamaDuoError, match="does not say what is served"):
            await own_engine(url, None, "MY_KEY", 4)
        assert set(keys) == {"Bearer none"}
    finally:
        await runner.cleanup()
    with pytest.raises(LlamaDuoError, match="does not say what is served"):
        await own_engine(url, None, "MY_KEY", 4)
