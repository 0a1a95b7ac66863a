"""Interleaved timing: A and B in turn in one process, so that a noisy machine slows both."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from workbench.provenance import commit, versions


@dataclass(frozen=True)
class Timing:
    """Medians in seconds and the ratio of medians, with the middle half of the per-round ratios."""

    seconds: dict[str, float]
    rounds: dict[str, list[float]]

    def ratio(self, numerator: str, denominator: str) -> tuple[float, float, float]:
        """Median of numerator / denominator over the rounds, and its quartiles."""
        ratios = sorted(a / b for a, b in zip(self.rounds[numerator], self.rounds[denominator], strict=True))
        low, middle, high = statistics.quantiles(ratios, n=4)
        return middle, low, high


def interleaved(runs: dict[str, Callable[[], object]], *, rounds: int, device: str = "cpu", warm_up: int = 2) -> Timing:
    """Time each run once a round, the order reversed every other round; `warm_up` rounds before do not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + warm_up):
        for name in list(runs) if i % 2 else list(reversed(runs)):
            _wait(device)
            begin = time.perf_counter()
            runs[name]()
            _wait(device)
            if i >= warm_up:
                times[name].append(time.perf_counter() - begin)
    return Timing({name: statistics.median(taken) for name, taken in times.items()}, times)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def machine(device: str = "cpu") -> str:
    """One line: processor or GPU, threads, versions, commit."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    packages = ", ".join(f"{package} {version}" for package, version in versions("transformers").items())
    return f"{name}, {torch.get_num_threads()} threads, {packages}, commit {(commit() or 'unknown')[:12]}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
