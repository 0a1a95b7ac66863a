"""Sandbox for generated code: `host` documents the guarantees, `inside` is the script that runs in the sandbox."""

from evals.sandbox.engines import Bubblewrap, Docker, Engine, Unsafe
from evals.sandbox.host import Program, cores, find, require, run_all, run_program, run_tests, why_unavailable
from evals.sandbox.limits import Limits
from evals.sandbox.watch import ProgramRun, Verdict

__all__ = [
    "Bubblewrap",
    "Docker",
    "Engine",
    "Limits",
    "Program",
    "ProgramRun",
    "Unsafe",
    "Verdict",
    "cores",
    "find",
    "require",
    "run_all",
    "run_program",
    "run_tests",
    "why_unavailable",
]
