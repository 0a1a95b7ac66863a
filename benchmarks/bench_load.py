"""Loading a checkpoint against transformers: python -m benchmarks.bench_load

Random weights in Hugging Face's layout, about 200 million parameters, in the page cache. transformers maps the file and
reads nothing; we look at every value once, for a weight that is not finite. So the second pair of rows adds the first
forward pass of one token, in which both have read every weight. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from benchmarks.timing import Timing, interleaved, machine
from workbench.checkpoint import convert, load_model

SHAPE = {
    "hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 4,
    "intermediate_size": 2816, "vocab_size": 8192, "max_position_embeddings": 4096,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    logging.disable_progress_bar()
    print(f"Shape: {SHAPE}, stored in bfloat16\n\nMachine: {machine()}\n")
    print("| work | model, ms | transformers, ms | model / transformers (median, quartiles) |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        hf, meta = Path(folder, "hf"), Path(folder, "meta")
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SHAPE)).to(torch.bfloat16).save_pretrained(hf)
        convert(hf, meta, layout="meta")
        for dtype in (torch.bfloat16, torch.float32):
            name = str(dtype).removeprefix("torch.")
            for work, path in (("Hugging Face layout", hf), ("Meta layout, against Hugging Face's", meta)):
                _row(f"load {work}, to {name}", _load(path, hf, dtype, rounds, forward=False))
            _row(f"load Hugging Face layout to {name}, first token", _load(hf, hf, dtype, rounds, forward=True))


def _load(path: Path, hf: Path, dtype: torch.dtype, rounds: int, *, forward: bool) -> Timing:
    token = torch.tensor([[1]])

    @torch.no_grad()
    def ours() -> None:
        model = load_model(path, device="cpu", dtype=dtype)
        if forward:
            model(token)

    @torch.no_grad()
    def theirs() -> None:
        model = LlamaForCausalLM.from_pretrained(hf, dtype=dtype)
        if forward:
            model(token)

    return interleaved({"model": ours, "transformers": theirs}, rounds=rounds)


def _row(work: str, timing: Timing) -> None:
    middle, low, high = timing.ratio("model", "transformers")
    ours, theirs = (timing.seconds[name] * 1e3 for name in ("model", "transformers"))
    print(f"| {work} | {ours:.0f} | {theirs:.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) |", flush=True)


if __name__ == "__main__":
    main()
