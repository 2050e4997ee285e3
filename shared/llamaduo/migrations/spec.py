"""The migration spec: what a team writes in `migration.yaml`, strict and frozen once submitted."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from llamaduo.errors import UserInputError
from llamaduo.migrations.recipe import Recipe


class Strict(BaseModel):
    """A part of the spec: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _model_shorthand(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


class ServiceLLM(Strict):
    """A cloud LLM by name: `provider:model`, e.g. `openai:gpt-4o`; any compatible server by `base_url`."""

    model: str = Field(pattern=r"^[a-z0-9_-]+:.+$", description="provider:model, e.g. openai:gpt-4o")
    base_url: str | None = Field(None, description="an OpenAI-compatible server, e.g. http://host:8000/v1")
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        pattern=r"^[A-Z][A-Z0-9_]*$",
        description="name of the environment variable that holds the key; the key itself is never in a spec",
    )
    requests_per_minute: int = Field(600, ge=1, description="held across all replicas of all services")
    concurrency: int = Field(16, ge=1, le=256, description="calls in flight of one replica")
    timeout_s: float = Field(120, gt=0, description="seconds one call may take")
    temperature: float | None = Field(None, ge=0, le=2, description="None: the provider's default")


Provider = Annotated[ServiceLLM, BeforeValidator(_model_shorthand)]


class EvaluatorChoice(Strict):
    """An evaluator this migration asks: required ones decide, advisory ones are only reported."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")
    role: Literal["required", "advisory"] = "required"


def _evaluator_shorthand(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Parity(Strict):
    """Not worse than the service LLM by more than `margin` (points of 100), paired per prompt."""

    margin: float = Field(gt=0, le=50)


class Gate(Strict):
    """When a round passes: every absolute threshold is met and, if asked, parity holds."""

    absolute: dict[str, float] = Field(
        default_factory=dict,
        description="`evaluator.metric`: smallest mean that passes, on the metric's own scale",
    )
    parity: Parity | None = None
    confidence: float = Field(0.95, gt=0.5, lt=1)

    @model_validator(mode="after")
    def _asks_something(self) -> Gate:
        if not self.absolute and self.parity is None:
            raise ValueError("a gate needs `absolute` thresholds or `parity`")
        for key in self.absolute:
            if key.count(".") != 1:
                raise ValueError(f"{key!r} is not `evaluator.metric`, e.g. exact-match.exact")
        return self


class Splits(Strict):
    """Rows of the coverage dataset by use. Whole near-duplicate groups go to one split."""

    train: int = Field(0, ge=0, description="seeds and first training rows; 0: whatever is left over")
    validation: int = Field(0, ge=0, description="checkpoint choice; 0: a tenth of the dataset")
    test: int = Field(0, ge=0, description="the gate; 0: half of the dataset, at most 200")
    holdout: int = Field(0, ge=0, description="looked at once, after a pass; 0: a tenth of the dataset")


class Synthesis(Strict):
    """How new rows are asked for after a failed round."""

    rows_per_round: int = Field(150, ge=1, le=100_000)
    rows_rule: Literal["fixed", "double"] = Field(
        "fixed", description="double: as many as train has, at most rows_per_round"
    )
    pairs_per_call: int = Field(10, ge=1, le=50)
    strategy: Literal["targeted", "uniform"] = "targeted"
    uniform_share: float = Field(0.5, ge=0, le=1, description="share of seeds drawn uniformly when targeted")
    near_copy: float = Field(90, gt=50, le=100, description="similarity (0-100) at which a row is a copy")
    max_calls_per_round: int = Field(200, ge=1)
    self_check: bool = Field(False, description="the teacher checks its own pairs, at one call more for each")


class Generation(Strict):
    """How candidates answer."""

    answers: int = Field(1, ge=1, le=16, description="answers a prompt (the paper's K)")
    max_tokens: int = Field(256, ge=1, le=32_768)
    temperature: float = Field(0.0, ge=0, le=2)


class Marking(Strict):
    """How the verdict asks for marks."""

    shard_rows: int = Field(25, ge=1, le=1_000)
    wave_shards: int = Field(2, ge=1, le=64, description="shards asked for ahead of the marks")
    failures_wanted: int = Field(30, ge=0, description="failing rows gathered before a sure fail is announced")
    silent_after_s: float = Field(3600, gt=0, description="a required evaluator silent this long stops it")
    baseline_rows: int = Field(0, ge=0, description="test rows the base model answers; 0: all")


class Budgets(Strict):
    """Hard stops."""

    rounds: int = Field(5, ge=1, le=100)
    hours: float = Field(24, gt=0)
    money: float | None = Field(None, gt=0, description="US dollars of service LLM")
    calls: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    rounds_without_gain: int = Field(3, ge=1, description="rounds without a better mean before it stops")


class Costs(Strict):
    """What one's own machines cost, for the report."""

    machine_hour: float = Field(0.0, ge=0, description="US dollars")


class MigrationSpec(Strict):
    """One migration: a task, its data, the model it moves to and the gate it must pass."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,40}$", description="also the alias the result is served as")
    task: str = Field("", max_length=4_000, description="one paragraph on what the task is, for the teacher")
    coverage: str = Field(description="JSONL file of the team's own prompts and answers")
    base_model: str = Field(description="Hub id, folder or .gguf file")
    service_llm: Provider
    teacher: Provider | None = Field(None, description="writes new pairs; default: the service LLM")
    judge: Provider | None = Field(None, description="marks answers; default: the service LLM")
    gate: Gate
    evaluators: list[Annotated[EvaluatorChoice, BeforeValidator(_evaluator_shorthand)]] = Field(
        default_factory=lambda: [EvaluatorChoice(name="llm-judge")], min_length=1
    )
    splits: Splits = Splits()
    synthesis: Synthesis = Synthesis()
    recipe: Recipe = Recipe()
    generation: Generation = Generation()
    marking: Marking = Marking()
    budgets: Budgets = Budgets()
    costs: Costs = Costs()
    promotion: Literal["auto", "manual"] = "auto"
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _gate_is_marked(self) -> MigrationSpec:
        names = [evaluator.name for evaluator in self.evaluators]
        if len(set(names)) != len(names):
            raise ValueError("an evaluator is named twice")
        required = {e.name for e in self.evaluators if e.role == "required"}
        if not required:
            raise ValueError("at least one evaluator must be required")
        for key in self.gate.absolute:
            if key.split(".")[0] not in required:
                raise ValueError(f"gate {key!r}: {key.split('.')[0]!r} is not a required evaluator")
        return self

    @property
    def teacher_llm(self) -> ServiceLLM:
        """Who writes new pairs."""
        return self.teacher or self.service_llm

    @property
    def judge_llm(self) -> ServiceLLM:
        """Who judges."""
        return self.judge or self.service_llm

    @property
    def required(self) -> list[str]:
        """Names of the evaluators that decide."""
        return [e.name for e in self.evaluators if e.role == "required"]


def _known_keys(model: Any) -> list[str]:
    if isinstance(model, type) and issubclass(model, BaseModel):
        return list(model.model_fields)
    for argument in get_args(model):
        keys = _known_keys(argument)
        if keys:
            return keys
    return []


def _nearest(path: list[str | int]) -> str | None:
    """The known key nearest to the unknown one at the end of `path`."""
    model: Any = MigrationSpec
    for part in path[:-1]:
        if isinstance(part, int):
            continue
        while not (isinstance(model, type) and issubclass(model, BaseModel)):
            model = next((a for a in get_args(model) if _known_keys(a)), None)
            if model is None:
                return None
        if part not in model.model_fields:
            return None
        model = model.model_fields[part].annotation
    keys = _known_keys(model)
    close = difflib.get_close_matches(str(path[-1]), keys, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(keys))}"


def _line_of(node: yaml.Node | None, path: list[str | int]) -> int | None:
    """1-based line of the key or item at `path` in a composed YAML tree, or of its nearest parent."""
    line = node.start_mark.line + 1 if node is not None else None
    for part in path:
        child: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    child, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            line = child.start_mark.line + 1
        if child is None:
            break
        node = child
    return line


def spec_from_text(text: str, file: str) -> MigrationSpec:
    """Read a spec; every mistake in it is one UserInputError naming file, line, key and the likely key."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserInputError(
            f"not YAML: {getattr(error, 'problem', error)}", file=file, line=mark.line + 1 if mark else None
        ) from error
    if not isinstance(raw, dict):
        raise UserInputError("a spec is a mapping of keys", file=file, line=1, hint="see docs/spec.md")
    try:
        return MigrationSpec.model_validate(raw)
    except ValidationError as error:
        # A mistyped required key is two errors: the unknown key says more than the missing one.
        first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
        path = [part for part in first["loc"] if not str(part).startswith("function-")]
        message, hint = first["msg"].removeprefix("Value error, "), None
        if first["type"] == "extra_forbidden":
            message, hint = "unknown key", _nearest(path)
        elif first["type"] == "missing":
            message = "this key is missing"
        raise UserInputError(
            message,
            file=file,
            line=_line_of(tree, path),
            field=".".join(str(part) for part in path) or None,
            hint=hint,
        ) from error


def read_spec(path: Path) -> MigrationSpec:
    """Read `migration.yaml`; paths in it are relative to its folder and come back absolute."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserInputError(f"cannot read the spec: {error}", file=str(path)) from error
    spec = spec_from_text(text, str(path))
    folder = path.resolve().parent
    changes: dict[str, Any] = {"coverage": str((folder / spec.coverage).resolve())}
    local = (folder / Path(spec.base_model).expanduser()).resolve()
    if local.exists():
        changes["base_model"] = str(local)
    elif spec.base_model.endswith(".gguf") or spec.base_model.startswith((".", "/", "~")):
        raise UserInputError(
            "no such model file or folder",
            file=str(path),
            line=_line_of(yaml.compose(text, Loader=yaml.SafeLoader), ["base_model"]),
            field="base_model",
        )
    return spec.model_copy(update=changes)
