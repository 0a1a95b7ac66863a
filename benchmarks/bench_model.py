"""The model against itself without hook points, and against transformers: python -m benchmarks.bench_model

The same weights for all, Hugging Face's attention on its fused kernel (sdpa). Prints a Markdown table. With
`--model smollm2` the weights are those of a pretrained Llama, otherwise random ones.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from benchmarks.bare import bare_twin
from benchmarks.timing import Timing, interleaved, machine

SHAPE = {
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
    "intermediate_size": 1536, "vocab_size": 8192, "max_position_embeddings": 4096,
}  # fmt: skip
GPU_SHAPE = {**SHAPE, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
             "intermediate_size": 8192, "vocab_size": 128_256}  # fmt: skip

SMALL_SHAPE = {**SHAPE, "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2,
               "intermediate_size": 512}  # fmt: skip
LARGE_SHAPE = {**SHAPE, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
               "intermediate_size": 2048, "vocab_size": 128_256, "tie_word_embeddings": True}  # fmt: skip
READ = 200 << 20  # bytes that no cache holds for long


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decode", action="store_true", help="only decoding, of three shapes")
    parser.add_argument("--model", help="a checkpoint that transformers reads too, such as smollm2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    device, rounds = options.device, options.rounds
    if options.decode:
        return _decode(rounds, device)
    shape = GPU_SHAPE if device.startswith("cuda") else SHAPE
    print(f"{options.model or f'Shape: {shape}'}\n\nMachine: {machine(device)}\n")
    print("| work | A | B | A, ms | B, ms | A / B (median, quartiles) |\n|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        reference, model = _both(options.model, dtype, device) if options.model else _pair(shape, dtype, device)
        with torch.no_grad():
            _hook_points(model, dtype, rounds, device)
            _against_transformers(reference, model, dtype, rounds, device)
            _capture(model, dtype, rounds, device)


@torch.no_grad()
def _decode(rounds: int, device: str) -> None:
    print(f"Machine: {machine(device)}\n")
    print("| shape | type | batch | ours, ms a step | transformers, ms | transformers / ours (median, quartiles) "
          "| ours, of the memory's rate |\n|---|---|---|---|---|---|---|")  # fmt: skip
    numbers = torch.ones(READ // 4, device=device)
    for shape in (SMALL_SHAPE, SHAPE, LARGE_SHAPE):
        for dtype in (torch.float32, torch.bfloat16):
            reference, model = _pair(shape, dtype, device)
            read = sum(p.numel() * p.element_size() for p in model.parameters())
            if model.output is not None:  # of the embedding a step reads a row
                read -= model.tok_embeddings.weight.numel() * dtype.itemsize
            for batch in (1, 8):
                runs: dict[str, Callable[[], object]] = {
                    "model": _decoding(model, batch), "transformers": _decoding_reference(reference, batch),
                    "memory": lambda: [numbers.sum() for _ in range(4)],
                }  # fmt: skip
                timing = interleaved(runs, rounds=rounds, device=device)
                middle, low, high = timing.ratio("transformers", "model")
                ours, theirs = timing.seconds["model"] / 16, timing.seconds["transformers"] / 16
                share = read / ours * timing.seconds["memory"] / (4 * READ)
                name = f"{shape['num_hidden_layers']} layers of {shape['hidden_size']}"
                print(f"| {name} | {_name(dtype)} | {batch} | {ours * 1e3:.2f} | {theirs * 1e3:.2f} "
                      f"| {middle:.2f} ({low:.2f} to {high:.2f}) | {share:.0%} |", flush=True)  # fmt: skip


def _hook_points(model: wb.Transformer, dtype: torch.dtype, rounds: int, device: str) -> None:
    bare = bare_twin(model)
    timing = interleaved({"model": _decoding(model), "bare": _decoding(bare)}, rounds=12 * rounds, device=device)
    _row(f"decode, batch 1, {_name(dtype)}", timing, "model", "bare")


def _against_transformers(
    reference: LlamaForCausalLM, model: wb.Transformer, dtype: torch.dtype, rounds: int, device: str
) -> None:
    tokens = torch.randint(0, 8192, (1, 512), device=device)
    runs: dict[str, Callable[[], object]] = {"model": lambda: model(tokens), "transformers": lambda: reference(tokens)}
    _row(
        f"forward, 512 tokens, {_name(dtype)}", interleaved(runs, rounds=rounds, device=device), "model", "transformers"
    )
    for batch in (1, 8):
        runs = {"model": _decoding(model, batch), "transformers": _decoding_reference(reference, batch)}
        timing = interleaved(runs, rounds=rounds, device=device)
        _row(f"decode, batch {batch}, {_name(dtype)}", timing, "model", "transformers")


def _capture(model: wb.Transformer, dtype: torch.dtype, rounds: int, device: str) -> None:
    names = ["blocks.*.attn.hook_pattern", "blocks.*.ln*.hook_scale", "blocks.*.hook_resid_*"]
    for length in (512, 2048):
        tokens = torch.randint(0, 8192, (1, length), device=device)
        runs: dict[str, Callable[[], object]] = {
            "plain": lambda t=tokens: model(t),
            "capture": lambda t=tokens: model.run_with_capture(t, names),
            "statistics": lambda t=tokens: model.run_with_capture(t, "blocks.*.attn.hook_stats")[1].stack(
                "attn.hook_stats"
            ),
        }
        timing = interleaved(runs, rounds=max(5, rounds // 2), device=device)
        _row(f"patterns, norms, stream, {length} tokens, {_name(dtype)}", timing, "capture", "plain")
        _row(f"statistics of all heads, {length} tokens, {_name(dtype)}", timing, "statistics", "plain")


def _decoding(model: wb.Transformer, batch: int = 1, steps: int = 16) -> Callable[[], object]:
    prompt = torch.randint(0, 8192, (batch, 64), device=model.device)
    token = torch.zeros(batch, 1, dtype=torch.int64, device=model.device)
    cache = model.empty_cache(batch, 64 + steps)
    model(prompt, cache)

    def run() -> None:
        cache.truncate(64)
        for _ in range(steps):
            model(token, cache)

    return run


def _decoding_reference(reference: LlamaForCausalLM, batch: int, steps: int = 16) -> Callable[[], object]:
    from transformers import DynamicCache

    device = reference.device
    prompt = torch.randint(0, 8192, (batch, 64), device=device)
    token = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    cache = DynamicCache(config=reference.config)
    reference(prompt, past_key_values=cache, use_cache=True)

    def run() -> None:
        for _ in range(steps):
            reference(token, past_key_values=cache, use_cache=True)
        cache.crop(-steps)

    return run


def _both(name: str, dtype: torch.dtype, device: str) -> tuple[LlamaForCausalLM, wb.Transformer]:
    from workbench.checkpoint.files import resolve

    model = wb.load_model(name, device=device, dtype=dtype)
    reference = LlamaForCausalLM.from_pretrained(resolve(name), dtype=dtype, attn_implementation="sdpa").eval()
    return reference.to(device), model


def _pair(shape: dict[str, int], dtype: torch.dtype, device: str) -> tuple[LlamaForCausalLM, wb.Transformer]:
    from workbench.checkpoint import load_model

    torch.manual_seed(0)
    reference = LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="sdpa")).to(dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        model = load_model(Path(folder), device=device)
    return reference.to(device), model


def _row(work: str, timing: Timing, name: str, reference: str) -> None:
    middle, low, high = timing.ratio(name, reference)
    times = f"{timing.seconds[name] * 1e3:.1f} | {timing.seconds[reference] * 1e3:.1f}"
    print(f"| {work} | {name} | {reference} | {times} | {middle:.3f} ({low:.3f} to {high:.3f}) |", flush=True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
