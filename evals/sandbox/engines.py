"""Sandbox engines: bubblewrap, else docker; or none, on explicit request.

An engine starts two processes, one for the program and one for its judge (the tests), and connects them; both run
`inside`. Both are killed when the caller leaves, also after an error. Knows nothing of verdicts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import marshal
import math
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from evals.sandbox import packages, seccomp
from evals.sandbox.limits import Limits
from evals.sandbox.processes import SCRATCH, Process, adopting, kill_and_close, popen

START_SECONDS = 60.0
IMAGE = "python:3-slim"
IMAGE_VARIABLE = "WORKBENCH_SANDBOX_IMAGE"
_SCRIPTS = tuple(
    Path(__file__).with_name(f"{name}.py") for name in ("inside", "inside_errors", "inside_source", "inside_values")
)
_PYTHON = ("-s", "-S", "-P", "-B")  # no site packages, no user or script folder on the path, no bytecode written
_NOBODY = "65534"
# A pool of threads for each core would reserve more address space than a program may have.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Job = dict[str, Any]
Pair = tuple["Process", "Process"]


class Engine(Protocol):
    """A way to run programs in a sandbox."""

    @property
    def name(self) -> str: ...

    def missing(self) -> str | None:
        """Why it cannot be used here, as far as can be checked without a trial run; None if it may work."""
        ...

    def start(self, program: Job, judge: Job, limits: Limits) -> contextlib.AbstractContextManager[Pair]:
        """Start and connect the two processes; they are killed at the end."""
        ...


@dataclass(frozen=True)
class Bubblewrap:
    """No network, a read-only system, a scratch folder in memory, no environment, no other processes."""

    name: str = "bubblewrap"

    def missing(self) -> str | None:
        if not sys.platform.startswith("linux"):
            return f"it works on Linux only, this is {sys.platform}"
        if not seccomp.supported():
            return f"there is no system-call filter for {platform.machine()}"
        if shutil.which("bwrap") is None:
            return "bwrap is not installed; install it with: apt-get install bubblewrap"
        return None

    @contextlib.contextmanager
    def start(self, program: Job, judge: Job, limits: Limits) -> Iterator[Pair]:
        found = packages.available()
        imports: Job = {"packages": ["/packages"] if found else [], "modules": packages.in_words()}
        python = [os.path.realpath(sys.executable), *_PYTHON, "/inside.pyc"]
        with adopting(), contextlib.ExitStack() as stack, _channel() as ends:
            pair = []
            for job, end, of in zip((program, judge), ends, (limits, limits.of_judge()), strict=True):
                with contextlib.ExitStack() as files:
                    # Separate descriptors for each process: a shared one would share its read position.
                    bpf = files.enter_context(_file(seccomp.program_filter()))
                    scripts = {path.stem: files.enter_context(_file(_bytecode(path))) for path in _SCRIPTS}
                    info, written = os.pipe()
                    files.callback(os.close, written)
                    command = [*_bwrap(bpf, scripts, of), "--info-fd", str(written), *python]
                    job = job | imports | {"limits": of.rlimits(shared_user=False)}
                    inherited = (bpf, written, *scripts.values())
                    pair.append(stack.enter_context(_local(command, job, end, *inherited, info=info)))
            for end in ends:
                end.close()
            yield pair[0], pair[1]


@dataclass(frozen=True)
class Docker:
    """The same limits with docker, for machines where bubblewrap may not create namespaces.

    A container has three streams, and two of them carry the tests' channel, so a program's stdout goes to its stderr.
    The image (any with Python 3.10 or later) must be present; nothing is pulled. Programs can import the packages that
    the image has: the default image has none.
    """

    image: str = ""
    name: str = "docker"

    def missing(self) -> str | None:
        if shutil.which("docker") is None:
            return "docker is not installed"
        try:
            inspected = subprocess.run(
                ["docker", "image", "inspect", self._image()], capture_output=True, text=True, timeout=START_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"docker does not respond ({type(error).__name__})"
        if inspected.returncode == 0:
            return None
        message = inspected.stderr.strip()[-200:]
        hint = f"; fetch it with: docker pull {self._image()}" if "no such image" in message.lower() else ""
        return f"{message or 'docker gave no reason'}{hint}"

    @contextlib.contextmanager
    def start(self, program: Job, judge: Job, limits: Limits) -> Iterator[Pair]:
        restrictions: Job = {"filter": seccomp.program_filter().hex(), "packages": None}
        restrictions["modules"] = "the standard library and the packages of the docker image"
        own = [{"limits": of.rlimits(shared_user=True)} for of in (limits, limits.of_judge())]
        names = [f"workbench-{uuid.uuid4().hex}" for _ in range(2)]
        started: list[Process] = []
        with _channel() as ends:
            try:
                for name, end in zip(names, ends, strict=True):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(START_SECONDS), 0))
                    command = self.command(name, limits)
                    started.append(popen(command, stdin=end, stdout=end, stderr=subprocess.PIPE))
                # Each reads its job from the other's end of the channel; the judge's job before the program writes.
                with contextlib.suppress(OSError):  # a process that did not start reports the reason on its stderr
                    ends[0].sendall(json.dumps(judge | restrictions | own[1]).encode() + b"\n")
                    ends[1].sendall(json.dumps(program | restrictions | own[0]).encode() + b"\n")
                for end in ends:
                    end.close()
                yield started[0], started[1]
            finally:
                for process in started:
                    kill_and_close(process)
                with contextlib.suppress(subprocess.TimeoutExpired):  # killing the client does not stop a container
                    command = ["docker", "rm", "--force", "--volumes", *names]
                    subprocess.run(command, capture_output=True, timeout=START_SECONDS)

    def command(self, name: str, limits: Limits) -> list[str]:
        """The command that runs one container."""
        memory = f"{limits.memory + limits.file_bytes}b"
        command = ["docker", "run", "--interactive", "--init", "--rm", "--pull", "never", "--name", name]
        command += ["--network", "none", "--read-only", "--cap-drop", "ALL", "--user", f"{_NOBODY}:{_NOBODY}"]
        command += ["--security-opt", "no-new-privileges", "--pids-limit", str(limits.processes + 8)]
        command += ["--memory", memory, "--memory-swap", memory, "--ulimit", "core=0", "--hostname", "sandbox"]
        scratch = f"size={limits.file_bytes},nr_inodes={limits.files + 1}"
        command += ["--tmpfs", f"/scratch:rw,noexec,nosuid,nodev,mode=1777,{scratch}"]
        command += ["--workdir", "/scratch", "--env", "HOME=/scratch"]
        command += [part for name, value in _ENVIRONMENT.items() for part in ("--env", f"{name}={value}")]
        for path in _SCRIPTS:
            command += ["--mount", f"type=bind,src={path},dst=/{path.name},readonly"]
        command += ["--entrypoint", "timeout"]
        # If this process is killed, the container still ends after a timeout.
        longest = str(math.ceil(limits.seconds + START_SECONDS))
        return [*command, self._image(), "-s", "KILL", longest, "python3", *_PYTHON, "/inside.py", "stdio"]

    def _image(self) -> str:
        return self.image or os.environ.get(IMAGE_VARIABLE, IMAGE)


@dataclass(frozen=True)
class Unsafe:
    """No sandbox: the program can read and write the user's files. Only limits, timeout and system-call filter apply.

    Its verdicts are also less reliable: a program may find its judge's process.
    """

    name: str = "none (unsafe)"

    def missing(self) -> str | None:
        return None if os.name == "posix" else f"process limits are not supported on {os.name}"

    @contextlib.contextmanager
    def start(self, program: Job, judge: Job, limits: Limits) -> Iterator[Pair]:
        restrictions: Job = {"modules": packages.in_words()}
        if sys.platform.startswith("linux") and seccomp.supported():
            restrictions["filter"] = seccomp.program_filter().hex()
        command = [os.path.realpath(sys.executable), *_PYTHON, str(_SCRIPTS[0])]
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack, _channel() as ends:
            scratch, restrictions["packages"] = f"{folder}/scratch", [f"{folder}/packages"]
            for name in ("scratch", "packages"):
                os.mkdir(f"{folder}/{name}")
            for path in (path for package in packages.available() for path in package.folders):
                os.symlink(path, f"{folder}/packages/{path.name}")
            environment: Job = {"cwd": scratch, "env": {"PATH": "/usr/bin:/bin", "HOME": scratch} | _ENVIRONMENT}
            pair = []
            for job, end, of in zip((program, judge), ends, (limits, limits.of_judge()), strict=True):
                job = job | restrictions | {"limits": of.rlimits(shared_user=True)}
                pair.append(stack.enter_context(_local(command, job, end, **environment)))
            for end in ends:
                end.close()
            yield pair[0], pair[1]


# --- processes on this machine


@contextlib.contextmanager
def _channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair()
    with first, second:
        yield first, second


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[int]:
    """An unnamed file with these bytes, as a descriptor at its start."""
    with open(os.memfd_create("job"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        yield file.fileno()


@contextlib.contextmanager
def _local(
    command: list[str], job: Job, channel: socket.socket, *files: int, info: int | None = None, **place: Any
) -> Iterator[Process]:
    """A process that reads its job from stdin and has one end of the channel.

    info: a pipe to read what bubblewrap says of its sandbox from; closed at the end.
    """
    with contextlib.ExitStack() as stack:
        if info is not None:
            stack.callback(os.close, info)
        with _file(json.dumps({**job, "channel": channel.fileno()}).encode()) as stdin:
            inherited = (channel.fileno(), *files)
            process = popen(
                command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=inherited, **place
            )
        process.info = info
        stack.callback(kill_and_close, process)
        yield process


@cache
def _bytecode(path: Path) -> bytes:
    """A script compiled once for this interpreter, instead of again in every sandbox."""
    code = compile(path.read_bytes(), f"/{path.stem}.pyc", "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def _bwrap(bpf: int, scripts: Mapping[str, int], limits: Limits) -> list[str]:
    command = ["bwrap", "--unshare-all", "--unshare-user", "--uid", _NOBODY, "--gid", _NOBODY]
    command += ["--die-with-parent", "--cap-drop", "ALL", "--hostname", "sandbox"]
    command += ["--clearenv"]
    environment = {"PATH": "/usr/bin", "HOME": SCRATCH, "LANG": "C.UTF-8"} | _ENVIRONMENT
    command += [part for setting in environment.items() for part in ("--setenv", *setting)]
    command += ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/lib", "/lib64"):
        if os.path.islink(name):
            command += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            command += ["--ro-bind", name, name]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):  # libraries of a numpy from the distribution
        command += ["--ro-bind-try", name, name]
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        command += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    for name, script in scripts.items():
        command += ["--ro-bind-data", str(script), f"/{name}.pyc"]
    for folder in (folder for package in packages.available() for folder in package.folders):
        command += ["--ro-bind", str(folder), f"/packages/{folder.name}"]
    command += ["--size", str(limits.file_bytes), "--tmpfs", SCRATCH, "--chdir", SCRATCH]
    return [*command, "--remount-ro", "/", "--seccomp", str(bpf)]
