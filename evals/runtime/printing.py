"""Printing: the only way in which a command's text reaches a terminal.

Answers, task names and model names come from models and files. A control sequence in one could set a terminal's title,
forge links and colours, or hide text; it is spelled out instead.
"""

from __future__ import annotations

import sys
import unicodedata

# Controls, formats (bidirectional overrides, zero-width), surrogates, private use, unassigned, separators.
ESCAPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
_KEPT = "\n\t \u200d\u00a0"  # emoji sequences keep their joiners


def plain(text: str) -> str:
    """The text with everything spelled out that could make it look like another one: ESC is ⟨U+001B⟩.

    Line breaks, tabs and spaces are kept.
    """
    # A text that Python calls printable has nothing to escape, and no white space other than the space.
    return text if text.isprintable() else "".join(map(_plain_char, text))


def _plain_char(char: str) -> str:
    return f"⟨U+{ord(char):04X}⟩" if char not in _KEPT and unicodedata.category(char) in ESCAPED else char


def echo(text: object = "", *, err: bool = False, end: str = "\n") -> None:
    """Print a text, made `plain`, on stdout or stderr."""
    print(plain(str(text)), end=end, file=sys.stderr if err else sys.stdout, flush=True)
