"""What a spec can say and yet cannot work. Each check is about one key, and says so before anything starts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from llamaduo.base_models import chat_template_of, check_folder
from llamaduo.built_in_evaluators import METRICS, NOISY, ON_WISH
from llamaduo.datasets import Row
from llamaduo.errors import UserInputError
from llamaduo.migrations.best_case import fewest_rows, parity_gate, right_of
from llamaduo.migrations.intervals import to_unit
from llamaduo.migrations.quotas import rows_by_split
from llamaduo.migrations.resolution import alpha_of_look
from llamaduo.migrations.spec import FEWEST, ServiceLLM
from llamaduo.migrations.spec_file import KeyPath, SpecFile
from llamaduo.names import did_you_mean
from llamaduo.planning.known_models import parameters_of
from llamaduo.service_llm.credentials import (
    PROVIDER_KEYS,
    api_key,
    key_sources,
    key_variables,
    speaks_chat,
)
from llamaduo.tools_by_template import may_render_tools
from llamaduo.tools_in_words import why_not_learnt

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")


@dataclass(frozen=True)
class EvaluatorOnBus:
    """An evaluator that has a durable, and whether a process is asking it for work now."""

    name: str
    attended: bool


def check_gate(found: SpecFile) -> None:
    """UserInputError for a metric that a built-in evaluator does not give, or a threshold or floor off its scale."""
    gate = found.spec.gate
    asked: list[tuple[tuple[str, ...], str, float]] = [
        (("gate", "absolute", key), key, threshold) for key, threshold in gate.absolute.items()
    ]
    asked += [
        (("gate", "slices", column, "floor"), gate.metric_of(column), part.floor)
        for column, part in gate.slices.items()
    ]
    for path, key, threshold in asked:
        evaluator, _, metric = key.partition(".")
        metrics = METRICS.get(evaluator)
        if metrics is None:
            continue
        scale = metrics.get(metric)
        if scale is None:
            near = did_you_mean(key, [f"{evaluator}.{name}" for name in metrics])
            raise found.mistake(
                path, f"{evaluator} gives no metric {metric!r}", near or f"it gives {', '.join(sorted(metrics))}"
            )
        if not scale.low <= threshold <= scale.high:
            part = threshold / 100
            hint = f"did you mean {part:g}?" if scale.high == 1 and scale.low <= part <= 1 else None
            raise found.mistake(path, f"{threshold:g} is off the scale {scale.low:g} to {scale.high:g}", hint)
        if scale.high == 100 and 0 < threshold <= 1:
            # On this scale it is a hundredth of what was meant, and everything would pass.
            raise found.mistake(
                path,
                f"{threshold:g} on the scale {scale.low:g} to {scale.high:g} would pass nearly anything",
                f"did you mean {threshold * 100:g}?",
            )


def check_splits(found: SpecFile, rows: int) -> None:
    """UserInputError if so many rows cannot be split as asked."""
    splits = found.spec.splits
    for split, number in splits.too_small.items():
        raise found.mistake(
            ("splits", split), f"{number} rows asked for, at least {FEWEST[split]} are needed", "0 is the default"
        )
    needed = splits.needed
    if rows >= sum(needed.values()):
        return
    if not any(splits.asked.values()):
        raise found.mistake(
            ("coverage",),
            f"{rows} different rows are too few to train, test and hold out: {sum(needed.values())} at least",
        )
    parts = " + ".join(f"{split} {number}" for split, number in needed.items() if number)
    raise found.mistake(
        ("splits",),
        f"asks for {sum(needed.values())} rows ({parts}), the dataset has {rows} different ones",
        "add rows or ask for smaller splits",
    )


def check_tools(found: SpecFile, rows: Sequence[Row]) -> None:
    """UserInputError if rows offer or call tools in a way that cannot be learnt."""
    if why := why_not_learnt(rows):
        raise found.mistake(("coverage",), *why)
    if found.spec.tool_wording == "text" or not any(row.needs_tools for row in rows):
        return
    # Others are rendered by the trainer, before it trains.
    for base in found.spec.bases:
        folder = _folder_at_hand(base)
        if folder is not None and not may_render_tools(chat_template_of(folder) or ""):
            raise found.mistake(
                ("tool_wording",),
                f"the chat template of {base} does not render tools",
                "leave tool_wording out: tools are then put into words",
            )


def check_slices(found: SpecFile, rows: Sequence[Row]) -> None:
    """UserInputError for a floor of a column that no row has."""
    columns = {column for row in rows for column, value in row.meta.items() if value is not None}
    for column in found.spec.gate.slices:
        if column not in columns:
            near = did_you_mean(column, sorted(columns))
            there = f"there are {', '.join(sorted(columns)[:8])}" if columns else "rows have no other columns"
            raise found.mistake(("gate", "slices", column), f"no row has a column {column!r}", near or there)


def check_test_rows(found: SpecFile, rows: int) -> list[str]:
    """Notes where the test rows are few for the gate. UserInputError where not even a perfect model could pass.

    See `llamaduo.migrations.best_case`. What an own evaluator's scale is nobody knows before it marks.
    """
    gate, test = found.spec.gate, rows_by_split(rows, found.spec.splits)["test"]
    last_round = found.spec.budgets.rounds - 1
    first, last = (alpha_of_look(found.spec, number, NOISY) for number in (0, last_round))
    notes = []
    for key, threshold in gate.absolute.items():
        evaluator, _, metric = key.partition(".")
        scale = METRICS.get(evaluator, {}).get(metric)
        if scale is None:
            continue
        share = to_unit(threshold, scale)
        needed, later = fewest_rows(share, first), fewest_rows(share, last)
        if needed is None or later is None:
            raise found.mistake(
                ("gate", "absolute", key),
                f"{threshold:g} is the best mark there is: no number of test rows can show a mean above it",
                "take a lower gate",
            )
        if needed > test:
            raise found.mistake(
                ("gate", "absolute", key),
                f"not even a perfect model could pass: {needed} test rows are needed for {threshold:g}, "
                f"there are {test}",
                "more rows, a larger splits.test or a lower gate",
            )
        if test < max(2 * needed, later):
            lost = f"; in round {last_round} not even all would do ({later} rows would)" if later > test else ""
            notes.append(
                f"{key}: {test} test rows are few for {threshold:g}: to pass in round 0 a model must get "
                f"{right_of(test, share, first)} of them right{lost}"
            )
    if gate.parity is not None:
        needed = fewest_rows(parity_gate(gate.parity.margin), first, mark=0.5)
        if needed is not None and needed > test:
            notes.append(
                f"parity: {test} test rows are few for a margin of {gate.parity.margin:g}: a model whose marks all "
                f"equal the service LLM's needs {needed} to pass; with fewer it must be better than that"
            )
    return notes


def check_serving(found: SpecFile, rows: int) -> list[str]:
    """A note where the test rows are fewer than the requests that are to be measured."""
    serving, test = found.spec.gate.serving, rows_by_split(rows, found.spec.splits)["test"]
    if serving is None or serving.requests <= test:
        return []
    return [f"gate.serving: {serving.requests} requests over {test} test prompts ask some of them more than once"]


def check_providers(found: SpecFile) -> None:
    """UserInputError for a provider that nobody knows, one whose package is missing, an address that is none, or
    batches of a provider that is not asked in any.
    """
    for role, llm in found.spec.llms:
        provider = llm.model.partition(":")[0]
        if llm.base_url is not None:
            parts = urlsplit(llm.base_url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                near = "did you mean http://… before it?" if "://" not in llm.base_url else None
                raise found.mistake((role, "base_url"), "must begin with http:// or https://", near)
        elif provider not in PROVIDER_KEYS:
            near = did_you_mean(provider, PROVIDER_KEYS)
            raise found.mistake(
                (role, "model"), f"there is no provider {provider!r}", near or "an own server: give its base_url"
            )
        if llm.batch is not None and not speaks_chat(llm):
            raise found.mistake(
                (role, "batch"),
                f"{provider} is not asked in batches, only openai and servers that speak its protocol are",
                "leave batch out",
            )
        try:
            _check_package(llm)
        except UserInputError as error:
            raise found.mistake((role, "model"), error.message, error.hint) from error


def _check_package(llm: ServiceLLM) -> None:
    from llamaduo.service_llm.providers import check_package, is_installed

    if is_installed():
        check_package(llm)


def _check_credentials(found: SpecFile, role: str, llm: ServiceLLM, environment: Mapping[str, str]) -> None:
    """UserInputError where the key that is here cannot be read, or is not all that the provider wants."""
    from llamaduo.service_llm.providers import ProviderSender, is_installed

    if llm.api_key_env in key_variables(llm):
        api_key(llm, environment)
    if not is_installed() or llm.model.startswith("openai"):  # of OpenAI the key is all
        return
    try:
        ProviderSender(environment).check(llm)
    except UserInputError as error:
        raise found.mistake((role, "model"), error.message, error.hint) from error


def check_keys(
    found: SpecFile,
    environment: Mapping[str, str],
    of_services: list[str] | None,
    *,
    needed: bool,
    roles: Collection[str] | None = None,
) -> list[str]:
    """Notes on keys of providers. UserInputError if one that is needed is surely not there.

    `of_services`: names of the key variables that running services have, where that is known. `roles`: keys of the
    spec whose service LLM will be called; None: all.
    """
    notes: list[str] = []
    for role, llm in found.spec.llms:
        if roles is not None and role not in roles:
            continue
        variables = key_variables(llm)
        accepted = key_sources(llm)
        # Nobody can tell for a provider that takes its credentials from elsewhere.
        if not accepted or (of_services is not None and set(accepted) & set(of_services)):
            continue
        here = [name for name in accepted if environment.get(name)]
        named = " or ".join(variables)
        if llm.base_url is not None:
            if not here:
                notes.append(f"{role}: {named} is not set; {llm.base_url} will be called without a key")
            continue
        if not here:
            message = f"the environment variable {named} is not set"
            hint = f"export {variables[0]}=… before `llamaduo up` and this command"
        elif of_services is not None:
            message = f"`llamaduo up` was started without {named}"
            hint = "stop it and start it again from a shell in which that variable is set"
        else:
            _check_credentials(found, role, llm, environment)
            continue
        if needed:
            raise found.mistake((role, "api_key_env"), message, hint)
        notes.append(f"{role}: {message} ({hint})")
    return list(dict.fromkeys(notes))


def check_base_models(found: SpecFile) -> list[str]:
    """UserInputError if a base model cannot be one, or several are not in order; notes on those to be fetched."""
    several = found.spec.base_models
    if not several:
        return _check_base_model(found, ("base_model",), found.spec.base_model)
    notes = [
        note for place, name in enumerate(several) for note in _check_base_model(found, ("base_models", place), name)
    ]
    sizes = {name: size for name in several if (size := parameters_of(name)) is not None}
    known = list(sizes)
    for smaller, larger in pairwise(known):
        if sizes[larger] < sizes[smaller]:
            raise found.mistake(
                ("base_models", several.index(larger)),
                f"{larger} ({sizes[larger] / 1e6:,.0f}M weights) stands after {smaller} "
                f"({sizes[smaller] / 1e6:,.0f}M)",
                "smallest first: the smallest that passes wins",
            )
    if len(known) < len(several):
        notes.append("base_models: not all sizes are known here; their order in the spec counts as smallest first")
    return notes


def _check_base_model(found: SpecFile, key: KeyPath, written: str) -> list[str]:
    base = Path(written)
    if base.is_dir():
        try:
            check_folder(base)
        except UserInputError as error:
            raise found.mistake(key, f"{base}: {error.message}", error.hint) from error
        return []
    if base.is_file():
        if base.suffix != ".gguf":
            raise found.mistake(key, f"{base} is a file, but not a .gguf")
        return []
    if not HUB_ID.fullmatch(written):
        raise found.mistake(
            key,
            f"{written!r} is no folder, no .gguf file and no Hub id",
            "a Hub id has an owner, e.g. HuggingFaceTB/SmolLM2-135M-Instruct",
        )
    return [] if _folder_at_hand(written) else [f"{written} is not on this machine: it will be fetched"]


def _folder_at_hand(base_model: str) -> Path | None:
    """The folder of a base model that is one, or is in the Hub's cache."""
    if Path(base_model).is_dir():
        return Path(base_model)
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    repo, _, revision = base_model.partition("@")
    if not HUB_ID.fullmatch(base_model):
        return None
    config = try_to_load_from_cache(repo, "config.json", revision=revision or None)
    return Path(config).parent if isinstance(config, str) else None


def doubtful_evaluators(found: SpecFile) -> list[str]:
    """Notes on evaluators that may be built-in ones misspelt: without a bus nobody can tell."""
    return [
        f"evaluators: {choice.name} is none of the built-in ones ({near})"
        for choice in found.spec.evaluators
        if choice.name not in METRICS and (near := did_you_mean(choice.name, METRICS))
    ]


def check_evaluators(found: SpecFile, on_bus: list[EvaluatorOnBus]) -> list[str]:
    """Notes on evaluators that nobody runs now. UserInputError if one that decides is unknown to the bus."""
    known = {evaluator.name: evaluator.attended for evaluator in on_bus}
    notes: list[str] = []
    for place, choice in enumerate(found.spec.evaluators):
        if known.get(choice.name):
            continue
        if choice.name in known:
            notes.append(f"evaluator {choice.name} ({choice.role}): no process is running it now")
        elif choice.role != "advisory":
            # First what was meant: the command would make a misspelling last.
            wish = choice.name in ON_WISH
            near = None if wish else did_you_mean(choice.name, known)
            add = f"llamaduo {'up --evaluator' if wish else 'evaluator add'} {choice.name}"
            raise found.mistake(
                ("evaluators", place, "name"),
                f"nobody would mark for {choice.name!r}: the bus has no consumer for it",
                f"{near} A new one: {add}" if near else f"{add}; known: {', '.join(sorted(known)) or 'none'}",
            )
        else:
            notes.append(f"evaluator {choice.name} (advisory) is unknown to the bus and will mark nothing")
    return notes
