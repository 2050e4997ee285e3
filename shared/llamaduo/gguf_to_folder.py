"""Turns a `.gguf` file into a normal model folder; run only as a child process.

    python -P gguf_to_folder.py MODEL.gguf EMPTY_OR_MISSING_FOLDER

Writes bfloat16 safetensors, config.json, generation_config.json, the tokenizer and its chat template. Ends
with exit code 0, or 1 and a last line on stderr that says why. This file imports nothing of LlamaDuo, so that
any interpreter with torch, transformers and gguf can run it; nothing else in `llamaduo` may import it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def convert(source: Path, target: Path) -> None:
    """Writes `source` as a model folder at `target` (made if missing; must be empty).

    Raises ValueError where the file does not carry what a chat model needs, or where a written tensor differs
    from the one that was read.
    """
    from gguf import GGUFReader

    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty")
    target.mkdir(parents=True, exist_ok=True)
    header = GGUFReader(source).fields

    def field(name: str) -> Any:
        return header[name].contents() if name in header else None

    pre_tokenizer = field("tokenizer.ggml.pre")
    if not field("tokenizer.chat_template"):
        raise ValueError("no chat template in the file: take the instruction-tuned variant of this model")
    context = field(f"{field('general.architecture')}.context_length")
    _write_tokenizer(source, target, pre_tokenizer, context)
    _write_weights(source, target)
    for name in ("config.json", "generation_config.json"):
        _without_origin(target / name)
    for file in target.iterdir():
        file.chmod(0o644)


def _write_tokenizer(source: Path, target: Path, pre_tokenizer: str | None, context: int | None) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    if pre_tokenizer == "smollm":
        # transformers rebuilds the vocabulary, but not this model's rule that each digit is its own token.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if context:
        tokenizer.model_max_length = int(context)
    tokenizer.save_pretrained(target)
    text = "order 12345, 7 items\n\n1. Done?"
    again = AutoTokenizer.from_pretrained(target)
    if again.decode(again.encode(text, add_special_tokens=False)) != text:
        raise ValueError("the tokenizer of this file does not give back what it is given")


def _write_weights(source: Path, target: Path) -> None:
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    config = type(loaded.config).from_dict(settings)
    # A model from GGUF counts as quantized and refuses to be saved, so its weights move to a plain one.
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict(), strict=True)
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(target, safe_serialization=True)

    expected = loaded.state_dict()
    written: set[str] = set()
    for part in sorted(target.glob("*.safetensors")):
        with safe_open(part, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                written.add(name)
                if not torch.equal(tensors.get_tensor(name), expected[name]):
                    raise ValueError(f"tensor {name} was not written as it was read")
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if missing := set(expected) - written - tied:
        raise ValueError(f"tensors not written: {', '.join(sorted(missing)[:5])}")


def _without_origin(file: Path) -> None:
    """Drops the library's version and the old name, so that equal models have equal digests everywhere."""
    if file.exists():
        config = json.loads(file.read_text("utf-8"))
        for key in ("transformers_version", "_model_name_or_path", "_name_or_path", "_from_model_config"):
            config.pop(key, None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def main() -> int:
    """Entry point; see the module's text."""
    if len(sys.argv) != 3:
        sys.stderr.write("usage: gguf_to_folder.py MODEL.gguf FOLDER\n")
        return 2
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
