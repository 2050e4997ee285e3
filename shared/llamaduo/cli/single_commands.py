"""`llamaduo synthesize`, `generate` and `judge`: one step of a migration at a time, with no bus and no system up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llamaduo.cli.submission import Submission
    from llamaduo.event_parts import CallCounts
    from llamaduo.events import EvalScored
    from llamaduo.migrations.spec import MigrationSpec
    from llamaduo.sharing.taking import TakenAdapter
    from llamaduo.single_steps import VerdictDone

ENGINE_KEY = "LLAMADUO_ENGINE_API_KEY"

Spec = Annotated[Path, typer.Argument(help="The migration's YAML file.")]
ServiceModel = Annotated[str | None, typer.Option("--service-llm", help="Another service LLM, provider:model.")]
ServiceUrl = Annotated[str | None, typer.Option("--service-llm-url", help="Another address of the service LLM.")]
KeyVariable = Annotated[str | None, typer.Option("--api-key-env", help="Variable that holds its key.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without the dataset's bad lines; each is listed.")]


def synthesize(
    spec: Spec,
    out: Annotated[Path, typer.Option(help="The file of new rows to write; `llamaduo merge` takes it.")],
    rows: Annotated[int | None, typer.Option(min=1, help="Rows to write; default: the spec's.")] = None,
    failures: Annotated[
        Path | None, typer.Option(help="What `llamaduo judge --failures` wrote: the new rows are aimed at it.")
    ] = None,
    earlier: Annotated[
        list[Path] | None, typer.Option(help="Rows written before; the new ones are others. May be repeated.")
    ] = None,
    service_llm: ServiceModel = None,
    service_llm_url: ServiceUrl = None,
    api_key_env: KeyVariable = None,
    skip_bad: SkipBad = False,
) -> None:
    """Have the teacher write new rows like the train rows of a spec's dataset, and filter them.

    \b
    Uniform at first, then aimed at what a model got wrong:
      llamaduo synthesize migration.yaml --out new.jsonl --rows 200
      llamaduo synthesize migration.yaml --out more.jsonl --failures failures.jsonl --earlier new.jsonl
      llamaduo merge all.jsonl tickets.jsonl new.jsonl more.jsonl

    Needs no bus. Each answer is kept before it is used: run again after Ctrl-C or a kill, it goes on. No test row is
    shown to the teacher, and what resembles a validation, test or holdout row is dropped and counted.
    """
    from llamaduo.cli.connect import run
    from llamaduo.cli.data_commands import replace_whole
    from llamaduo.cli.step_files import check_out, read_failures
    from llamaduo.cli.step_process import run_step, step_environment
    from llamaduo.coverage_files import sound
    from llamaduo.datasets import dump_rows
    from llamaduo.single_steps import SynthesisAsked, SynthesisDone, task_id

    prepared = _prepared(spec, service_llm, service_llm_url, api_key_env, skip_bad=skip_bad)
    check_out("--out", out, _inputs(spec, prepared, failures))
    aims = read_failures(failures) if failures else []
    before = [row for file in earlier or [] for row in sound(file, generated=True).rows.values()]
    _check_keys(prepared, "teacher" if prepared.spec.teacher else "service_llm")
    asked = SynthesisAsked(
        task=task_id(prepared.spec, prepared.rows),
        folder=_folder(),
        spec=prepared.spec,
        coverage=prepared.rows,
        earlier=[row for row in before if row.source == "generated"],
        failures=aims,
        number=rows,
    )
    environment = step_environment(os.environ, None)
    done = run(run_step("services.synthesizer.once", ["synthesize"], asked, SynthesisDone, environment))
    replace_whole(out, dump_rows(done.rows))
    aimed = f", aimed at {done.aimed_at} failing rows" if done.aimed_at else ""
    typer.echo(f"{out}: {len(done.rows)} new rows of {done.wanted} wanted{aimed}")
    for name, number in done.removed.items():
        typer.echo(f"  {number:>6} dropped: {name}")
    _tell_calls(done.calls)
    for error in done.errors:
        typer.echo(f"note: a call had no use: {error}", err=True)
    if len(done.rows) < done.wanted:
        limit = prepared.spec.synthesis.max_calls_per_round
        typer.echo(f"note: fewer than wanted; synthesis.max_calls_per_round is {limit}", err=True)


def generate(
    spec: Spec,
    out: Annotated[Path, typer.Option(help="The file of answers to write; `llamaduo judge` takes it.")],
    url: Annotated[
        str | None,
        typer.Option(help="A running OpenAI-compatible server, http://host:8000/v1; default: the service LLM."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --url: the model's name there; default: its only one.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="With --url of a vLLM: an adapter it is to load, a folder or hf://owner/name.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="With --url: prompts in flight.")] = 16,
    service_llm: ServiceModel = None,
    service_llm_url: ServiceUrl = None,
    api_key_env: KeyVariable = None,
    skip_bad: SkipBad = False,
) -> None:
    """Have the test split of a spec's dataset answered, by the service LLM or by a server of your own.

    \b
    The bar to reach, then a candidate:
      llamaduo generate migration.yaml --out service.jsonl
      llamaduo generate migration.yaml --out answers.jsonl --url http://127.0.0.1:8000/v1 --model my-adapter
      llamaduo generate migration.yaml --out answers.jsonl --url http://127.0.0.1:8000/v1 --adapter given-away/adapter

    Needs no bus, and starts no engine: with --url one must be running (the untrained base model, an adapter). Answers
    of the service LLM are kept for good and never bought twice. Those of --url are kept only until the file is whole,
    for another model may have the same name tomorrow; it is sent no key but the one in --api-key-env
    (LLAMADUO_ENGINE_API_KEY). A server that is paid is a service LLM: --service-llm-url.
    """
    import shutil

    from llamaduo.cli.connect import run
    from llamaduo.cli.data_commands import replace_whole
    from llamaduo.cli.own_engine import load_adapter, own_engine, unload_adapter
    from llamaduo.cli.step_files import check_out
    from llamaduo.cli.step_process import run_step, step_environment
    from llamaduo.datasets import dump_rows
    from llamaduo.errors import UserInputError
    from llamaduo.identity import identity
    from llamaduo.single_steps import AnswersAsked, AnswersDone, task_id

    if url is None and model is not None:
        raise UserInputError("is of use only with --url", field="--model", hint="the service LLM's: --service-llm")
    if adapter is not None and (url is None or model is not None):
        raise UserInputError("is of use only with --url, and without --model", field="--adapter")
    own_key = None if url else api_key_env
    prepared = _prepared(spec, service_llm, service_llm_url, own_key, skip_bad=skip_bad)
    check_out("--out", out, _inputs(spec, prepared))
    task = task_id(prepared.spec, prepared.rows)
    folder, environment, engine = _folder(), step_environment(os.environ, None), None
    taken, key = None, api_key_env or ENGINE_KEY
    if url is None:
        _check_keys(prepared, "service_llm")
    else:
        taken = _taken(adapter, prepared.spec, folder) if adapter is not None else None
        if taken is not None:
            run(load_adapter(url, key, taken))
            model = taken.name
        engine = run(own_engine(url, model, key, concurrency))
        folder = folder / f"engine-{identity(task, engine.base_url or '', engine.model)[:16]}"
        environment = step_environment(os.environ, [key])
    asked = AnswersAsked(
        task=task,
        folder=folder,
        spec=prepared.spec,
        coverage=prepared.rows,
        engine=engine,
    )
    done = run(run_step("services.synthesizer.once", ["generate"], asked, AnswersDone, environment))
    replace_whole(out, dump_rows(done.answers))
    if engine is not None:
        shutil.rmtree(folder, ignore_errors=True)
    if url is not None and taken is not None:  # one that was stopped leaves it loaded, under a name of its content
        run(unload_adapter(url, key, taken))
    missing = sum(answer is None for row in done.answers for answer in row.answers)
    typer.echo(f"{out}: {len(done.answers)} prompts answered" + (f", {missing} answers missing" if missing else ""))
    _tell_calls(done.calls)


def judge(
    spec: Spec,
    answers: Annotated[Path, typer.Argument(help="What `llamaduo generate` wrote.")],
    out: Annotated[Path, typer.Option(help="The file of marks to write.")],
    evaluator: Annotated[
        list[str] | None, typer.Option(help="An evaluator that comes with LlamaDuo; default: the spec's. Repeatable.")
    ] = None,
    bar: Annotated[
        Path | None, typer.Option(help="The service LLM's own answers, for a gate of parity: marked as well.")
    ] = None,
    failures: Annotated[
        Path | None, typer.Option(help="A file of failing rows to write; `llamaduo synthesize --failures` takes it.")
    ] = None,
    must_pass: Annotated[bool, typer.Option("--must-pass", help="Exit code 1 unless the gate is passed.")] = False,
    service_llm: ServiceModel = None,
    service_llm_url: ServiceUrl = None,
    api_key_env: KeyVariable = None,
    skip_bad: SkipBad = False,
) -> None:
    """Mark a file of answers, and hold the marks against the spec's gate.

    \b
      llamaduo judge migration.yaml answers.jsonl --out marks.jsonl --failures failures.jsonl
      llamaduo judge migration.yaml answers.jsonl --out marks.jsonl --evaluator exact-match

    Needs no bus. exact-match, label-accuracy, json-schema, tool-call, rouge-l, chrf and embedding are free; llm-judge
    and pairwise ask the service LLM once an answer. Each of its answers is kept before it is used: run again after
    Ctrl-C or a kill, it goes on. Each metric is told as its mean and interval. The gate is decided as round 0 of a
    migration would be; where it asks for an evaluator that did not mark, it is left open.
    """
    from llamaduo.cli.connect import run
    from llamaduo.cli.data_commands import replace_whole
    from llamaduo.cli.step_files import check_out, dump_failures, dump_marks, read_answers
    from llamaduo.cli.step_process import run_step, step_environment
    from llamaduo.errors import UserInputError
    from llamaduo.single_steps import MarksAsked, MarksDone, VerdictAsked, VerdictDone, task_id

    prepared = _prepared(spec, service_llm, service_llm_url, api_key_env, skip_bad=skip_bad)
    inputs = [*_inputs(spec, prepared, bar), answers]
    check_out("--out", out, inputs)
    if failures is not None:
        check_out("--failures", failures, [*inputs, out])
        if failures.absolute() == out.absolute():
            raise UserInputError("is the file of marks as well", file=str(failures), field="--failures")
    names = _evaluators(prepared.spec, evaluator or [])
    marked, compared = read_answers(answers), read_answers(bar) if bar else []
    paid = _asks_a_provider(names)
    if paid:
        _check_keys(prepared, "judge" if prepared.spec.judge else "service_llm")
    asked = MarksAsked(
        task=task_id(prepared.spec, prepared.rows),
        folder=_folder(),
        spec=prepared.spec,
        answers=marked,
        bar=compared,
        evaluators=names,
    )
    environment = step_environment(os.environ, None if paid else [])
    done = run(run_step("services.judge.once", [], asked, MarksDone, environment))
    replace_whole(out, dump_marks(done.scored))
    without_keys = step_environment(os.environ, [])
    question = VerdictAsked(spec=prepared.spec, marks=done)
    verdict = run(run_step("services.verdict.once", [], question, VerdictDone, without_keys))
    if failures is not None:
        if verdict.verdict is None:
            raise UserInputError(f"nobody can tell which rows fail: {verdict.note}", field="--failures")
        replace_whole(failures, dump_failures(verdict.failures))
    _tell_verdict(out, done.scored, verdict)
    if failures is not None:
        typer.echo(f"{failures}: {len(verdict.failures)} failing rows, worst first")
    if must_pass and verdict.verdict != "passed":
        raise typer.Exit(1)


def _prepared(
    spec: Path, model: str | None, url: str | None, api_key_env: str | None, *, skip_bad: bool
) -> Submission:
    """The spec and its rows, checked as `migrate` does. Its notes are about migrations and left out."""
    from llamaduo.cli.data_commands import tell_skipped
    from llamaduo.cli.submission import Overrides, prepare

    prepared = prepare(
        spec,
        overrides=Overrides(model, url, api_key_env),
        environment=os.environ,
        keys_needed=False,
        skip_bad=skip_bad,
    )
    tell_skipped(prepared.skipped, len(prepared.rows))
    return prepared


def _taken(source: str, spec: MigrationSpec, folder: Path) -> TakenAdapter:
    """An adapter of a folder or the Hub; a note where its maker names another base model than the spec."""
    from llamaduo.sharing.taking import belongs_to, take_adapter

    taken = take_adapter(source, folder / "adapters")
    if not any(belongs_to(taken, base) for base in spec.bases):
        named = " or ".join(spec.bases)
        typer.echo(f"note: {source} says it belongs to {taken.base_model}, not to {named}", err=True)
    return taken


def _check_keys(prepared: Submission, role: str) -> None:
    """UserInputError if the key of the one who will be called is not here; a note where it may do without."""
    from llamaduo.cli.spec_checks import check_keys

    for note in check_keys(prepared.file, os.environ, None, needed=True, roles=[role]):
        typer.echo(f"note: {note}", err=True)


def _inputs(spec: Path, prepared: Submission, *more: Path | None) -> list[Path]:
    return [spec, Path(prepared.spec.coverage), *(one for one in more if one is not None)]


def _folder() -> Path:
    """Where ledger, budget and rate limits of single commands lie."""
    from llamaduo.cli.state import state_dir

    return state_dir() / "single"


def _evaluators(spec: MigrationSpec, wished: list[str]) -> list[str]:
    """Who is to mark. UserInputError for one that this command cannot run; the spec's are left out, named."""
    from llamaduo.built_in_evaluators import METRICS
    from llamaduo.errors import UserInputError
    from llamaduo.names import did_you_mean

    for name in wished:
        if name not in METRICS:
            hint = did_you_mean(name, METRICS) or f"there are {', '.join(METRICS)}; one of your own: evaluator check"
            raise UserInputError(
                f"no evaluator that comes with LlamaDuo is called {name!r}", field="--evaluator", hint=hint
            )
    names = list(dict.fromkeys(wished or [choice.name for choice in spec.evaluators]))
    for name in names:
        if name not in METRICS:
            typer.echo(f"note: {name} is one of your own and does not mark here (llamaduo evaluator run)", err=True)
    known = [name for name in names if name in METRICS]
    if not known:
        raise UserInputError(
            "none of the spec's evaluators comes with LlamaDuo", field="--evaluator", hint="name one"
        )
    return known


def _asks_a_provider(evaluators: list[str]) -> bool:
    from llamaduo.cli.system import CALL_A_PROVIDER

    return any(f"judge-{name}" in CALL_A_PROVIDER for name in evaluators)


def _tell_calls(calls: CallCounts) -> None:
    """What the result took in all, this run and those before it together."""
    parts = [str(calls.made)]
    parts += [f"${calls.money:.4f}"] if calls.money else []
    named = {"answers used twice": calls.from_ledger, "refused": calls.refused, "perhaps paid twice": calls.rebought}
    parts += [f"{number} {name}" for name, number in named.items() if number]
    typer.echo(f"calls for this, earlier runs of it included: {', '.join(parts)}")


def _tell_verdict(out: Path, scored: list[EvalScored], verdict: VerdictDone) -> None:
    from llamaduo.event_parts import CallCounts

    typer.echo(f"{out}: {sum(len(one.marks) for one in scored)} marks")
    for one in scored:
        for metric in one.metrics:
            unmarked = sum(mark.value is None for mark in one.marks if mark.metric == metric)
            more = f", {unmarked} without a mark" if unmarked else ""
            interval = verdict.marks.get(one.evaluator, {}).get(metric)
            said = (
                f"{interval.mean:.4g} ({interval.low:.4g} to {interval.high:.4g}), {interval.n} prompts"
                if interval
                else "no mark"
            )
            typer.echo(f"  {one.evaluator + '.' + metric:<26} {said}{more}")
    note = f" ({verdict.note})" if verdict.note else ""
    typer.echo(f"gate: {verdict.verdict or 'not decided'}{note}")
    calls = sum((one.calls for one in scored), CallCounts())
    if calls != CallCounts():
        _tell_calls(calls)
