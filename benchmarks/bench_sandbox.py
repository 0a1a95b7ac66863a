"""Sandboxed programs, against one plain Python in bubblewrap: python -m benchmarks.bench_sandbox

One at a time, in turn: a right program, a wrong one, and `bwrap ... python -c pass` with and without Python's `site`.
Then many at once, with what they leave behind. Prints a Markdown table and the counts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import psutil

from benchmarks.timing import interleaved, machine
from evals.sandbox import Limits, Program, cores, engines, require, run_all, run_tests

BARE = ("-I", "-S", "-c", "pass")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--programs", type=int, default=2000)
    options = parser.parse_args()
    require()
    runs = {
        "right program and its judge": lambda: _judged(0, "passed"),
        "wrong program and its judge": lambda: _judged(1, "failed"),
        "bwrap, python -I": _plain("-I", "-c", "pass"),
        "bwrap, python -I -S": _plain(*BARE),
    }
    timing = interleaved(runs, rounds=options.rounds)
    print(
        f"Machine: {machine()}; {cores()} cores\n\n| what | ms | / bwrap, python -I (median, quartiles) | / with -S |"
    )
    print("|---|---|---|---|")
    for name in runs:
        ratios = [timing.ratio(name, other) for other in list(runs)[2:]]
        cells = " | ".join(f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in ratios)
        print(f"| {name} | {timing.seconds[name] * 1e3:.1f} | {cells} |")
    with tempfile.TemporaryDirectory() as folder:  # of its own: others write into the machine's
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        before, begin = _held(), time.perf_counter()
        verdicts = [run.verdict for _, run in run_all(_program(i, i % 2) for i in range(options.programs))]
        taken, after = time.perf_counter() - begin, _held()
    print(f"\n{len(verdicts):,} programs at once: {len(verdicts) / taken:.1f}/s; passed {verdicts.count('passed'):,}, ")
    print(
        f"failed {verdicts.count('failed'):,}. Left behind: " + ", ".join(f"{k} {after[k] - before[k]}" for k in after)
    )


def _program(number: int, wrong: int) -> Program:
    tests = f"def check(f):\n    assert f({number}) == {number}\ncheck(f)"
    return Program(f"def f(x): return x + {wrong}", tests, "f")


def _judged(wrong: int, expected: str) -> None:
    program = _program(1, wrong)
    run = run_tests(program.code, program.tests, entry_point="f")
    assert run.verdict == expected, run


def _plain(*python: str) -> Callable[[], object]:
    def run() -> None:
        with engines._file(b"") as empty, engines._file(engines._bytecode()) as inside:
            command = engines._bwrap(empty, inside, Limits())[:-2]  # without the filter
            subprocess.run([*command, os.path.realpath(sys.executable), *python], pass_fds=(inside,), check=True)

    return run


def _held() -> dict[str, int]:
    """Children, open descriptors, temporary files, and MiB of memory of this process."""
    process = psutil.Process()
    return {
        "processes": len(process.children(recursive=True)),
        "descriptors": process.num_fds(),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
        "MiB": process.memory_info().rss >> 20,
    }


if __name__ == "__main__":
    main()
