"""The script that runs inside the sandbox: one process has the program, another (the judge) has the tests.

`engines` starts it as a script, once in each role, with its job as JSON on standard input and one end of a socket pair.
If only three streams can be passed in, the argument is "stdio": the channel is then standard input and output, and the
job is the first line. The two processes are in separate sandboxes and exchange lines of JSON with plain values only,
so the program cannot see the tests, and cannot pass them an object with its own `==`. Standard library only, and the
`inside_` files next to this one.
"""

from __future__ import annotations

import builtins
import os
import resource
import sys
import types
from os import _exit, read, write

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from inside_errors import (  # noqa: E402
    LONGEST_MESSAGE,
    classify,
    compile_as,
    describe,
    failed_import,
    frames_of,
    one_line,
    own,
    rebuild,
    traceback_of,
)
from inside_source import look_at  # noqa: E402
from inside_values import Opaque, pack, unpack, write_back  # noqa: E402

del sys.path[0]

# json, contextlib, typing and traceback are not imported: that halves the start time.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_LONGEST_LINE, _LONGEST_JOB = 8 << 20, 1 << 30
_LONGEST_CODE = 40
_BAD_VALUE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, ImportError)
_NOT_AN_ANSWER = "data on the tests' channel that is not an answer"


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

    def receive(self, longest: int = _LONGEST_LINE) -> dict[str, Any]:
        while b"\n" not in self.buffer:
            block = read(self.fd, 1 << 16)
            if not block:
                raise Ended("ended")
            self.buffer += block
            if len(self.buffer) > longest:
                raise Ended(f"an answer longer than {longest >> 20} MiB")
        line, _, self.buffer = self.buffer.partition(b"\n")
        try:
            message = decode(line.decode())
        except (ValueError, RecursionError) as error:
            raise Ended(_NOT_AN_ANSWER) from error
        if not isinstance(message, dict):
            raise Ended(_NOT_AN_ANSWER)
        return message


def compile_program(source: str, memory: int) -> types.CodeType:
    """The program, compiled.

    Python's parser raises MemoryError for deep nesting, too; it is reported as a lack of memory only if it is one.
    """
    try:
        return compile_as(source, "<program>")
    except MemoryError:
        if 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > memory // 2:
            raise
        raise SyntaxError("the program is nested too deeply for Python's parser") from None


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
    """Look at the program's source, run it, then answer the tests' calls until they are over."""
    # Saved now: the program may replace any of them.
    pristine = dict(vars(builtins))
    flush, tracing = sys.stdout.flush, (sys.gettrace, sys.getprofile)
    module = types.ModuleType(job["name"])
    sys.modules[job["name"]] = module
    names = vars(module)
    channel.send({"ready": True})
    about = look_at(job["source"], job["context"])
    channel.send(about)
    if not about["code"]:
        _exit(0)

    def report(error: BaseException) -> dict[str, Any]:
        if isinstance(error, SystemExit):
            return {"exited": repr(error.code)[:_LONGEST_CODE]}
        if isinstance(error, MemoryError):
            names.clear()
            error.__traceback__ = None
        # The frames of this file are the harness's own.
        shown = error.__traceback__
        while shown is not None and own(shown):
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
        exec(compile_program(job["source"], job["limits"]["RLIMIT_AS"]), names)
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
                raise Ended(f"exit({message['exited']})")
            if "raised" in message:
                kinds, code = message["kinds"], message["errno"]
                if not (isinstance(kinds, list) and (code is None or isinstance(code, int))):
                    raise Ended(_NOT_AN_ANSWER)
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
            except (*_BAD_VALUE, RecursionError) as error:
                self.ended = Ended(_NOT_AN_ANSWER)
                raise self.ended from error
            return value

        call.__name__ = name
        return call

    def judge(self, job: dict[str, Any]) -> dict[str, Any]:
        """The verdict of the tests, and a message."""
        tests = compile_as(job["tests"], "<tests>")
        names: dict[str, Any] = {"__name__": "tests"}
        # Definitions of the trusted context are used from there, so that the program cannot change them.
        try:
            run_context(job["context"], job["tests"], names)
        except BaseException as error:
            if not failed_import(error):
                raise
            return not_judged(error, job)
        about = self.receive()
        if not about["code"]:
            return {"verdict": "no code", "message": "the program has no statement"}
        for line in about["imports"] if job["share_imports"] else ():
            try:  # noqa: SIM105  contextlib is not imported
                exec(line, names)
            except Exception:  # the program's own import, which may be guarded there
                pass
        loaded = self.receive()
        if "raised" in loaded:
            return {"verdict": classify(loaded), "message": one_line(loaded, modules=job["modules"])}
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
            if failed_import(error) and not isinstance(error, MemoryError):
                return not_judged(error, job)
            what = describe(error)
            trace, line = frames_of(error)
            message = one_line(what, default=line, modules=job["modules"])
            if Opaque.received and isinstance(error, (AssertionError, TypeError, AttributeError)):
                message += f"; the program returned {Opaque.received[0]}"
            return {"verdict": classify(what), "message": message, "trace": f"{trace}{one_line(what)}\n"[-8000:]}
        if self.ended:
            raise self.ended
        try:
            self.channel.send({"finish": self.nonce})
        except OSError as error:
            raise Ended("ended") from error
        last = self.receive()
        if last.get("finished") != self.nonce:
            raise Ended(_NOT_AN_ANSWER)
        if last.get("changed"):
            return {"verdict": "forbidden", "message": f"the program replaced {', '.join(last['changed'])}"}
        return {"verdict": "passed", "message": ""}


def run_context(context: str, tests: str, names: dict[str, Any]) -> None:
    """Run the context in these names, and try what the tests import at their beginning.

    Tried before anything of the program is known, so that missing packages do not depend on the program.
    """
    try:
        code = compile_as(context, "<context>")
    except (SyntaxError, ValueError):  # a prompt may end inside a statement
        code = compile_as("", "<context>")
    exec(code, names)
    for line in tests.split("\n"):
        if line.startswith(("import ", "from ")):
            try:
                statement = compile_as(line, "<import>")
            except (SyntaxError, ValueError):  # one of several lines
                continue
            exec(statement, {})


def not_judged(error: BaseException, job: dict[str, Any]) -> dict[str, Any]:
    """What to say if the tests cannot be run here, whatever the program is."""
    what = one_line(describe(error))
    return {
        "verdict": "not judged",
        "message": f"the tests cannot be run here: {what} (they can import {job['modules']})",
    }


def used_names(code: types.CodeType) -> set[str]:
    """Every name that this code and its inner functions look up."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(used_names, inner))


def main() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    if sys.argv[1:] == ["stdio"]:
        channel = Channel(os.dup(0), os.dup(1))
        job = channel.receive(_LONGEST_JOB)
        os.dup2(2, 1)  # the program's stdout goes to its stderr
    else:
        job = decode(sys.stdin.read())
        channel = Channel(job["channel"])
    os.dup2(nothing, 0)
    sys.set_int_max_str_digits(0)
    for name, limit in job["limits"].items():
        more = name == "RLIMIT_CPU"
        # With equal soft and hard CPU limits the kernel sends SIGKILL, and the reason would be lost.
        kind = getattr(resource, name)
        most = resource.getrlimit(kind)[1]  # a lower limit of this process stays
        limits = [value if most == resource.RLIM_INFINITY else min(value, most) for value in (limit, limit + more)]
        resource.setrlimit(kind, (limits[0], limits[1]))
    site = f"{sys.prefix}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"  # of a docker image
    sys.path += [site] if job["packages"] is None else job["packages"]
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
        verdict["message"] = verdict["message"][:LONGEST_MESSAGE]
    except Ended as error:
        verdict = {"ended": str(error), "tests": bool(job["tests"])}
    except BaseException as error:  # an error in the tests or in the judge
        verdict = {"broken": f"{type(error).__name__}: {error}"[:LONGEST_MESSAGE]}
    data = encode(verdict).encode() + b"\n"
    while data:
        data = data[write(out, data) :]
    _exit(0)


if __name__ == "__main__":
    main()
