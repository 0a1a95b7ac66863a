"""Run generated code in a sandbox, and say of each program what became of it.

The sandbox is bubblewrap, else docker (see `engines`): no network, no view of the file system but a read-only system
and Python, a small scratch folder that vanishes, no environment, no new processes (see `seccomp`), limits on processor
time, memory, file size and open files, a wall-clock limit, and a cap on what is kept of the output.

`passed` is never the program's own word. Program and tests are in two processes in two sandboxes: the
program answers calls with plain values, and the judge, to which the program has no access, sees whether the
tests ran to their end. Exit codes, printed markers, patched builtins, objects that equal everything,
`sys.exit`, `os._exit`, tampering with the harness's frames, files or descriptors: none of them reaches the
judge.

What remains, stated honestly. `run_program` is given one source: where it ends as HumanEval's programs do
(`def check(...)` and a call of it) these tests are moved to the judge; any other program can only be asked
whether it ran to its end, and one written against this very file could answer too early. A helper function
of the program's that the tests call is only as honest as the program, unless it is in `context`. A function
passed as an argument by the tests, or a value that is no plain data, does not cross over. The kernel is
trusted.
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
from evals.sandbox.limits import Limits
from evals.sandbox.source import adds_code, compilable, split_tests
from evals.sandbox.watch import ProgramRun, watch
from workbench.errors import SandboxError

_DEFAULT = Limits()
_PAUSE = 0.5  # seconds


@dataclass(frozen=True)
class Program:
    """A program and the tests that it is to pass.

    `tests` call the program's functions by name, `entry_point` among them. `context` is trusted code (the part of the
    program that was given to the model) and is run beside the tests: what it defines, other than the entry point, the
    tests take from there.
    """

    code: str
    tests: str = ""
    entry_point: str | None = None
    context: str = ""
    name: str = "program"


def run_program(source: str, *, limits: Limits = _DEFAULT, engine: Engine | None = None) -> ProgramRun:
    """Run one whole program; it passes if it ran to its end without an error.

    A source that ends with `def check(...)` and `check(name)` is judged as `run_tests` does.

    Raises: SandboxError if there is no sandbox here.
    """
    split = split_tests(source)
    if split is not None:
        code, tests, entry_point, context = split
        return run_tests(code, tests, entry_point=entry_point, context=context, limits=limits, engine=engine)
    return _run(Program(source, name="__main__"), limits, engine)


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
    Raises: SandboxError if there is no sandbox here.
    """
    return _run(Program(code, tests, entry_point, context), limits, engine)


def run_all(
    programs: Iterable[Program],
    *,
    limits: Limits = _DEFAULT,
    engine: Engine | None = None,
    workers: int | None = None,
) -> Iterator[tuple[int, ProgramRun]]:
    """Run many programs, several at a time; each one's place and what became of it, as they come to an end.

    The programs are taken as they are needed, and few are held at once, so there may be any number. A caller that
    stops early stops those that run.
    workers: how many at a time, by default three for every two cores that this process may use, since part of a
    program's time goes by while the kernel makes its sandboxes.
    Raises: SandboxError if there is no sandbox here.
    """
    engine = engine or require()
    workers = -(-3 * cores() // 2) if workers is None else workers
    awake, cancel = os.pipe()
    waiting: dict[Future[ProgramRun], int] = {}
    with ThreadPoolExecutor(workers) as pool:
        try:
            for place, program in enumerate(programs):
                waiting[pool.submit(_run, program, limits, engine, awake)] = place
                if len(waiting) >= 2 * workers:
                    for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                        yield waiting.pop(done), done.result()
            while waiting:
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(done), done.result()
        finally:
            os.close(cancel)  # whoever still watches a program sees the end of this pipe
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
        raise SandboxError(f"Generated code is not run without a sandbox, and there is none here: {reason}")
    return engine


def why_unavailable() -> str | None:
    """None if a sandbox works here, else the reason."""
    return find()[1]


@cache
def find() -> tuple[Engine | None, str | None]:
    """The first engine that works, or why none does. Found by running a program in it, once per process."""
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
    context = compilable(program.context)
    if not adds_code(program.code, context):
        return ProgramRun("no code", "there is no statement in it", "", "", 0.0, None)
    held: Job = {"role": "program", "source": program.code, "name": program.name}
    judge: Job = {"role": "judge", "tests": program.tests, "context": context, "entry_point": program.entry_point}
    judge["nonce"] = secrets.token_hex(16)
    try:
        return _once(held, judge, limits, engine, cancel)
    except (SandboxError, OSError):
        # A machine that is short of processes for a moment must not end a run of thousands.
        time.sleep(_PAUSE)
        return _once(held, judge, limits, engine, cancel)


def _once(held: Job, judge: Job, limits: Limits, engine: Engine, cancel: int | None) -> ProgramRun:
    with engine.start(held, judge, limits) as processes:
        return watch(*processes, limits, cancel=cancel)
