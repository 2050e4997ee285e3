"""Reads `migration.yaml` strictly: each mistake in it is one error that names file, line, key and what was meant."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from llamaduo.errors import UserInputError
from llamaduo.hub_datasets import ON_THE_HUB, parse_address
from llamaduo.input_files import read_text, why_unreadable
from llamaduo.migrations.spec import MODEL_PATTERN, NAME_PATTERN, VARIABLE_PATTERN, MigrationSpec
from llamaduo.migrations.strict import AT_KEY
from llamaduo.names import did_you_mean, nearest
from llamaduo.plain_words import in_words

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

KeyPath = Sequence[str | int]
DEEPEST = 32

PATTERNS = {
    NAME_PATTERN: "{found} is no name: lower-case letters, digits and dashes, a letter first, at most 41",
    MODEL_PATTERN: "{found} is not `provider:model`",
    # What stands here by mistake is often the key itself, so it is not repeated.
    VARIABLE_PATTERN: "must be the name of an environment variable, and never the key itself",
}
# What people write for a key that is called otherwise here, and that no likeness of letters would find.
_OTHER_WORDS = {
    "api_key": "api_key_env",
    "data": "coverage",
    "dataset": "coverage",
    "epochs": "steps",
    "llm": "service_llm",
    "lr": "learning_rate",
    "max_steps": "steps",
    "model": "base_model",
    "models": "base_models",
    "threshold": "absolute",
    "thresholds": "absolute",
    "url": "base_url",
}
_PROVIDER_BY_MODEL = {
    r"(gpt-|chatgpt-|o\d)": "openai",
    r"claude": "anthropic",
    r"gemini": "google",
    r"(mistral|mixtral|codestral)": "mistral",
    r"deepseek": "deepseek",
    r"command": "cohere",
    r"grok": "xai",
}


@dataclass(frozen=True)
class SpecFile:
    """A spec, and where in its file each key stands."""

    file: str
    tree: yaml.Node
    spec: MigrationSpec

    def mistake(self, path: KeyPath, message: str, hint: str | None = None) -> UserInputError:
        """An error about the key at `path`."""
        return _mistake(self.file, self.tree, path, message, hint)


class _Loader(yaml.SafeLoader):
    """YAML without dates: nothing in a spec is one, and an impossible one would be an error of Python's."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:  # what looks like a number, and is none
            raise yaml.constructor.ConstructorError(
                None, None, "this is neither a number nor text: put it in quotes", node.start_mark
            ) from error


def read_spec(path: Path) -> SpecFile:
    """Read `migration.yaml`; paths in it are relative to its folder and come back absolute."""
    return spec_at(path, read_text(path))


def spec_at(path: Path, text: str) -> SpecFile:
    """A spec from its text as if it stood at `path`, be it written there or not."""
    found = parse_spec(text, str(path))
    folder = path.resolve().parent
    changes: dict[str, Any] = {"coverage": str(_coverage(found, folder))}
    if found.spec.base_models:
        several = [_base(found, ["base_models", i], name, folder) for i, name in enumerate(found.spec.base_models)]
        for place, name in enumerate(several):
            if name in several[:place]:  # by two names
                raise found.mistake(["base_models", place], f"{name} is named twice")
        changes["base_models"] = several
    else:
        changes["base_model"] = _base(found, ["base_model"], found.spec.base_model, folder)
    return SpecFile(found.file, found.tree, found.spec.model_copy(update=changes))


def _base(found: SpecFile, key: KeyPath, written: str, folder: Path) -> str:
    """The base model named under `key`: absolute where it is a file or folder."""
    local = (folder / Path(written).expanduser()).resolve()
    if written.strip() and "\0" not in written and local.exists():
        return str(local)
    if written.endswith(".gguf") or written.startswith((".", "/", "~")):
        unreadable = why_unreadable(local)
        raise found.mistake(key, "no such model file or folder", unreadable[1] if unreadable else None)
    return written


def _coverage(found: SpecFile, folder: Path) -> Path | str:
    written = found.spec.coverage
    if not written.strip():
        raise found.mistake(["coverage"], "names no file")
    if written.startswith(ON_THE_HUB):
        try:
            parse_address(written)
        except UserInputError as error:
            raise found.mistake(["coverage"], error.message, error.hint) from error
        return written
    if "://" in written:
        what = "must be a file on this machine, or hf://owner/name"
        raise found.mistake(["coverage"], what, "fetch it first")
    path = folder / Path(written).expanduser()
    if problem := why_unreadable(path):
        raise found.mistake(["coverage"], f"{written}: {problem[0]}", problem[1])
    return path.resolve()


def parse_spec(text: str, file: str) -> SpecFile:
    """A spec from its text. UserInputError for what is wrong in it."""
    tree, raw = _read_yaml(text, file)
    if not isinstance(raw, dict):
        what = "is empty" if raw is None else "a spec is a mapping of keys"
        raise UserInputError(what, file=file, line=1, hint="docs/spec.md begins with one of five lines")
    try:
        return SpecFile(file, tree, MigrationSpec.model_validate(raw))
    except ValidationError as error:
        raise _first_mistake(error, file, tree) from error


def _read_yaml(text: str, file: str) -> tuple[yaml.Node, Any]:
    def wrong(message: str, mark: Any, hint: str | None = None) -> UserInputError:
        return UserInputError(message, file=file, line=mark.line + 1 if mark else None, hint=hint)

    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > DEEPEST:
                raise wrong(f"nested more than {DEEPEST} deep", event.start_mark)
            if tag := getattr(event, "tag", None):
                raise wrong(f"the YAML tag {tag} has no meaning in a spec", event.start_mark)
        loader = _Loader(text)
        tree = loader.get_single_node()
        if tree is None:
            return yaml.ScalarNode("tag:yaml.org,2002:null", ""), None
        for key, first in _bad_keys(tree):
            if first is not None:
                line = first.start_mark.line + 1
                raise wrong(f"{key.value}: this key stands twice, first in line {line}", key.start_mark)
            raise wrong("a key must be text", key.start_mark, "put it in quotes")
        return tree, loader.construct_document(tree)
    except yaml.reader.ReaderError as error:
        shown = f"U+{error.character:04X}" if isinstance(error.character, int) else repr(error.character)
        raise UserInputError(
            f"not YAML: the character {shown} cannot stand in it",
            file=file,
            line=text.count("\n", 0, error.position) + 1,
        ) from error
    except yaml.MarkedYAMLError as error:
        raise wrong(f"not YAML: {error.problem}", error.problem_mark or error.context_mark) from error


def _bad_keys(tree: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node | None]]:
    """Keys that stand twice in their mapping, with the first of them, and keys that are no text."""
    waiting, seen = [tree], set()
    while waiting:
        node = waiting.pop(0)
        if id(node) in seen:  # an alias may lead back to where it stands
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, yaml.Node] = {}
            for key, value in node.value:
                if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                    yield key, None
                elif key.value in first:
                    yield key, first[key.value]
                else:
                    first[key.value] = key
                waiting.append(value)


def _first_mistake(error: ValidationError, file: str, tree: yaml.Node) -> UserInputError:
    # A mistyped required key is two errors: the unknown key says more than the missing one.
    first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    path: list[str | int] = [part for part in first["loc"] if not str(part).startswith("function-")]
    if first["type"] == AT_KEY:
        context = first["ctx"]
        return _mistake(file, tree, [*path, *context["path"]], context["message"], context["hint"])
    return _mistake(file, tree, path, in_words(first, PATTERNS), _hint(first, path))


def _mistake(file: str, tree: yaml.Node, path: KeyPath, message: str, hint: str | None) -> UserInputError:
    line, known = _find(tree, path)
    # What a shorthand stands for is no key of the file; an absent one is named where nothing else is at hand.
    shown = path if known < len(path) and _is_mapping(tree, path[:known]) else path[:known]
    return UserInputError(message, file=file, line=line, field=".".join(map(str, shown)) or None, hint=hint)


def _find(tree: yaml.Node | None, path: KeyPath) -> tuple[int | None, int]:
    """(1-based line of the key or item at `path` or of its nearest parent, how many parts of `path` are there)."""
    node = tree
    line = node.start_mark.line + 1 if node is not None and node.start_mark is not None else None
    for found, part in enumerate(path):
        child: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    child, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            line = child.start_mark.line + 1
        if child is None:
            return line, found
        node = child
    return line, len(path)


def _is_mapping(tree: yaml.Node, path: KeyPath) -> bool:
    node = tree
    for part in path:
        if isinstance(node, yaml.MappingNode):
            node = next(value for key, value in node.value if key.value == str(part))
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
    return isinstance(node, yaml.MappingNode)


def _hint(error: ErrorDetails, path: KeyPath) -> str | None:
    """What was probably meant."""
    value, context = error["input"], error.get("ctx") or {}
    match error["type"]:
        case "extra_forbidden":
            return _nearest_key(path)
        case "literal_error" if isinstance(value, str):
            return did_you_mean(value, re.findall(r"'([^']*)'", str(context.get("expected", ""))))
        case "string_pattern_mismatch":
            return likely_value(str(context.get("pattern")), str(value))
        case "string_type" if isinstance(value, bool | int | float):
            return "put it in quotes"
        case "list_type" if isinstance(value, str):
            return f"did you mean [{value}]?"
        case "dict_type" | "model_type" | "model_attributes_type":
            if value is None:
                return "leave the key out, or give it keys of its own"
            fields = _known_keys(_model_at(path))
            if len(fields) == 1 and isinstance(value, str | int | float):
                return f"did you mean {{{fields[0]}: {value}}}?"
            return f"it has the keys {', '.join(fields)}" if fields else None
    return None


def likely_name(text: str) -> str:
    """A migration's name from any text; empty where nothing in it can be one."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-").lstrip("0123456789-")[:41]


def likely_value(pattern: str, value: str) -> str | None:
    """The value of this pattern that was probably meant."""
    if pattern == NAME_PATTERN:
        slug = likely_name(value)
        return f"did you mean {slug!r}?" if slug else None
    if pattern == VARIABLE_PATTERN:
        return "e.g. OPENAI_API_KEY"
    if ":" in value:
        return f"did you mean {value.lower()!r}?" if re.search(MODEL_PATTERN, value.lower()) else None
    provider, slash, model = value.partition("/")
    if slash and provider.lower() in set(_PROVIDER_BY_MODEL.values()):
        return f"did you mean '{provider.lower()}:{model}'?"
    for beginning, name in _PROVIDER_BY_MODEL.items():
        if re.match(beginning, value, re.IGNORECASE):
            return f"did you mean '{name}:{value}'?"
    return "e.g. openai:gpt-4o"


def _known_keys(annotation: Any) -> list[str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return list(annotation.model_fields)
    return next((keys for argument in get_args(annotation) if (keys := _known_keys(argument))), [])


def _model_at(path: KeyPath) -> Any:
    """What the value at `path` is validated by; None where the spec has no such key."""
    model: Any = MigrationSpec
    for part in path:
        if isinstance(part, int):
            continue
        while not (isinstance(model, type) and issubclass(model, BaseModel)):
            model = next((a for a in get_args(model) if _known_keys(a)), None)
            if model is None:
                return None
        if part not in model.model_fields:
            return None
        model = model.model_fields[part].annotation
    return model


def _nearest_key(path: KeyPath) -> str | None:
    """The known key nearest to the unknown one at the end of `path`."""
    keys, written = _known_keys(_model_at(path[:-1])), str(path[-1])
    if not keys:
        return None
    if list(path[:-1]) == ["gate"] and "." in written:
        return f"did you mean absolute: {{{written}: …}}?"
    meant = _OTHER_WORDS.get(written.lower())
    if meant not in keys:
        meant = nearest(written, keys, cutoff=0.5)
    return f"did you mean {meant!r}?" if meant else f"known keys: {', '.join(sorted(keys))}"
