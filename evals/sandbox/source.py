"""Where the tests of a whole program begin. Goes by lines: generated code is parsed in the sandbox, or not at all."""

from __future__ import annotations

import re

LARGEST = 4 << 20
"""The longest program that is run, in characters."""

_CHECK = re.compile(r"^def[ \t]+check[ \t]*\(", re.MULTILINE)
_CALL = re.compile(r"check[ \t]*\([ \t]*([^\W\d]\w*)[ \t]*\)[ \t;]*(?:#.*)?")


def split_tests(source: str) -> tuple[str, str, str] | None:
    """Program, tests and entry point of a source in HumanEval's format; None for any other source.

    The tests begin with the last line `def check(`. Whatever is before it belongs to the program, which must be
    complete without the tests: a decorator, an open bracket or a continued line before them is an error of the program.
    """
    # Python ends lines at these too; form feeds do not end a line.
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    call = _CALL.fullmatch(_last_line(source))
    starts = [match.start() for match in _CHECK.finditer(source)]
    if call is None or not starts:
        return None
    code, tests, name = source[: starts[-1]], source[starts[-1] :], call[1]
    # A function that is defined after `check` is not the program before it.
    if re.search(rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|^{name}[ \t]*=", tests, re.MULTILINE):
        return None
    return code, tests, name


def _last_line(source: str) -> str:
    """The last line that is neither empty nor a comment."""
    end = len(source)
    while True:
        start = source.rfind("\n", 0, end) + 1
        line = source[start:end]
        if start == 0 or (line.strip() and not line.lstrip().startswith("#")):
            return line
        end = start - 1
