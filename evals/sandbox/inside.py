"""The script that runs inside the sandbox: one process has the program, another (the judge) has the tests.

`engines` starts it as a script, once in each role, with its job as JSON on standard input and one end of a socket pair.
If only three streams can be passed in, the argument is "stdio": the channel is then standard input and output, and the
job is the first line. The two processes are in separate sandboxes and exchange lines of JSON with plain values only,
so the program cannot see the tests, and cannot pass them an object with its own `==`. Standard library only.
"""

from __future__ import annotations

import builtins
import errno
import os
import resource
import sys
import types
from os import _exit, read, write

# json, contextlib, typing and traceback are not imported: that halves the start time.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_LONGEST_LINE = 8 << 20
_LONGEST_MESSAGE = 2000
_REFUSALS = {errno.EPERM, errno.EACCES, errno.EROFS, errno.EFBIG, errno.ENOSPC, errno.EMFILE}


SOURCES: dict[str, str] = {}
SHARED_OBJECTS: list[Any] = []  # the objects that the other process has an `Opaque` of


def codec() -> tuple[Callable[[Any], str], Callable[[str], Any]]:
    """`json.dumps` and `json.loads` from their C functions, without importing json's regular expressions."""
    numbers = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": -float("inf")}
    settings = {"strict": True, "object_hook": None, "object_pairs_hook": None, "parse_float": float, "parse_int": int}
    try:
        from _json import encode_basestring_ascii, make_encoder, make_scanner

        context: Any = types.SimpleNamespace(**settings, parse_constant=numbers.__getitem__)
        scan = make_scanner(context)
        chunks = make_encoder(None, no_data, encode_basestring_ascii, None, ": ", ", ", False, False, True)
    except (ImportError, TypeError, AttributeError):  # an interpreter without these functions, or with other ones
        import json

        return json.dumps, json.loads

    def encode(value: Any) -> str:
        return "".join(chunks(value, 0))

    def decode(text: str) -> Any:
        try:
            value, end = scan(text, 0)
        except (StopIteration, SystemError) as error:  # SystemError where it would raise json's own error
            raise ValueError("not JSON") from error
        if text[end:].strip():
            raise ValueError("more than JSON")
        return value

    return encode, decode


def no_data(value: Any) -> None:
    raise TypeError(f"{type(value).__name__} is not plain data")


encode, decode = codec()


class Ended(BaseException):
    """The program's process ended, or stopped following the protocol."""


class ProgramError(Exception):
    """An exception of a type that the program defines; only its name and message are transferred."""


class Opaque:
    """A placeholder for a value of the other process that is not plain data; equal only to itself.

    Passed back to that process, it becomes the value again.
    """

    def __init__(self, text: str, number: int) -> None:
        self.text, self.number = text, number

    def __repr__(self) -> str:
        return self.text


class Channel:
    """Lines of JSON over a socket, with a limit on their length."""

    def __init__(self, fd: int, out: int | None = None) -> None:
        self.fd = fd
        self.out = fd if out is None else out
        self.buffer = b""

    def send(self, message: dict[str, Any]) -> None:
        data = encode(message).encode() + b"\n"
        while data:
            data = data[write(self.out, data) :]

    def receive(self) -> dict[str, Any]:
        while b"\n" not in self.buffer:
            block = read(self.fd, 1 << 16)
            if not block:
                raise Ended("ended")
            self.buffer += block
            if len(self.buffer) > _LONGEST_LINE:
                raise Ended(f"an answer longer than {_LONGEST_LINE >> 20} MiB")
        line, _, self.buffer = self.buffer.partition(b"\n")
        try:
            message = decode(line.decode())
        except (ValueError, RecursionError) as error:
            raise Ended("something that is no answer on the tests' channel") from error
        if not isinstance(message, dict):
            raise Ended("something that is no answer on the tests' channel")
        return message


def pack(value: Any) -> Any:
    """Plain data as JSON that preserves Python's types; anything else as a description."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [pack(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, Opaque):
        return {"held": value.number}
    SHARED_OBJECTS.append(value)
    return {"opaque": [f"<{type(value).__name__} object, not visible to the tests>", len(SHARED_OBJECTS) - 1]}


def unpack(data: Any) -> Any:
    """The value that `pack` described, built from exact built-in types only."""
    if not isinstance(data, dict):
        return data
    ((kind, body),) = data.items()
    if kind == "dict":
        return {unpack(key): unpack(item) for key, item in body}
    if kind in ("list", "tuple", "set", "frozenset"):
        return getattr(builtins, kind)(unpack(item) for item in body)
    if kind == "bytes":
        return bytes.fromhex(body)
    if kind == "complex":
        return complex(*body)
    if kind == "range":
        return range(*body)
    if kind == "held":
        return SHARED_OBJECTS[body]
    return Opaque(str(body[0]), int(body[1]))


def describe(error: BaseException) -> dict[str, Any]:
    """Name, message and error number of an exception, as data."""
    code = error.errno if isinstance(error, OSError) and isinstance(error.errno, int) else None
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    name, message = type(error).__name__, str(error)[:_LONGEST_MESSAGE]
    return {"raised": name, "kinds": kinds, "message": message, "errno": code, "refused": refused(error)}


def refused(error: BaseException) -> bool:
    """Whether an exception, or one in its cause chain, reports that the sandbox refused something."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return False
        # A resolver that cannot open a socket says "temporary failure in name resolution".
        if type(seen).__name__ == "gaierror" or (isinstance(seen, OSError) and seen.errno in _REFUSALS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def classify(error: dict[str, Any]) -> str:
    """The verdict for an uncaught exception."""
    if "MemoryError" in error["kinds"]:
        return "memory"
    return "forbidden" if error["refused"] else "failed"


def one_line(error: dict[str, Any], *, default: str = "") -> str:
    """An exception in one line."""
    detail = error["message"] or default
    return f"{error['raised']}: {detail}" if detail else str(error["raised"])


def rebuild(error: dict[str, Any]) -> BaseException:
    """The program's exception for the tests to catch, as the nearest built-in type."""
    if error["errno"] is not None:
        return OSError(error["errno"], error["message"])
    for name in error["kinds"]:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            try:
                return kind(error["message"])
            except TypeError:  # such as UnicodeDecodeError, which needs five arguments
                continue
    return ProgramError(f"{error['raised']}: {error['message']}")


def compile_as(source: str, filename: str) -> types.CodeType:
    SOURCES[filename] = source
    return compile(source, filename, "exec", dont_inherit=True)


def traceback_of(error: BaseException, shown: types.TracebackType | None, limit: int) -> str:
    """The traceback with source lines, which are not in any file."""
    import linecache
    import traceback

    for name, source in SOURCES.items():
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    return "".join(traceback.format_exception(type(error), error, shown, limit=limit))


def refuse_calls(bpf: bytes) -> None:
    """Install a system-call filter in this process, if the engine could not."""
    import ctypes

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    code = ctypes.create_string_buffer(bpf, len(bpf))
    program = Filter(len(bpf) // 8, ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    zero = ctypes.c_ulong(0)
    # PR_SET_NO_NEW_PRIVS, then PR_SET_SECCOMP with SECCOMP_MODE_FILTER.
    if prctl(38, ctypes.c_ulong(1), zero, zero, zero) or prctl(
        22, ctypes.c_ulong(2), ctypes.byref(program), zero, zero
    ):
        raise OSError(ctypes.get_errno(), "the system-call filter was not accepted")


# --- the program's process


def hold_program(job: dict[str, Any], channel: Channel) -> None:
    """Run the program, then answer the tests' calls until they are over."""
    # Saved now: the program may replace any of them.
    pristine = dict(vars(builtins))
    flush, tracing = sys.stdout.flush, (sys.gettrace, sys.getprofile)
    module = types.ModuleType(job["name"])
    sys.modules[job["name"]] = module
    names = vars(module)
    channel.send({"ready": True})

    def report(error: BaseException) -> dict[str, Any]:
        if isinstance(error, SystemExit):
            return {"exited": repr(error.code)}
        if isinstance(error, MemoryError):
            names.clear()
            error.__traceback__ = None
        # The frames of this file are the harness's own.
        shown = error.__traceback__
        while shown is not None and shown.tb_frame.f_code.co_filename == __file__:
            shown = shown.tb_next
        try:
            sys.stderr.write(traceback_of(error, shown, -20))
            sys.stderr.flush()
        except BaseException:  # the program may have broken something that printing needs
            pass
        return describe(error)

    def flush_quietly() -> None:
        try:  # noqa: SIM105  contextlib is not imported
            flush()
        except BaseException:  # the program may have closed or replaced it
            pass

    try:
        exec(compile_as(job["source"], "<program>"), names)
    except BaseException as error:  # any exception is the program's result
        flush_quietly()
        channel.send(report(error))
        _exit(1)
    channel.send({"loaded": [name for name, value in names.items() if callable(value)]})
    while True:
        try:
            message = channel.receive()
        except (Ended, OSError):  # the tests ended without this process
            flush_quietly()
            _exit(1)
        if "finish" in message:
            changed = [name for name, value in pristine.items() if vars(builtins).get(name) is not value]
            if any(get() is not None for get in tracing):
                changed.append("the trace function")
            flush_quietly()
            channel.send({"finished": message["finish"], "changed": changed})
            _exit(0)
        try:
            arguments = unpack(message["arguments"])
            keywords = unpack(message["keywords"])
            value = names[message["call"]](*arguments, **keywords)
            answer = {"value": pack(value), "arguments": pack(arguments)}
        except BaseException as error:
            answer = report(error)
        channel.send(answer)


# --- the judge's process


class TestOracle:
    """Runs the tests against a program in another process."""

    def __init__(self, channel: Channel, nonce: str) -> None:
        self.channel = channel
        self.nonce = nonce
        self.ended: Ended | None = None

    def receive(self) -> dict[str, Any]:
        try:
            message = self.channel.receive()
            if "exited" in message:
                raise Ended("exited")
            if "raised" in message:
                kinds, code = message["kinds"], message["errno"]
                if not (isinstance(kinds, list) and (code is None or isinstance(code, int))):
                    raise Ended("something that is no answer on the tests' channel")
        except (Ended, OSError, KeyError) as error:
            # Stored, because tests may catch every exception.
            self.ended = error if isinstance(error, Ended) else Ended("ended")
            raise self.ended from error
        return message

    def proxy(self, name: str) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if self.ended:
                raise self.ended
            try:
                self.channel.send({"call": name, "arguments": pack(arguments), "keywords": pack(keywords)})
            except OSError as error:
                self.ended = Ended("ended")
                raise self.ended from error
            answer = self.receive()
            if "raised" in answer:
                raise rebuild(answer)
            try:
                value, after = unpack(answer["value"]), unpack(answer["arguments"])
                for old, new in zip(arguments, after, strict=True):
                    write_back(old, new)
            except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
                self.ended = Ended("something that is no answer on the tests' channel")
                raise self.ended from error
            return value

        call.__name__ = name
        return call

    def judge(self, job: dict[str, Any]) -> dict[str, Any]:
        """The verdict of the tests, and a message."""
        tests = compile_as(job["tests"], "<tests>")
        loaded = self.receive()
        if "raised" in loaded:
            return {"verdict": classify(loaded), "message": one_line(loaded)}
        names: dict[str, Any] = {"__name__": "tests"}
        # Definitions of the trusted context are used from there, so that the program cannot change them.
        exec(compile_as(job["context"], "<context>"), names)
        offered = {name for name in loaded.get("loaded", []) if isinstance(name, str)}
        wanted = {name for name in used_names(tests) if not hasattr(builtins, name) and name not in names}
        for name in (offered & wanted) | {job["entry_point"]} - {None}:
            names[name] = self.proxy(name)
        try:
            exec(tests, names)
        except Ended:
            raise
        except BaseException as error:  # any exception is the tests' result
            if self.ended:
                raise self.ended from error
            what = describe(error)
            trace, line = frames_of(error)
            message = one_line(what, default=line)
            return {"verdict": classify(what), "message": message, "trace": f"{trace}{one_line(what)}\n"[-8000:]}
        if self.ended:
            raise self.ended
        try:
            self.channel.send({"finish": self.nonce})
        except OSError as error:
            raise Ended("ended") from error
        last = self.receive()
        if last.get("finished") != self.nonce:
            raise Ended("something that is no answer on the tests' channel")
        if last.get("changed"):
            return {"verdict": "forbidden", "message": f"the program replaced {', '.join(last['changed'])}"}
        return {"verdict": "passed", "message": ""}


def write_back(old: Any, new: Any) -> None:
    """Copy the program's changes of an argument into the caller's own list, dict or set."""
    if type(old) is not type(new):
        return
    if isinstance(old, list):
        old[:] = new
    elif isinstance(old, (dict, set)):
        old.clear()
        old.update(new)


def used_names(code: types.CodeType) -> set[str]:
    """Every name that this code and its inner functions look up."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(used_names, inner))


def frames_of(error: BaseException) -> tuple[str, str]:
    """The traceback of failed tests as Python prints it, and the failing line.

    Most programs fail, so this is fast: two frames, and no import of `traceback`, which takes as long as all the rest.
    """
    frames, line = [], ""
    frame = error.__traceback__
    while frame is not None:
        code, number = frame.tb_frame.f_code, frame.tb_lineno
        lines = SOURCES.get(code.co_filename, "").split("\n")
        line = lines[number - 1].strip() if number <= len(lines) else ""
        frames.append(f'  File "{code.co_filename}", line {number}, in {code.co_name}\n' + f"    {line}\n" * bool(line))
        frame = frame.tb_next
    return "Traceback (most recent call last):\n" + "".join(frames[-2:]), line


def main() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if sys.argv[1:] == ["stdio"]:
        channel = Channel(os.dup(0), os.dup(1))
        job = channel.receive()
        os.dup2(2, 1)  # the program's stdout goes to its stderr
    else:
        job = decode(sys.stdin.read())
        channel = Channel(job["channel"])
    os.dup2(nothing, 0)
    sys.set_int_max_str_digits(0)
    for name, limit in job["limits"].items():
        # With equal soft and hard CPU limits the kernel sends SIGKILL, and the reason would be lost.
        resource.setrlimit(getattr(resource, name), (limit, limit + (name == "RLIMIT_CPU")))
    if "filter" in job:
        refuse_calls(bytes.fromhex(job["filter"]))
    if job["role"] == "program":
        hold_program(job, channel)
        return
    out = os.dup(1)
    os.dup2(nothing, 1)  # output of the tests must not look like a verdict
    os.dup2(nothing, 2)
    judge = TestOracle(channel, job["nonce"])
    try:
        judge.receive()
        write(out, b'{"ready": true}\n')
        verdict = judge.judge(job)
        verdict["message"] = verdict["message"][:_LONGEST_MESSAGE]
    except Ended as error:
        verdict = {"ended": str(error)}
    except BaseException as error:  # an error in the tests or in the judge
        verdict = {"broken": f"{type(error).__name__}: {error}"[:_LONGEST_MESSAGE]}
    data = encode(verdict).encode() + b"\n"
    while data:
        data = data[write(out, data) :]
    _exit(0)


if __name__ == "__main__":
    main()
