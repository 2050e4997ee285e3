"""A vLLM plugin: LoRA on the CPU as one matrix product for each run of tokens with the same adapter.

vLLM's own CPU code copies an adapter's matrices once for every token, which makes long prompts several times
slower than the base model, and takes slot -1 (no adapter) for the last slot, which gives base requests that share
a batch with adapter requests the wrong weights. Here nothing is copied, and -1 means no adapter.

Installed into vLLM's environment by deploy/setup_environments.py; vLLM calls `register` in each of its processes.
It stays out, with a warning, if vLLM's functions are not the ones it was written for.
"""

# ruff: noqa: ARG001 (the parameters are vLLM's)
from __future__ import annotations

import inspect
import logging

import torch

log = logging.getLogger("vllm.llamaduo_cpu_lora")

_RUNS = ["b_seq_start_loc", "seq_len_tensor", "lora_indices_tensor", "batches", "max_seq_length", "token_nums"]
_SHRINK = ["inputs", "lora_a_weights", "output_tensor", *_RUNS, "scaling"]
_EXPAND = ["inputs", "lora_b_weights", "output_tensor", *_RUNS, "slice_offset", "slice_size", "add_inputs"]


def register() -> None:
    """Puts the two functions in the place of vLLM's. May be called more than once."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.lora.punica_wrapper import punica_cpu

    theirs = (punica_cpu.sgmv_shrink, punica_cpu.sgmv_expand_slice)
    if theirs == (shrink, expand_slice):
        return
    if [list(inspect.signature(function).parameters) for function in theirs] != [_SHRINK, _EXPAND]:
        log.warning("this vLLM has other LoRA functions than expected; its own, slower ones stay in place")
        return
    punica_cpu.sgmv_shrink, punica_cpu.sgmv_expand_slice = shrink, expand_slice


def shrink(
    inputs: torch.Tensor,
    lora_a_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    b_seq_start_loc: torch.Tensor,
    seq_len_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    scaling: float,
) -> None:
    """output[tokens, :rank] = scaling * inputs[tokens] @ A[slot]^T; zeros where there is no adapter.

    `inputs` is (tokens, in), `lora_a_weights` (slots, 1, rank, in), `output_tensor` (tokens, rank or more).
    """
    for slot, begin, end in _runs(b_seq_start_loc, seq_len_tensor, lora_indices_tensor):
        rank = lora_a_weights.shape[-2]
        target = output_tensor[begin:end, :rank]
        if slot < 0:
            target.zero_()
            continue
        weights = lora_a_weights[slot].reshape(rank, -1).to(output_tensor.dtype)
        target.copy_(inputs[begin:end].to(output_tensor.dtype) @ weights.t())
        target.mul_(scaling)


def expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    b_seq_start_loc: torch.Tensor,
    seq_len_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    batches: int,
    max_seq_length: int,
    token_nums: int,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = False,
) -> None:
    """output[tokens, slice] += inputs[tokens] @ B[slot]^T (or = where `add_inputs` is false).

    `inputs` is (tokens, rank), `lora_b_weights` (slots, 1, slice_size, rank).
    """
    for slot, begin, end in _runs(b_seq_start_loc, seq_len_tensor, lora_indices_tensor):
        target = output_tensor[begin:end, slice_offset : slice_offset + slice_size]
        if not add_inputs:
            target.zero_()
        if slot < 0:
            continue
        rank = lora_b_weights.shape[-1]
        weights = lora_b_weights[slot].reshape(-1, rank).to(output_tensor.dtype)
        target.add_(inputs[begin:end, :rank].to(output_tensor.dtype) @ weights.t())


def _runs(starts: torch.Tensor, lengths: torch.Tensor, slots: torch.Tensor) -> list[tuple[int, int, int]]:
    """(slot, first token, token after the last) of each run of tokens with the same adapter."""
    listed = zip(slots.tolist(), starts.tolist(), lengths.tolist(), strict=True)
    return [(slot, start, start + length) for slot, start, length in listed]
