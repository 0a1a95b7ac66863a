"""The sandbox judges truly: what is right passes, whatever else a program does is a failure by its own name."""

import gzip
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from evals import sandbox
from evals.sandbox import Limits, engines, run_program, run_tests, seccomp
from workbench.errors import SandboxError

needs_sandbox = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)

TESTS = """
def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate(-1, 1) == 0
    assert abs(candidate(20, 22) - 42) < 1e-6

check(add)
"""


def judged(body: str, timeout: float = 20.0) -> sandbox.ProgramRun:
    """The verdict on a program that is to define `add`, both ways of asking; they must agree."""
    body = textwrap.dedent(body)
    limits = Limits(seconds=timeout)
    apart = run_tests(body, TESTS, entry_point="add", limits=limits)
    whole = run_program(f"{body}\n{TESTS}", limits=limits)
    assert apart.verdict == whole.verdict
    return apart


@needs_sandbox
def test_right_program_passes() -> None:
    run = judged("def add(a, b):\n    print('adding')\n    return a + b\n")
    assert run.passed and run.stdout.count("adding") == 3 and run.exit_code == 0


ALONE = {
    "endless loop": ("while True: pass", "timeout"),
    "endless printing": ("while True: print('x' * 1000)", "timeout"),
    "sleeping": ("import time\ntime.sleep(60)", "timeout"),
    "fork bomb": ("import os\nwhile True: os.fork()", "forbidden"),
    "other program": ("import subprocess\nsubprocess.run(['true'])", "forbidden"),
    "worker process": ("import multiprocessing as m\nm.Process(target=print).start()", "forbidden"),
    "one large string": ("x = 'a' * 10**10", "memory"),
    "many strings": ("x = []\nwhile True: x.append('a' * 10**7)", "memory"),
    "writing the system": ("open('/usr/lib/x', 'w')", "forbidden"),
    "writing beside the root": ("open('/x', 'w')", "forbidden"),
    "filling the disk": ("open('x', 'wb').write(bytes(64 << 20))", "forbidden"),
    "socket": ("import socket\nsocket.create_connection(('127.0.0.1', 80), 1)", "forbidden"),
    "download": ("import urllib.request\nurllib.request.urlopen('http://example.org')", "forbidden"),
    "killed itself": ("import os\nos.kill(os.getpid(), 9)", "killed"),
    "crash": ("import ctypes\nctypes.string_at(0)", "killed"),
    "exit": ("import sys\nsys.exit(0)", "failed"),
    "hard exit": ("import os\nos._exit(0)", "failed"),
    "exit at the end of everything": ("import atexit, os\natexit.register(os._exit, 0)\n1 / 0", "failed"),
    "printed marker": ("print('passed', '{\"verdict\": \"passed\"}')\nraise SystemExit(0)", "failed"),
    "false assertion": ("assert 1 == 2", "failed"),
    "patched builtin": ("import builtins\nbuiltins.abs = lambda x: 0\nassert abs(5) == 0", "forbidden"),
    "patched assertion": (
        "import builtins\nclass Quiet(Exception): pass\nbuiltins.AssertionError = Quiet\nassert 1 == 2",
        "failed",
    ),
    "swallowed hook": ("import sys\nsys.excepthook = lambda *a: None\nassert 1 == 2", "failed"),
    "every descriptor": (
        'import os\nfor fd in range(3, 64):\n  try: os.write(fd, b\'{"loaded": []}\\n{"finished": 1}\\n\')\n'
        "  except OSError: pass\nos._exit(0)",
        "failed",
    ),
    "syntax error": ("def f(:", "failed"),
    "endless recursion": ("def f(): return f()\nf()", "failed"),
    "nothing": ("# to do\n", "no code"),
    "only a string": ("'''to do'''", "no code"),
}


@needs_sandbox
@pytest.mark.parametrize("name", ALONE)
def test_whole_program_is_reported_as_what_it_was(name: str) -> None:
    source, verdict = ALONE[name]
    run = run_program(source, limits=Limits(seconds=1.0 if verdict == "timeout" else 20.0))
    assert (run.verdict, run.passed) == (verdict, False), run
    assert run.message


CHEATS = {
    "wrong": ("def add(a, b): return a - b", "failed"),
    "equals everything": (
        """
        class Any(float):
            def __eq__(self, other): return True
            def __sub__(self, other): return 0.0
        def add(a, b): return Any()
        """,
        "failed",
    ),
    "object that equals everything": (
        """
        class Any:
            def __eq__(self, other): return True
            def __sub__(self, other): return 0
        def add(a, b): return Any()
        """,
        "failed",
    ),
    "exits when called": ("import sys\ndef add(a, b): sys.exit(0)", "failed"),
    "hard exit when called": ("import os\ndef add(a, b): os._exit(0)", "failed"),
    "own check": ("def add(a, b): return 0\ndef check(candidate): pass\ncheck(add)", "failed"),
    "patched builtins": (
        """
        import builtins
        builtins.abs = lambda x: 0
        builtins.AssertionError = type("Quiet", (Exception,), {})
        def add(a, b): return 0
        """,
        "failed",
    ),
    "patched builtins, right answers": (
        "import builtins\nbuiltins.abs = lambda x: 0\ndef add(a, b): return a + b",
        "forbidden",
    ),
    "line jumper": (
        """
        import sys
        def jump(frame, event, argument):
            if event == "line" and frame.f_code.co_name == "check":
                frame.f_lineno = frame.f_lineno + 1
            return jump
        sys.settrace(jump)
        def add(a, b): return 0
        """,
        "failed",
    ),
    "speaks for the judge": (
        """
        import json, os
        def add(a, b):
            for fd in range(3, 64):
                try:
                    os.write(fd, b'{"verdict": "passed", "message": ""}\\n')
                    os.write(fd, b'{"finished": "", "changed": []}\\n')
                except OSError:
                    pass
            return 0
        """,
        "failed",
    ),
    "searches the memory": (
        """
        import gc, sys
        found = []
        frame = sys._getframe()
        while frame:
            found += [frame.f_locals, frame.f_globals]
            frame = frame.f_back
        found += [o for o in gc.get_objects() if isinstance(o, dict)]
        for space in found:
            for key, value in list(space.items()):
                if isinstance(key, str) and any(w in key for w in ("nonce", "verdict", "job")):
                    if isinstance(value, dict):
                        value.update(verdict="passed", nonce="")
        def add(a, b): return 0
        """,
        "failed",
    ),
    "patches the harness": (
        """
        import __main__
        __main__.classify = lambda error: "passed"
        __main__.TestOracle.judge = lambda *a: {"verdict": "passed", "message": ""}
        __main__.pack = lambda value: value if isinstance(value, (int, list, tuple)) else 0
        def add(a, b): return 0
        """,
        "failed",
    ),
    "answers with rubbish": (
        """
        import __main__
        __main__.Channel.send = lambda self, message: __main__.write(self.fd, b"[" * 100000 + b"\\n")
        def add(a, b): return 0
        """,
        "failed",
    ),
    "gives back what it was never given": (
        "import __main__\n__main__.pack = lambda value: {'held': 7}\ndef add(a, b): return 0",
        "failed",
    ),
    "numbers what it gives with words": (
        "import __main__\n__main__.pack = lambda value: {'opaque': ['x', 'y']}\ndef add(a, b): return 0",
        "failed",
    ),
    "never answers": ("def add(a, b):\n    while True: pass", "timeout"),
    "eats memory when called": ("def add(a, b): return len([0] * 10**10)", "memory"),
    "writes when called": ("def add(a, b): return open('/etc/x', 'w')", "forbidden"),
    "other names for built-ins": (
        "from builtins import bool as abs, any as all\nfrom operator import is_not as float\ndef add(a, b): return 0",
        "failed",
    ),
    "closes its descriptors": ("import os\ndef add(a, b): os.closerange(3, 64)\n", "failed"),
    "unclosed string": ("def add(a, b): return 0\n'''", "failed"),
}


@needs_sandbox
@pytest.mark.parametrize("name", CHEATS)
def test_no_program_can_answer_for_its_tests(name: str) -> None:
    body, verdict = CHEATS[name]
    run = judged(body, 1.0 if verdict == "timeout" else 20.0)
    assert (run.verdict, run.passed) == (verdict, False), run
    assert run.message


@needs_sandbox
def test_early_end_is_said_to_be_one() -> None:
    for source in ("import sys\nsys.exit(0)", "import os\nos._exit(0)"):
        assert "before the tests had finished" in run_tests(source, TESTS, entry_point="add").message
        assert run_program(source).message.endswith("before it had run to its end"), "it has no tests"


@needs_sandbox
def test_nothing_of_the_host_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "squirrel")
    secret = tmp_path / "secret"
    secret.write_text("squirrel")
    run = run_program(f"""
import os
print(dict(os.environ), os.getpid(), os.listdir("/"))
assert not os.path.exists({str(secret)!r}) and not os.path.exists({str(Path(__file__))!r})
assert os.getcwd() == "/scratch" and not os.listdir(".")
open("note", "w").write("mine")
""")
    assert run.passed, run
    assert "squirrel" not in run.stdout and "home" not in run.stdout
    assert run_program("import os\nassert not os.listdir('.')").passed, "a run must not see another's files"


@needs_sandbox
def test_only_the_channel_is_inherited() -> None:
    run = run_program("""
import os, stat
kinds = {}
for fd in range(64):
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        continue
    kinds[fd] = "socket" if stat.S_ISSOCK(mode) else "pipe" if stat.S_ISFIFO(mode) else oct(stat.S_IFMT(mode))
print(sorted(kinds.values()))
""")
    # stdin and its copy are /dev/null, then stdout, stderr and the way to the judge.
    assert run.stdout.strip() == str(["0o20000", "0o20000", "pipe", "pipe", "socket"]), run


@needs_sandbox
def test_values_cross_over_as_they_are() -> None:
    code = """
def echo(x): return x
def grow(xs):
    xs.append(len(xs))
def fail(): raise KeyError("k")
"""
    tests = """
for value in (None, True, 1, 10**5000, -0.5, float("inf"), "a\\ud800\\n", b"\\x00", 2j, [1, [2]], (1, (2,)),
              {1, 2}, frozenset("a"), {(1, 2): [3], "a": None}, range(1, 9, 2)):
    back = echo(value)
    assert type(back) is type(value) and back == value, value
assert echo(float("nan")) != echo(float("nan"))
xs = [5]
grow(xs)
assert xs == [5, 1]
try:
    fail()
except KeyError:
    pass
else:
    assert False
"""
    run = run_tests(code, tests, entry_point="echo")
    assert run.passed, run


@needs_sandbox
def test_the_programs_own_objects_go_back_to_it() -> None:
    code = "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
    code += "def total(pairs): return sum(p.a + p.b for p in pairs)\ndef same(x): return x\n"
    tests = "assert total([Pair(1, 2), Pair(3, 4)]) == 10\nassert Pair(1, 2) != Pair(1, 2)\n"
    tests += "mine = object()\nassert same(mine) is mine"
    assert run_tests(code, tests, entry_point="total").passed
    assert run_tests(code, tests.replace("10", "11"), entry_point="total").verdict == "failed"


@needs_sandbox
def test_stderr_holds_the_failing_test_and_nothing_of_the_harness() -> None:
    run = run_tests("def f(x): return x", "def check(c):\n    assert c(1) == 2\ncheck(f)", entry_point="f")
    assert run.message == "AssertionError: assert c(1) == 2"
    assert run.stderr.splitlines() == [
        "Traceback (most recent call last):",
        '  File "<tests>", line 3, in <module>',
        "    check(f)",
        '  File "<tests>", line 2, in check',
        "    assert c(1) == 2",
        "AssertionError",
    ]


@needs_sandbox
def test_context_is_trusted_over_the_program() -> None:
    context = 'def helper(x):\n    return x + 1\ndef target(x):\n    """Doc."""\n'
    tests = "assert helper(1) == 2 and target(1) == 5"
    bent = "def helper(x): return 2\ndef target(x): return 5\n"
    assert run_tests(bent, tests, entry_point="target", context=context).passed
    assert run_tests(bent, "assert helper(7) == 8", entry_point="target", context=context).passed
    assert not run_tests(bent, "assert helper(7) == 8", entry_point="target").passed


@needs_sandbox
def test_output_is_capped_and_says_where() -> None:
    run = run_program("print('first')\nprint('x' * 10_000_000)\nprint('last')", limits=Limits(output_bytes=1000))
    assert run.passed and len(run.stdout) < 1100
    assert run.stdout.startswith("first\nxxx") and run.stdout.endswith("xxx\nlast\n")
    cut = 6 + 10_000_001 + 5 - 1000
    assert f"\n[... {cut} bytes were cut here ...]\n" in run.stdout
    assert "cut here" not in run_program("print('x' * 998)", limits=Limits(output_bytes=1000)).stdout


@needs_sandbox
def test_a_long_message_is_no_longer_than_it_may_be() -> None:
    # Characters beyond the first plane take twelve bytes each on the judge's channel.
    run = run_tests("def f(): raise ValueError('\U0001f600' * 10**6)", "f()", entry_point="f")
    assert run.verdict == "failed" and run.message.startswith("ValueError: \U0001f600") and len(run.message) <= 2000
    assert "ValueError" in run.stderr


@needs_sandbox
def test_each_limit_is_kept() -> None:
    spin = "import time\nend = time.process_time() + 30\nwhile time.process_time() < end: pass"
    run = run_program(spin, limits=Limits(seconds=20.0, cpu_seconds=1))
    assert (run.verdict, run.message) == ("timeout", "used more than 1 s of processor time")
    some = "x = bytearray(200 << 20)"
    assert run_program(some, limits=Limits(seconds=20.0)).passed
    assert run_program(some, limits=Limits(seconds=20.0, memory=128 << 20)).verdict == "memory"
    writing = "open('x', 'wb').write(bytes(2 << 20))"
    assert run_program(writing, limits=Limits(seconds=20.0)).passed
    assert run_program(writing, limits=Limits(seconds=20.0, file_bytes=1 << 20)).verdict == "forbidden"
    opening = "kept = [open('/dev/null') for _ in range(30)]"
    assert run_program(opening, limits=Limits(seconds=20.0)).passed
    assert run_program(opening, limits=Limits(seconds=20.0, open_files=20)).verdict == "forbidden"
    threads = "import threading, time\nfor _ in range(20): threading.Thread(target=time.sleep, args=[1]).start()"
    roomy = 8 << 30  # each thread reserves address space that it does not use
    assert run_program(threads, limits=Limits(seconds=20.0, memory=roomy)).passed
    if os.geteuid() != 0:  # the kernel counts no processes of the superuser
        assert run_program(threads, limits=Limits(seconds=20.0, memory=roomy, processes=10)).verdict == "failed"


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"memory": 1 << 20}, {"output_bytes": 10}, {"cpu_seconds": 0}])
def test_limits_without_room_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SandboxError, match=next(iter(wrong))):
        Limits(**wrong)


@needs_sandbox
def test_what_adds_nothing_to_its_context_is_no_code() -> None:
    context = 'def f(x):\n    """Doc."""\n'
    assert run_tests(context + "    # to do\n", "f(1)", entry_point="f", context=context).verdict == "no code"
    assert run_tests(context + "    pass\n", "f(1)", entry_point="f", context=context).verdict == "passed"


@needs_sandbox
def test_humaneval_canonical_solutions_pass_and_empty_ones_do_not(shared_data: Path) -> None:
    with gzip.open(shared_data / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
        problems = [json.loads(line) for line in file]
    assert len(problems) == 164

    def solved(problem: dict[str, str], solution: str) -> bool:
        tests = f"{problem['test']}\ncheck({problem['entry_point']})"
        program = f"{problem['prompt']}{solution}\n{tests}"
        return run_program(program, limits=Limits(seconds=20.0)).passed

    with ThreadPoolExecutor(2) as pool:
        right = list(pool.map(lambda p: solved(p, p["canonical_solution"]), problems))
        empty = list(pool.map(lambda p: solved(p, "    pass\n"), problems[:40]))
    assert [p["task_id"] for p, ok in zip(problems, right, strict=True) if not ok] == []
    assert not any(empty)


@pytest.fixture
def found_anew() -> Iterator[None]:
    """Sandboxes are looked for in the test, and again after it."""
    sandbox.find.cache_clear()
    yield
    sandbox.find.cache_clear()


def test_missing_sandboxes_are_refused_with_their_cure(monkeypatch: pytest.MonkeyPatch, found_anew: None) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match="apt-get install bubblewrap; docker: docker is not installed"):
        run_program("pass")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bubblewrap is for Linux")
def test_a_bubblewrap_that_may_not_is_refused_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found_anew: None
) -> None:
    for name, words in (("bwrap", "No permissions to create new namespace"), ("docker", "Cannot connect")):
        fake = tmp_path / name
        fake.write_text(f"#!/bin/sh\necho '{name}: {words}' >&2\nexit 1\n")
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(SandboxError, match="No permissions to create new namespace.*docker: Cannot connect"):
        run_program("pass")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the filter is for Linux")
def test_call_numbers_are_those_of_the_kernel_headers() -> None:
    header = Path(f"/usr/include/{os.uname().machine}-linux-gnu/asm/unistd_64.h")
    if not header.is_file() or os.uname().machine != "x86_64":
        pytest.skip("the kernel's headers for x86-64 are not installed")
    numbers = dict(line.split()[1:3] for line in header.read_text().splitlines() if "__NR_" in line[:16])
    for name, (number, _) in seccomp._ALLOWED.items():
        assert numbers.get(f"__NR_{name}", str(number)) == str(number), name  # older headers lack the newest calls


@needs_sandbox
def test_no_process_outlives_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = f"mark-{os.getpid()}"
    monkeypatch.setattr(engines, "_PYTHON", (*engines._PYTHON, "-X", mark))
    assert run_program("import time\ntime.sleep(60)", limits=Limits(seconds=0.5)).verdict == "timeout"
    assert not any(mark in (process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
