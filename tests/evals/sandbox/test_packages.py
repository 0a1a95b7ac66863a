"""What programs and tests can import, and what a missing package means for a verdict."""

from pathlib import Path

import numpy as np
import pytest

from evals import sandbox
from evals.sandbox import Limits, Program, Unsafe, packages, run_all, run_program, run_tests

pytestmark = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)


@pytest.mark.parametrize("engine", [None, Unsafe()], ids=["sandbox", "unsafe"])
def test_numpy_is_there_for_programs_and_tests(engine: Unsafe | None) -> None:
    code = "import numpy as np\ndef mean(xs):\n    return np.mean(np.asarray(xs))\n"
    tests = "import numpy as np\nassert np.allclose(mean([1, 2, 6]), 3) and mean([1, 2]) == 1.5\n"
    tests += "assert np.__version__ == '{}'"
    assert run_tests(code, tests.format(np.__version__), entry_point="mean", engine=engine).passed
    assert not run_tests(code, tests.format("0"), entry_point="mean", engine=engine).passed
    for name in ("pandas", "scipy", "torch", "lm_eval", "evals", "pip"):
        run = run_tests(f"import {name}\n{code}", "mean([1])", entry_point="mean", engine=engine)
        assert run.verdict == "failed"
        assert run.message.endswith(f"'{name}' (programs can import the standard library and numpy {np.__version__})")


def test_numpy_in_a_whole_program_as_evalplus_has_it() -> None:
    helper = "import numpy as np\n\ndef same(a, b):\n    assert a == b or np.allclose(a, b)\n\n"
    check = "def check(f):\n    same(f(2), 4)\n    assert np.allclose(f(3), 9)\n\ncheck(square)\n"
    for code, passed in (("def square(x): return x * x\n", True), ("def square(x): return x + 2\n", False)):
        assert run_program(code + helper + check).passed == passed


def test_packages_cannot_be_written_to() -> None:
    run = run_program("import numpy\nopen(numpy.__file__, 'a')")
    assert run.verdict == "forbidden", run


VALUES = """
import datetime, fractions, decimal
import numpy as np
for value in (fractions.Fraction(1, 3), decimal.Decimal("0.10"), decimal.Decimal("NaN"), datetime.date(2024, 2, 29),
              datetime.datetime(2024, 2, 29, 1, 2, 3, 4), datetime.time(1, 2), datetime.timedelta(-1, 2, 3),
              np.int64(-3), np.float32(0.5), np.bool_(True), np.arange(6).reshape(2, 3), np.zeros((0, 2)),
              np.array(["a", "bc"]), np.array([1 + 2j]), np.array(7)):
    back = echo(value)
    assert repr(back) == repr(value if not (isinstance(value, np.ndarray) and value.ndim == 0) else value[()]), value
    assert echo([value])[0].__class__ is back.__class__
row = np.arange(3)
double(row)
assert row.tolist() == [0, 2, 4]
"""


def test_numbers_and_dates_of_the_standard_library_and_numpy_cross_over() -> None:
    code = "def echo(x): return x\ndef double(x): x *= 2\n"
    assert run_tests(code, VALUES, entry_point="echo").passed, run_tests(code, VALUES, entry_point="echo")
    code = "from fractions import Fraction\ndef half(x): return Fraction(x, 2)"
    for right, verdict in ((3, "passed"), (4, "failed")):
        tests = f"from fractions import Fraction\nassert half({right}) == Fraction(3, 2)"
        assert run_tests(code, tests, entry_point="half").verdict == verdict


def test_a_value_that_cannot_cross_over_is_named() -> None:
    code = "class Pair: pass\ndef make(): return Pair()"
    for tests in ("assert make() == 3", "assert make().a == 3", "assert list(make())"):
        run = run_tests(code, tests, entry_point="make")
        assert run.verdict == "failed"
        assert run.message.endswith("the program returned <Pair object, not visible to the tests>")


MISSING = {
    "import": "import pandas\nassert f(1) == 1",
    "from": "from pandas.testing import assert_frame_equal\nassert f(1) == 1",
    "inside the check": "def check(g):\n    assert g(1) == 1\n    import pandas\ncheck(f)",
    "by name": "import importlib\nassert f(1) == 1\nimportlib.import_module('pandas')",
    "a name that is not there": "from math import no_such_name\nassert f(1) == 1",
}


@pytest.mark.parametrize("name", MISSING)
def test_what_the_tests_cannot_import_is_no_verdict(name: str) -> None:
    run = run_tests("def f(x): return x", MISSING[name], entry_point="f")
    assert (run.verdict, run.passed) == ("not judged", False), run
    assert "ImportError" in run.message or "No module named 'pandas'" in run.message
    if name in ("import", "from"):  # known before anything of the program is
        for wrong in ("def f(x): return 2", "f(", "raise ValueError", "# to do", "import sys\nsys.exit(0)"):
            assert run_tests(wrong, MISSING[name], entry_point="f").verdict == "not judged"


def test_no_program_can_have_itself_not_judged() -> None:
    """An error of the program is its own, also when it is an import's or looks like one."""
    tests = "import math\ndef check(f):\n    assert math.isclose(f(1), 2)\ncheck(f)"
    wrong = (
        "import pandas\ndef f(x): return 2",
        "def f(x):\n    import pandas",
        "def f(x): raise ImportError('No module named numpy')",
        "class E(ImportError): pass\ndef f(x): raise E()",
        "import sys\nsys.modules['math'] = None\ndef f(x): return 3",
        "import sys, types\nsys.modules['tkinter'] = types.ModuleType('tkinter')\nimport tkinter\ndef f(x): return 3",
        "def f(x): return [[0] * 10**6] * 10",
    )
    programs = [Program(code, tests, "f", share_imports=shared) for code in wrong for shared in (False, True)]
    for index, run in run_all(programs, limits=Limits(seconds=20.0)):
        assert run.verdict in ("failed", "memory"), (programs[index].code, run)


def test_the_programs_with_packages_are_those_that_are_documented(project_root: Path) -> None:
    text = (project_root / "docs" / "footguns.md").read_text(encoding="utf-8")
    assert [package.name for package in packages.available()] == ["numpy"]
    assert "standard library and numpy" in text
