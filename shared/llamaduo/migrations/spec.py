"""The migration spec: what a team writes in `migration.yaml`, strict and frozen once submitted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from llamaduo.event_parts import Split
from llamaduo.migrations.recipe import Recipe
from llamaduo.migrations.serving_gate import fewest_requests
from llamaduo.migrations.strict import Strict, wrong_at
from llamaduo.names import nearest
from llamaduo.tool_calls import ToolWording

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,40}$"
MODEL_PATTERN = r"^[a-z0-9_-]+:.+$"
VARIABLE_PATTERN = r"^[A-Z][A-Z0-9_]*$"
LARGEST_SEED = 2**32 - 1
"""The largest that numpy takes."""
MOST_ANSWERS_IN_A_SHARD = 1_000
"""Their marks travel in one event, which has to fit into a message of the bus."""
FEWEST: dict[Split, int] = {"train": 4, "validation": 2, "test": 8, "holdout": 0}
"""Rows without which a split is of no use."""


def _model_shorthand(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


class Batches(Strict):
    """Calls gathered and sent as one batch, answered later and cheaper."""

    wait_hours: float = Field(
        24, gt=0, le=24, description="a batch not done after so long is cancelled; what it lacks is asked online"
    )
    price_factor: float = Field(0.5, gt=0, le=1, description="price of a call in a batch by that of one asked online")


class ServiceLLM(Strict):
    """A cloud LLM by name: `provider:model`, e.g. `openai:gpt-4o`; another server by `base_url`."""

    model: str = Field(pattern=MODEL_PATTERN, description="provider:model, e.g. openai:gpt-4o")
    base_url: str | None = Field(None, description="another server than the provider's own, e.g. http://host:8000/v1")
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        pattern=VARIABLE_PATTERN,
        description="name of the environment variable that holds the key; the key itself is never in a spec",
    )
    requests_per_minute: int = Field(600, ge=1, description="held across all replicas of all services")
    tokens_per_minute: int | None = Field(
        None, ge=1, description="in and out together, held across all replicas of all services; None: no limit"
    )
    concurrency: int = Field(16, ge=1, le=256, description="calls in flight of one replica")
    timeout_s: float = Field(120, gt=0, description="seconds one call may take")
    temperature: float | None = Field(None, ge=0, le=2, description="None: the provider's default")
    # Left out of what ids are made of where it is not given: specs without it keep theirs.
    batch: Batches | None = Field(
        None,
        exclude_if=lambda batch: batch is None,
        description="true, or its settings: send the calls of one piece of work as a batch",
    )

    @model_validator(mode="before")
    @classmethod
    def _batch_shorthand(cls, given: Any) -> Any:
        """`batch: true` takes the defaults, `batch: false` is as not given."""
        if isinstance(given, dict) and isinstance(given.get("batch"), bool):
            return {**given, "batch": {} if given["batch"] else None}
        return given

    @property
    def batch_wait_s(self) -> float:
        """Seconds that an answer may take beyond `timeout_s` because it comes with a batch; 0 without batches."""
        return self.batch.wait_hours * 3600 if self.batch is not None else 0.0


Provider = Annotated[ServiceLLM, BeforeValidator(_model_shorthand)]


class EvaluatorChoice(Strict):
    """An evaluator this migration asks: required ones decide, advisory ones are only reported.

    A veto lets no round pass in which a prompt got less than the best mark.
    """

    name: str = Field(pattern=NAME_PATTERN)
    role: Literal["required", "advisory", "veto"] = "required"
    options: dict[str, JsonValue] = Field(default_factory=dict, description="the evaluator's own settings")


def _evaluator_shorthand(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Parity(Strict):
    """Not worse than the service LLM by more than `margin` (points of 100), paired per prompt."""

    margin: float = Field(gt=0, le=50)


class Slice(Strict):
    """A floor for each part of the test rows that shares a value of one `meta` column."""

    floor: float = Field(description="smallest mean of any part, on the metric's own scale")
    metric: str = Field("", description="`evaluator.metric`; may be left out where `absolute` has just one")
    min_rows: int = Field(20, ge=2, description="test rows below which a part is only reported")
    decides: bool = Field(False, description="whether a part below its floor keeps the round from passing")


class Serving(Strict):
    """How fast the adapter answers where it is served: a burst of test prompts, once all else of the gate is passed.

    Without a limit it is only measured and reported.
    """

    latency_p95_s: float | None = Field(
        None, gt=0, description="seconds within which 95 of 100 requests are answered"
    )
    requests_per_second: float | None = Field(None, gt=0, description="whole answers a second, at least")
    concurrency: int = Field(8, ge=1, le=256, description="requests in flight while it is measured")
    requests: int = Field(100, ge=1, le=1_000, description="requests that are measured")

    @property
    def limits(self) -> bool:
        """Whether it can keep a round from passing."""
        return self.latency_p95_s is not None or self.requests_per_second is not None


def _is_none(value: object) -> bool:
    return value is None


class Gate(Strict):
    """When a round passes: every absolute threshold is met and, if asked, parity holds."""

    absolute: dict[str, Annotated[float, Field(strict=True)]] = Field(
        default_factory=dict,
        description="`evaluator.metric`: smallest mean that passes, on the metric's own scale",
    )
    parity: Parity | None = None
    slices: dict[str, Slice] = Field(default_factory=dict, description="column of `meta`: a floor for its worst part")
    serving: Serving | None = Field(
        None,
        # Not written where it is not asked for: a migration's id is made from its spec.
        exclude_if=_is_none,
        description="limits on the adapter as served",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1)

    @model_validator(mode="after")
    def _asks_something(self) -> Gate:
        if not self.absolute and self.parity is None:
            raise ValueError("a gate needs `absolute` thresholds or `parity`")
        for key in self.absolute:
            if key.count(".") != 1:
                raise wrong_at(("absolute", key), "is not `evaluator.metric`", "e.g. exact-match.exact")
        for column in self.slices:
            if self.metric_of(column).count(".") != 1:
                raise wrong_at(("slices", column, "metric"), "is not `evaluator.metric`", "e.g. exact-match.exact")
        return self

    @model_validator(mode="after")
    def _serving_can_be_told(self) -> Gate:
        if self.serving is not None and self.serving.requests < (
            fewest := fewest_requests(self.serving, self.confidence)
        ):
            raise wrong_at(
                ("serving", "requests"),
                f"{self.serving.requests} requests with {self.serving.concurrency} in flight cannot tell that",
                f"at least {fewest}",
            )
        return self

    def metric_of(self, column: str) -> str:
        """The `evaluator.metric` whose floor a slice has; "" where it cannot be told."""
        named = self.slices[column].metric
        return named or (next(iter(self.absolute)) if len(self.absolute) == 1 else "")


class Splits(Strict):
    """Rows of the coverage dataset by use. Whole near-duplicate groups go to one split."""

    train: int = Field(0, ge=0, description="seeds and first training rows; 0: whatever is left over")
    validation: int = Field(0, ge=0, description="checkpoint choice; 0: a tenth of the dataset")
    test: int = Field(0, ge=0, description="the gate; 0: half of the dataset, at most 200")
    holdout: int = Field(0, ge=0, description="looked at once, after a pass; 0: a tenth of the dataset")

    @property
    def asked(self) -> dict[Split, int]:
        """Rows asked for by split; 0 where the default is wanted."""
        return {"train": self.train, "validation": self.validation, "test": self.test, "holdout": self.holdout}

    @property
    def needed(self) -> dict[Split, int]:
        """Rows by split without which this cannot be done: what is asked for, else the fewest."""
        return {split: number or FEWEST[split] for split, number in self.asked.items()}

    @property
    def too_small(self) -> dict[Split, int]:
        """Splits that ask for fewer rows than they must have."""
        return {split: number for split, number in self.asked.items() if 0 < number < FEWEST[split]}


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
    wave_shards: int = Field(2, ge=1, le=64, description="shards in a wave; at most two waves are asked ahead")
    failures_wanted: int = Field(30, ge=0, description="failing rows gathered before a sure fail is announced")
    repeats: int = Field(
        0,
        ge=0,
        le=9,
        description="times a noisy evaluator may be asked again where its noise keeps a round undecided",
    )
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


Column = Literal["messages", "prompt", "response", "completion", "system", "tools", "response_format"]


class MigrationSpec(Strict):
    """One migration: a task, its data, the model it moves to and the gate it must pass."""

    name: str = Field(pattern=NAME_PATTERN, description="also the alias the result is served as")
    task: str = Field("", max_length=4_000, description="one paragraph on what the task is, for the teacher")
    coverage: str = Field(description="the team's own prompts and answers: a file, or hf://owner/name")
    columns: dict[Column, str] = Field(
        default_factory=dict, description="names of the dataset's columns, where they are not called as ours"
    )
    base_model: str = Field("", description="Hub id, folder or .gguf file; required unless there are base_models")
    base_models: list[str] = Field(
        default_factory=list,
        description="instead of base_model: several, smallest first; all are trained, the smallest that passes wins",
    )
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
    tool_wording: ToolWording = Field(
        "text",
        # Written only where it is another: ids of specs that do without must not change.
        exclude_if=lambda wording: wording == "text",
        description="how rows with tools are shown to the small model: in words, or by its own chat template",
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED)

    @model_validator(mode="after")
    def _has_a_base_model(self) -> MigrationSpec:
        written = self.model_fields_set
        if not self.base_models and "base_model" not in written:
            if "base_models" in written:
                raise wrong_at(("base_models",), "must name at least 1")
            raise wrong_at(("base_model",), "this key is missing")
        if self.base_models and self.base_model:
            raise wrong_at(("base_models",), "stands beside base_model", "one of the two, not both")
        for place, name in enumerate(self.base_models):
            if name in self.base_models[:place]:
                raise wrong_at(("base_models", place), f"{name} is named twice")
        return self

    @property
    def bases(self) -> list[str]:
        """Names of the base models, smallest first; events name one by its place here."""
        return self.base_models or [self.base_model]

    @model_validator(mode="after")
    def _marks_of_a_shard_fit(self) -> MigrationSpec:
        rows, answers = self.marking.shard_rows, self.generation.answers
        if rows * answers > MOST_ANSWERS_IN_A_SHARD:
            raise wrong_at(
                ("marking", "shard_rows"),
                f"{rows} rows of {answers} answers are more than the {MOST_ANSWERS_IN_A_SHARD} of a shard",
                f"at most {MOST_ANSWERS_IN_A_SHARD // answers}",
            )
        return self

    @model_validator(mode="after")
    def _failures_are_in_words(self) -> MigrationSpec:
        if self.recipe.preference is not None and self.tool_wording == "template":
            raise wrong_at(
                ("recipe", "preference"), "reads answers with calls in words only", "take `tool_wording` away"
            )
        return self

    @model_validator(mode="after")
    def _gate_is_marked(self) -> MigrationSpec:
        names = [evaluator.name for evaluator in self.evaluators]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise wrong_at(("evaluators", place), f"{name} is named twice")
        if not self.required:
            raise wrong_at(("evaluators",), "at least one evaluator must be required")
        for key in self.gate.absolute:
            self._decides(("gate", "absolute", key), key)
        for column in self.gate.slices:
            self._decides(("gate", "slices", column), self.gate.metric_of(column))
        return self

    def _decides(self, path: tuple[str, ...], key: str) -> None:
        """An error at `path` unless `key`, `evaluator.metric`, is of a required evaluator."""
        name, _, metric = key.partition(".")
        if name in self.required:
            return
        names = [evaluator.name for evaluator in self.evaluators]
        if name in names:
            raise wrong_at(
                path, f"{name} is not a required evaluator, and only those decide", "take `role` away from it"
            )
        near = nearest(name, self.required)
        meant = f"did you mean {near + '.' + metric!r}? Or " if near else ""
        raise wrong_at(
            path,
            f"{name} is not a required evaluator",
            f"{meant}list it under `evaluators`, where there is {', '.join(names)}",
        )

    @property
    def llms(self) -> Iterator[tuple[str, ServiceLLM]]:
        """(key, service LLM) of those that the spec names."""
        for role, llm in (("service_llm", self.service_llm), ("teacher", self.teacher), ("judge", self.judge)):
            if llm is not None:
                yield role, llm

    @property
    def teacher_llm(self) -> ServiceLLM:
        """Who writes new pairs."""
        return self.teacher or self.service_llm

    @property
    def judge_llm(self) -> ServiceLLM:
        """Who judges."""
        return self.judge or self.service_llm

    @property
    def silence_s(self) -> float:
        """Seconds that an evaluator may mark nothing while a shard waits: more where the judge answers in batches."""
        return self.marking.silent_after_s + self.judge_llm.batch_wait_s

    @property
    def required(self) -> list[str]:
        """Names of the evaluators whose means decide."""
        return [e.name for e in self.evaluators if e.role == "required"]

    @property
    def vetoes(self) -> list[str]:
        """Names of the evaluators that allow no violation."""
        return [e.name for e in self.evaluators if e.role == "veto"]

    @property
    def awaited(self) -> list[str]:
        """Names of the evaluators without whose marks no round is decided."""
        return [e.name for e in self.evaluators if e.role != "advisory"]

    def options_of(self, evaluator: str) -> dict[str, JsonValue]:
        """What is set for that evaluator; {} where nothing is."""
        return next((dict(e.options) for e in self.evaluators if e.name == evaluator), {})
