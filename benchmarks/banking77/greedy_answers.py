"""`python -m benchmarks.banking77.greedy_answers BASE ADAPTER ROWS OUT`: what a fine-tuned model answers, greedily.

The adapter is merged and the loop is our own: vLLM's LoRA kernels on a CPU take as long for 400 prompts as the
training did. ROWS is a file of `Row`s as JSON lines, OUT gets one JSON object: row id -> answer. Runs in a process
of its own, since it loads torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamaduo.datasets import Row, load_rows

BATCH = 32
MOST_TOKENS = 16


def main() -> None:
    """Command line."""
    base, adapter, rows_file, out = map(Path, sys.argv[1:5])
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, attn_implementation="eager", local_files_only=True, use_safetensors=True
    )
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    rows = sorted(load_rows(rows_file.read_bytes()), key=lambda row: len(row.user_text))
    answers: dict[str, str] = {}
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        with torch.inference_mode():
            texts = answer(model, tokenizer, batch)
        answers |= {row.id: text for row, text in zip(batch, texts, strict=True)}
    partial = out.with_suffix(".partial")
    partial.write_text(json.dumps(answers), "utf-8")
    partial.rename(out)


def answer(model: Any, tokenizer: Any, rows: list[Row]) -> list[str]:
    """The answers to a batch of rows, of at most MOST_TOKENS tokens each."""
    prompts = [[message.model_dump() for message in row.prompt] for row in rows]
    inputs = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = None
    ended = torch.zeros(len(rows), dtype=torch.bool)
    written: list[torch.Tensor] = []
    for _ in range(MOST_TOKENS):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        token = out.logits[:, -1].argmax(dim=-1)
        token[ended] = tokenizer.pad_token_id
        written.append(token)
        ended |= token == tokenizer.eos_token_id
        if bool(ended.all()):
            break
        ids = token[:, None]
        mask = torch.cat([mask, torch.ones((len(rows), 1), dtype=mask.dtype)], dim=1)
        places = places[:, -1:] + 1
    return [text.strip() for text in tokenizer.batch_decode(torch.stack(written, dim=1), skip_special_tokens=True)]


if __name__ == "__main__":
    main()
