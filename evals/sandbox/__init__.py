"""Generated code runs here and nowhere else: `host` makes the promise, `inside` is what the sandbox holds."""

from evals.sandbox.host import ProgramRun, Verdict, require, run_program, run_tests, why_unavailable

__all__ = ["ProgramRun", "Verdict", "require", "run_program", "run_tests", "why_unavailable"]
