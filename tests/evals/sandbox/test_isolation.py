"""What a program cannot hold, make or leave behind: kernel memory beyond its limit, files, zombies."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evals import sandbox
from evals.sandbox import Bubblewrap, Limits, engines, run_all, run_program
from workbench.errors import SandboxError

pytestmark = pytest.mark.skipif(
    not isinstance(sandbox.find()[0], Bubblewrap), reason=f"no bubblewrap here: {sandbox.why_unavailable()}"
)
EPERM, ENOTTY, ENOSYS = 1, 25, 38

# Number on x86-64 and aarch64, arguments as Python text, and the error.
CALLS: dict[str, tuple[int | None, int | None, str, int]] = {
    "semget": (64, 190, "0, 32000, 0o600", EPERM),
    "shmget": (29, 194, "0, 4096, 0o600", EPERM),
    "msgget": (68, 186, "0, 0o600", EPERM),
    "mq_open": (240, 180, "b'x', 66, 0o600, 0", EPERM),
    "memfd_create": (319, 279, "b'x', 0", EPERM),
    "memfd_secret": (447, 447, "0", EPERM),
    "inotify_init": (253, None, "", EPERM),
    "inotify_init1": (294, 26, "0", EPERM),
    "fanotify_init": (300, 262, "0, 0", EPERM),
    "setxattr": (188, 5, "b'.', b'user.x', b'1', 1, 0", EPERM),
    "lsetxattr": (189, 6, "b'.', b'user.x', b'1', 1, 0", EPERM),
    "fsetxattr": (190, 7, "0, b'user.x', b'1', 1, 0", EPERM),
    "timer_create": (222, 107, "0, 0, 0", EPERM),
    "io_setup": (206, 0, "64, 0", EPERM),
    "io_uring_setup": (425, 425, "8, 0", EPERM),
    "add_key": (248, 217, "b'user', b'x', b'1', 1, -2", EPERM),
    "keyctl": (250, 219, "0, -3", EPERM),
    "bpf": (321, 280, "0, 0, 0", EPERM),
    "perf_event_open": (298, 241, "0, 0, -1, -1, 0", EPERM),
    "userfaultfd": (323, 282, "0", EPERM),
    "mlockall": (151, 230, "1", EPERM),
    "splice": (275, 76, "0, 0, 1, 0, 1, 0", EPERM),
    "vmsplice": (278, 75, "1, 0, 0, 0", EPERM),
    "sync": (162, 81, "", EPERM),
    "mknodat": (259, 33, "-100, b'pipe', 0o10600, 0", EPERM),
    "socket": (41, 198, "2, 1, 0", EPERM),
    "sendmsg": (46, 211, "1, 0, 0", EPERM),
    "unshare": (272, 97, "0x10000000", EPERM),
    "setns": (308, 268, "0, 0", EPERM),
    "mount": (165, 40, "b'x', b'/scratch', b'tmpfs', 0, 0", EPERM),
    "ptrace": (101, 117, "0, 0, 0, 0", EPERM),
    "process_vm_readv": (310, 270, "1, 0, 0, 0, 0, 0", EPERM),
    "personality": (135, 92, "0", EPERM),
    "pidfd_open": (434, 434, "1, 0", EPERM),
    "open_by_handle_at": (304, 265, "0, 0, 0", EPERM),
    "execveat": (322, 281, "-100, b'/usr/bin/true', 0, 0, 0", EPERM),
    "fork": (57, None, "", EPERM),
    "clone without CLONE_THREAD": (56, 220, "17, 0, 0, 0, 0", EPERM),
    "clone3": (435, 435, "0, 0", ENOSYS),
    "F_SETPIPE_SZ": (72, 25, "1, 1031, 1 << 20", EPERM),
    "TIOCSTI": (16, 29, "0, 0x5412, b'x'", ENOTTY),
    "a call of a later kernel": (470, 470, "", ENOSYS),
    "no call": (9999, 9999, "", ENOSYS),
}


def test_calls_that_hold_memory_or_leave_the_sandbox_are_refused() -> None:
    column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
    calls = {name: (call[column], call[2], call[3]) for name, call in CALLS.items() if call[column] is not None}
    lines = [
        f"ctypes.set_errno(0)\nresult = libc.syscall({number}{', ' * bool(arguments)}{arguments})\n"
        f"if (result, ctypes.get_errno()) != (-1, {error}): wrong.append(({name!r}, result, ctypes.get_errno()))\n"
        for name, (number, arguments, error) in calls.items()
    ]
    program = (
        f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nwrong = []\n{''.join(lines)}assert not wrong, wrong"
    )
    run = run_program(program, limits=Limits(seconds=20.0))
    assert run.passed, run


ORDINARY = """
import asyncio, concurrent.futures, mmap, os, shutil, signal, sqlite3, tempfile, threading, time, uuid
import numpy as np

async def later():
    await asyncio.sleep(0.001)
    return await asyncio.to_thread(lambda: 3)

assert asyncio.run(later()) == 3
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert list(pool.map(abs, [-1, 2])) == [1, 2]
with tempfile.TemporaryDirectory() as folder:
    open(f"{folder}/a", "w").write("x")
    shutil.copy2(f"{folder}/a", f"{folder}/b")
    shutil.copytree(folder, "copy")
    os.symlink("a", f"{folder}/c"); os.rename(f"{folder}/b", f"{folder}/d"); os.chmod(f"{folder}/d", 0o600)
    assert sorted(os.listdir(folder)) == ["a", "c", "d"] and os.listdir("copy")
database = sqlite3.connect("x.db")
database.execute("create table t (a)"); database.execute("insert into t values (1)"); database.commit()
assert database.execute("select a from t").fetchone() == (1,)
rang = []
signal.signal(signal.SIGALRM, lambda *a: rang.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.01)
time.sleep(0.05)
assert rang and uuid.uuid4() and os.cpu_count() and os.urandom(2)
memory = mmap.mmap(-1, 4096); memory[0] = 7; memory.close()
with open("x", "wb") as file:
    file.write(bytes(5)); file.truncate(3); os.fsync(file.fileno())
assert os.path.getsize("x") == 3 and os.stat("x").st_mode
matrix = np.random.default_rng(0).random((60, 60))
assert np.allclose(np.linalg.inv(matrix) @ matrix, np.eye(60))
np.save("m.npy", matrix)
assert (np.load("m.npy") == matrix).all() and np.fft.fft(matrix).shape == (60, 60)
"""


def test_ordinary_programs_need_no_call_that_is_refused() -> None:
    run = run_program(ORDINARY, limits=Limits(seconds=20.0))
    assert run.passed, run


@pytest.mark.parametrize("make", ["open(f'f{i}', 'w').close()", "os.mkdir(f'd{i}')", "os.symlink('x', f's{i}')"])
def test_the_number_of_files_is_bounded(make: str) -> None:
    run = run_program(f"import itertools, os\nfor i in itertools.count(): {make}", limits=Limits(seconds=20.0))
    assert run.verdict == "forbidden" and run.message == "the program made more than 4096 files"
    assert run.seconds < 5
    few = run_program(f"import os, time\nfor i in range(1000): {make}\ntime.sleep(0.5)", limits=Limits(seconds=20.0))
    assert few.passed, few


# Counts zombies while the harness runs and after it, next to children of the caller's own, one of which has ended.
ZOMBIES = """
import os, subprocess, sys
from evals.sandbox import Limits, Program, run_all

def zombies():
    states = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                states[int(entry)] = open(f"/proc/{entry}/stat").read().rpartition(")")[2].split()[0]
            except OSError:
                pass
    return [pid for pid, state in states.items() if state == "Z"]

mine = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
programs = [Program(f"def f(x): return x + {i % 2}", "assert f(1) == 1", "f") for i in range(44)]
programs += [Program("import time\\ntime.sleep(60)"), Program("while True: pass"), Program("import os\\nos._exit(0)"),
             Program("import os\\nos.kill(os.getpid(), 9)"), Program("f("), Program("x = 'a' * 10**10")]
verdicts = {index: run.verdict for index, run in run_all(programs, limits=Limits(seconds=1.5), workers=3)}
expected = ["passed", "failed"] * 22 + ["timeout", "timeout", "failed", "killed", "failed", "memory"]
assert [verdicts[i] for i in range(50)] == expected, verdicts
left = [pid for pid in zombies() if pid != mine.pid]
assert left == [], left
assert mine.wait() == 7, "the status of another child was taken"
print("done", os.getpid())
"""


def run_as_first(script: str, tmp_path: Path, *, first: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process namespace of its own whose process 1 is that script, or its parent."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a process namespace needs the superuser and unshare")
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, str(tmp_path / "script.py")]
    if first == "a parent that waits for no orphan":
        command = [sys.executable, "-c", f"import subprocess, sys; sys.exit(subprocess.run({command!r}).returncode)"]
    root = Path(__file__).parents[3]
    return subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *command],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip


@pytest.mark.parametrize("first", ["the harness", "a parent that waits for no orphan"])
def test_no_zombie_stays_where_process_1_waits_for_no_orphan(first: str, tmp_path: Path) -> None:
    done = run_as_first(ZOMBIES, tmp_path, first=first)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done", "1"] if first == "the harness" else done.stdout.startswith("done")


def test_orphans_are_adopted_only_while_a_sandbox_runs() -> None:
    def adopts() -> int:
        value = ctypes.c_int(-1)
        assert ctypes.CDLL(None).prctl(37, ctypes.byref(value), 0, 0, 0) == 0  # PR_GET_CHILD_SUBREAPER
        return value.value

    before = adopts()
    programs = (sandbox.Program("pass") for _ in range(4))
    runs = run_all(programs, workers=2)
    next(runs)
    runs.close()
    assert adopts() == before


@pytest.mark.parametrize(
    "error", [BlockingIOError(11, "Resource temporarily unavailable"), OSError(24, "Too many open files")]
)
def test_a_lack_of_processes_or_files_is_one_sentence(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(*args: object, **kwargs: object) -> None:
        calls.append(args)
        raise error

    monkeypatch.setattr(engines, "popen", fail)
    with pytest.raises(SandboxError, match=rf"could not be started \({error.strerror}\).*ulimit -u"):
        run_program("pass", engine=Bubblewrap())
    assert len(calls) == 2, "tried again once"


def limited(limits: str) -> subprocess.CompletedProcess[str]:
    script = (
        "from evals.sandbox import run_program, why_unavailable as why\nprint(why() or run_program('pass').verdict)"
    )
    root = Path(__file__).parents[3]
    return subprocess.run(
        ["bash", "-c", f"ulimit {limits}; exec {sys.executable} -c \"$0\"", script],
        capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip


def test_few_open_files_for_the_caller_are_fewer_for_the_program() -> None:
    done = limited("-n 40")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "passed", "")
    done = limited("-n 12")  # too few for two sandboxes
    assert "Traceback" not in done.stdout + done.stderr and "open files" in done.stdout
