"""Statistics of every attention head, time and peak memory by length: python -m benchmarks.bench_stats

Random weights in the demo model's shape. Memory: each way at each length in a process of its own, the peak of its
resident set over what it held after a run of 64 tokens. Time: ways in turn in one process up to 2,048 tokens, and the
one run of the memory process beyond. "dense" keeps every pattern, as one that draws or averages them would. Prints
Markdown tables.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import workbench as wb
from benchmarks.timing import interleaved, machine

DEMO = wb.ModelConfig(
    dim=192, n_layers=6, n_heads=6, n_kv_heads=2, ffn_dim=512, vocab_size=1280, norm_eps=1e-5, rope_theta=10_000.0,
    max_seq_len=32_768,
)  # fmt: skip
LENGTHS = tuple(512 << i for i in range(7))  # to 32,768
DENSE_LIMIT = 8 << 30  # bytes of patterns beyond which the dense way is not run
WAYS = ("plain", "statistics", "map and key mass", "dense")
STATS = "attn.hook_stats"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "LENGTH"), help="one run in this process (used by itself)")
    options = parser.parse_args()
    if options.one:
        print(*_one(options.one[0], int(options.one[1])))
        return
    print(f"Machine: {machine()}\n\n| tokens | dtype | A | B | A, ms | B, ms | A / B (median, quartiles) |")
    print("|---|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.bfloat16):
        model = _model(dtype)
        for length in (512, 2048):
            _ratios(model, length, options.rounds)
    print("\n| tokens | " + " | ".join(f"{way}, s | {way}, MiB" for way in WAYS) + " |\n|---" + "|---" * 8 + "|")
    for length in LENGTHS:
        cells = [_cell(way, length) for way in WAYS]
        print(f"| {length:,} | " + " | ".join(cells) + " |", flush=True)


def _ratios(model: wb.Transformer, length: int, rounds: int) -> None:
    runs = {way: _run(model, way, length) for way in WAYS[:3]}
    with torch.no_grad():
        timing = interleaved(runs, rounds=rounds)
    for way in WAYS[1:3]:
        middle, low, high = timing.ratio(way, "plain")
        times = f"{timing.seconds[way] * 1e3:.1f} | {timing.seconds['plain'] * 1e3:.1f}"
        dtype = str(model.dtype).removeprefix("torch.")
        print(
            f"| {length:,} | {dtype} | {way} | plain | {times} | {middle:.2f} ({low:.2f} to {high:.2f}) |", flush=True
        )


def _cell(way: str, length: int) -> str:
    needed = DEMO.n_layers * DEMO.n_heads * length**2 * 4
    if way == "dense" and needed > DENSE_LIMIT:
        return f"not run | needs {needed / 2**20:,.0f}"
    program = [sys.executable, "-m", "benchmarks.bench_stats", "--one", way, str(length)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    seconds, mib = map(float, done.stdout.split())
    return f"{seconds:.2f} | {mib:,.0f}"


def _one(way: str, length: int) -> tuple[float, float]:
    """Seconds, and MiB of the peak over what a short run left."""
    model = _model(torch.float32)
    with torch.no_grad():
        _run(model, way, 64)()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is held now
        before = _resident_kib("VmRSS")
        run = _run(model, way, length)
        begin = time.perf_counter()
        result = run()
        taken = time.perf_counter() - begin
    del result
    return taken, (_resident_kib("VmHWM") - before) / 1024


def _resident_kib(what: str) -> int:
    """KiB of this process's resident set, now (VmRSS) or at its peak (VmHWM); what a parent held does not count."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(what))


def _run(model: wb.Transformer, way: str, length: int) -> Callable[[], object]:
    tokens = torch.randint(0, DEMO.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    if way == "plain":
        return lambda: model(tokens)
    if way == "dense":
        return lambda: model.run_with_capture(
            tokens, "blocks.*.attn.hook_pattern", materialize=True, budget=2 * DENSE_LIMIT
        )
    names = [STATS] if way == "statistics" else ["attn.hook_map", "attn.hook_key_mass"]

    def summaries() -> object:
        _, cap = model.run_with_capture(tokens, [f"blocks.*.{name}" for name in names])
        return [cap.stack(name) for name in names]

    return summaries


def _model(dtype: torch.dtype) -> wb.Transformer:
    torch.manual_seed(0)
    model = wb.Transformer(DEMO)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    return model.to(dtype).eval()


if __name__ == "__main__":
    main()
