"""Exceptions of programs and tests inside the sandbox: as data, as a verdict, as a message. Standard library only."""

from __future__ import annotations

import builtins
import errno
import os
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LONGEST_MESSAGE = 2000
SOURCES: dict[str, str] = {}  # by file name: program, context and tests are in no file
_REFUSALS = {errno.EPERM, errno.EACCES, errno.EROFS, errno.EFBIG, errno.ENOSPC, errno.EMFILE}


class ProgramError(Exception):
    """An exception of a type that the program defines; only its name and message are transferred."""


def describe(error: BaseException) -> dict[str, Any]:
    """Name, message and error number of an exception, as data."""
    code = error.errno if isinstance(error, OSError) and isinstance(error.errno, int) else None
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    name, message = type(error).__name__, str(error)[:LONGEST_MESSAGE]
    return {"raised": name, "kinds": kinds, "message": message, "errno": code, "refused": refused(error)}


def refused(error: BaseException) -> bool:
    """Whether an exception, or one in its cause chain, reports that the sandbox refused something."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return False
        # A resolver that cannot open a socket says "temporary failure in name resolution".
        unresolved = type(seen).__name__ == "gaierror" or getattr(seen, "refused_inside", False) is True
        if unresolved or (isinstance(seen, OSError) and seen.errno in _REFUSALS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def classify(error: dict[str, Any]) -> str:
    """The verdict for an uncaught exception."""
    if "MemoryError" in error["kinds"] or error["errno"] == errno.ENOMEM:
        return "memory"
    return "forbidden" if error["refused"] else "failed"


def one_line(error: dict[str, Any], *, default: str = "", modules: str = "") -> str:
    """An exception in one line; for a missing module with what can be imported."""
    detail = error["message"] or default
    if modules and "ModuleNotFoundError" in error["kinds"]:
        detail += f" (programs can import {modules})"
    return f"{error['raised']}: {detail}" if detail else str(error["raised"])


def rebuild(error: dict[str, Any]) -> BaseException:
    """The program's exception for the tests to catch, as the nearest built-in type."""
    result: Any = nearest(error)
    result.refused_inside = error["refused"] is True
    return result


def nearest(error: dict[str, Any]) -> BaseException:
    message = str(error["message"])
    if error["errno"] is not None:
        return OSError(error["errno"], message.removeprefix(f"[Errno {error['errno']}] "))
    for name in error["kinds"]:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
            try:
                return kind(message)
            except TypeError:  # such as UnicodeDecodeError, which needs five arguments
                continue
    return ProgramError(f"{error['raised']}: {message}")


def compile_as(source: str, filename: str) -> types.CodeType:
    SOURCES[filename] = source
    return compile(source, filename, "exec", dont_inherit=True)


def failed_import(error: BaseException) -> bool:
    """Whether an import in the tests or their context raised this; the program's own errors come through `proxy`."""
    last, inner = None, None
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename in SOURCES:
            last, inner = frame, frame.tb_next
        frame = frame.tb_next
    if last is None or (inner is not None and own(inner)):
        return False
    import opcode

    operation = opcode.opname[last.tb_frame.f_code.co_code[last.tb_lasti]]
    return isinstance(error, ImportError) or operation in ("IMPORT_NAME", "IMPORT_FROM")


def traceback_of(error: BaseException, shown: types.TracebackType | None, limit: int) -> str:
    """The traceback with source lines, which are not in any file."""
    import linecache
    import traceback

    for name, source in SOURCES.items():
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    return "".join(traceback.format_exception(type(error), error, shown, limit=limit))


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


def own(frame: types.TracebackType) -> bool:
    """Whether a frame is the harness's own."""
    return os.path.dirname(frame.tb_frame.f_code.co_filename) == os.path.dirname(__file__)
