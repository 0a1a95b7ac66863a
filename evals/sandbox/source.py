"""Where the tests of a whole program begin. Goes by lines: generated code is parsed in the sandbox, or not at all."""

from __future__ import annotations

import re

LARGEST = 4 << 20
"""The longest program that is run, in characters."""

_CHECK = re.compile(r"def[ \t]+check[ \t]*\(")
_BODY = r"(?:(?:[ \t\f#)\]}][^\n]*+)?+\n)*+"  # lines that are indented, empty, comments, or close a bracket
_TESTS = re.compile(rf"[^\n]*\n{_BODY}check[ \t]*\([ \t]*([^\W\d]\w*)[ \t]*\)[ \t;]*(?:#[^\n]*)?(?:\n|\Z)")


def split_tests(source: str) -> tuple[str, str, str] | None:
    """Program, tests and entry point of a source in HumanEval's format; None for any other source.

    The tests begin with the last line `def check(`, and `check(NAME)` is the first line after its body. Whatever is
    before them belongs to the program, which must be complete without the tests: a decorator, an open bracket or a
    continued line before them is an error of the program.
    """
    # Python ends lines at these too; form feeds do not end a line.
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    end = len(source)
    while end > 0:
        start = source.rfind("\ndef", 0, end) + 1
        if _CHECK.match(source, start):
            tests = _TESTS.match(source, start)
            return (source[:start], source[start:], tests[1]) if tests else None
        end = start - 1
    return None
