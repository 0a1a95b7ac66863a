"""What holds a program: bubblewrap, else docker; or nothing, for whoever insists.

An engine starts two processes, which hold the program and its judge, and connects them; `inside` is what they run.
Whatever way the caller leaves, both are gone. Knows nothing of verdicts.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import marshal
import math
import os
import platform
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from evals.sandbox import seccomp
from evals.sandbox.limits import Limits

START_SECONDS = 60.0
IMAGE = "python:3-slim"
IMAGE_VARIABLE = "WORKBENCH_SANDBOX_IMAGE"
_INSIDE = Path(__file__).with_name("inside.py")
_PYTHON = ("-s", "-S", "-P", "-B")  # no site packages, no user or script folder on the path, no bytecode written
_NOBODY = "65534"

Job = dict[str, Any]
Pair = tuple["subprocess.Popen[bytes]", "subprocess.Popen[bytes]"]


class Engine(Protocol):
    """A way to hold programs."""

    @property
    def name(self) -> str: ...

    def missing(self) -> str | None:
        """Why it cannot be used here, as far as that can be told without a trial; None if it may be."""
        ...

    def start(self, program: Job, judge: Job, limits: Limits) -> contextlib.AbstractContextManager[Pair]:
        """The two processes, started and connected; killed at the end."""
        ...


@dataclass(frozen=True)
class Bubblewrap:
    """No network, a read-only system, a scratch folder in memory, no environment, no other processes."""

    name: str = "bubblewrap"

    def missing(self) -> str | None:
        if not sys.platform.startswith("linux"):
            return f"it exists on Linux only, this is {sys.platform}"
        if not seccomp.supported():
            return f"the system-call filter is not known for {platform.machine()}"
        if shutil.which("bwrap") is None:
            return "bwrap is not installed; install it with: apt-get install bubblewrap"
        return None

    @contextlib.contextmanager
    def start(self, program: Job, judge: Job, limits: Limits) -> Iterator[Pair]:
        held = {"limits": limits.rlimits(shared_user=False)}
        with contextlib.ExitStack() as stack, _channel() as ends:
            pair = []
            for job, end in zip((program, judge), ends, strict=True):
                # Of their own: two processes that read one file move one position.
                with _file(seccomp.program_filter()) as bpf, _file(_bytecode()) as inside:
                    command = [*_bwrap(bpf, inside, limits), os.path.realpath(sys.executable), *_PYTHON, "/inside.pyc"]
                    pair.append(stack.enter_context(_local(command, job | held, end, bpf, inside)))
            for end in ends:
                end.close()
            yield pair[0], pair[1]


@dataclass(frozen=True)
class Docker:
    """The same limits by a docker engine, for machines where bubblewrap may not make namespaces.

    A container has three streams, and two of them carry the tests' channel: what a program prints is kept with its
    stderr. The image, any with Python 3.10 or later, must be there; nothing is pulled.
    """

    image: str = ""
    name: str = "docker"

    def missing(self) -> str | None:
        if shutil.which("docker") is None:
            return "docker is not installed"
        try:
            asked = subprocess.run(
                ["docker", "image", "inspect", self._image()], capture_output=True, text=True, timeout=START_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"docker does not answer ({type(error).__name__})"
        if asked.returncode == 0:
            return None
        said = asked.stderr.strip()[-200:]
        cure = f"; fetch it with: docker pull {self._image()}" if "no such image" in said.lower() else ""
        return f"{said or 'it gave no reason'}{cure}"

    @contextlib.contextmanager
    def start(self, program: Job, judge: Job, limits: Limits) -> Iterator[Pair]:
        held = {"limits": limits.rlimits(shared_user=True), "filter": seccomp.program_filter().hex()}
        names = [f"workbench-{uuid.uuid4().hex}" for _ in range(2)]
        started: list[subprocess.Popen[bytes]] = []
        with _channel() as ends:
            try:
                for name, end in zip(names, ends, strict=True):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(START_SECONDS), 0))
                    command = self.command(name, limits)
                    started.append(_popen(command, stdin=end, stdout=end, stderr=subprocess.PIPE))
                # Each reads its job first, from the end that is the other's; the judge's before the program can speak.
                with contextlib.suppress(OSError):  # one that did not start says why on its stderr
                    ends[0].sendall(json.dumps(judge | held).encode() + b"\n")
                    ends[1].sendall(json.dumps(program | held).encode() + b"\n")
                for end in ends:
                    end.close()
                yield started[0], started[1]
            finally:
                for process in started:
                    _end(process)
                with contextlib.suppress(subprocess.TimeoutExpired):  # the client's death does not end a container
                    command = ["docker", "rm", "--force", "--volumes", *names]
                    subprocess.run(command, capture_output=True, timeout=START_SECONDS)

    def command(self, name: str, limits: Limits) -> list[str]:
        """The command that runs one container."""
        memory = f"{limits.memory + limits.file_bytes}b"
        command = ["docker", "run", "--interactive", "--init", "--rm", "--pull", "never", "--name", name]
        command += ["--network", "none", "--read-only", "--cap-drop", "ALL", "--user", f"{_NOBODY}:{_NOBODY}"]
        command += ["--security-opt", "no-new-privileges", "--pids-limit", str(limits.processes + 8)]
        command += ["--memory", memory, "--memory-swap", memory, "--ulimit", "core=0", "--hostname", "sandbox"]
        command += ["--tmpfs", f"/scratch:rw,noexec,nosuid,nodev,mode=1777,size={limits.file_bytes}"]
        command += ["--workdir", "/scratch", "--env", "HOME=/scratch", "--env", "PYTHONHASHSEED=0"]
        command += ["--mount", f"type=bind,src={_INSIDE},dst=/inside.py,readonly", "--entrypoint", "timeout"]
        # If this process is killed, the container ends by its own clock.
        longest = str(math.ceil(limits.seconds + START_SECONDS))
        return [*command, self._image(), "-s", "KILL", longest, "python3", *_PYTHON, "/inside.py", "stdio"]

    def _image(self) -> str:
        return self.image or os.environ.get(IMAGE_VARIABLE, IMAGE)


@dataclass(frozen=True)
class Unsafe:
    """No sandbox: the user's own files are open to the program. Limits, clock and system-call filter are all it has.

    Its verdicts can be trusted less, too: a program may find its judge's process.
    """

    name: str = "none (unsafe)"

    def missing(self) -> str | None:
        return None if os.name == "posix" else f"limits on processes are not known on {os.name}"

    @contextlib.contextmanager
    def start(self, program: Job, judge: Job, limits: Limits) -> Iterator[Pair]:
        held: Job = {"limits": limits.rlimits(shared_user=True)}
        if sys.platform.startswith("linux") and seccomp.supported():
            held["filter"] = seccomp.program_filter().hex()
        command = [os.path.realpath(sys.executable), *_PYTHON, str(_INSIDE)]
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack, _channel() as ends:
            place: Job = {"cwd": folder, "env": {"PATH": "/usr/bin:/bin", "HOME": folder, "PYTHONHASHSEED": "0"}}
            pair = [
                stack.enter_context(_local(command, job | held, end, **place))
                for job, end in zip((program, judge), ends, strict=True)
            ]
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
    """A file without a name that holds these bytes, as a descriptor at its beginning."""
    with open(os.memfd_create("job"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        yield file.fileno()


@contextlib.contextmanager
def _local(
    command: list[str], job: Job, channel: socket.socket, *files: int, **place: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads its job from its stdin and has one end of the channel."""
    with _file(json.dumps({**job, "channel": channel.fileno()}).encode()) as stdin:
        inherited = (channel.fileno(), *files)
        process = _popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=inherited, **place
        )
    try:
        yield process
    finally:
        _end(process)


def _popen(command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
    # A session of its own, so that all of it can be killed, and a terminal's interrupt does not reach it.
    return subprocess.Popen(command, start_new_session=True, **streams)


def _end(process: subprocess.Popen[bytes]) -> None:
    kill(process)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until a process has ended, so long at most."""
    try:
        ended = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # another system than Linux, or an old one: Python asks again and again
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return
    try:
        asked = select.poll()
        asked.register(ended, select.POLLIN)
        asked.poll(1000 * seconds)
    finally:
        os.close(ended)


@cache
def _bytecode() -> bytes:
    """`inside` compiled once here, not again in every sandbox; for this same interpreter."""
    code = compile(_INSIDE.read_bytes(), "/inside.pyc", "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def _bwrap(bpf: int, inside: int, limits: Limits) -> list[str]:
    command = ["bwrap", "--unshare-all", "--unshare-user", "--uid", _NOBODY, "--gid", _NOBODY]
    command += ["--die-with-parent", "--cap-drop", "ALL", "--hostname", "sandbox"]
    command += ["--clearenv", "--setenv", "PATH", "/usr/bin", "--setenv", "HOME", "/scratch"]
    command += ["--setenv", "LANG", "C.UTF-8", "--setenv", "PYTHONHASHSEED", "0"]
    command += ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/lib", "/lib64"):
        if os.path.islink(name):
            command += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            command += ["--ro-bind", name, name]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        command += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    command += ["--ro-bind-data", str(inside), "/inside.pyc"]
    command += ["--size", str(limits.file_bytes), "--tmpfs", "/scratch", "--chdir", "/scratch"]
    return [*command, "--remount-ro", "/", "--seccomp", str(bpf)]
