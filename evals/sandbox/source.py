"""Where the tests of a whole program begin. Goes by lines: generated code is parsed in the sandbox, or not at all."""

from __future__ import annotations

import re

LARGEST = 4 << 20
"""The longest program that is run, in characters."""

_CHECK = re.compile(r"def[ \t]+check[ \t]*\(")
_BODY = r"(?:(?:[ \t\f#)\]}][^\n]*+)?+\n)*+"  # lines that are indented, empty, comments, or close a bracket
_CALL = r"check[ \t]*\([ \t]*([^\W\d]\w*)[ \t]*\)[ \t;]*(?:#[^\n]*)?"
_TESTS = re.compile(rf"[^\n]*\n{_BODY}{_CALL}(?:\n|\Z)")
_GUARD = r"if[ \t]+__name__[ \t]*==[ \t]*[\"']__main__[\"'][ \t]*:\s*"
_GUARDED = re.compile(rf"([^\n]*\n{_BODY}){_GUARD}{_CALL}\s*\Z")


def split_tests(source: str) -> tuple[str, str, str] | None:
    """Program, tests and entry point of a source in HumanEval's format; None for any other source.

    The tests begin with the last line `def check(`, and `check(NAME)` is the first line after its body, or the only one
    in `if __name__ == "__main__":`. Whatever is before them belongs to the program, which must be complete without the
    tests: a decorator, an open bracket or a continued line before them is an error of the program.
    """
    # Python ends lines at these too; form feeds do not end a line.
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    end = len(source)
    while end > 0:
        start = source.rfind("\ndef", 0, end) + 1
        if _CHECK.match(source, start):
            tests = _TESTS.match(source, start)
            if tests:
                return source[:start], source[start:], tests[1]
            guarded = _GUARDED.match(source, start)
            return (source[:start], f"{guarded[1]}check({guarded[2]})\n", guarded[2]) if guarded else None
        end = start - 1
    return None
