"""Converts token bytes to safe, visible text, with one function for each kind of output. Use no other way.

Tokens come from untrusted prompts and from models, so each may contain markup, control characters, incomplete UTF-8 or
a right-to-left override. `visible` turns bytes into text that shows all of these; each function below it makes the
result safe for one kind of output. Never pass a token to a widget that reads Markdown or LaTeX (`st.markdown`,
`st.metric`, `st.caption`, `st.table`, tabs, pills, labels): there is no function for them. Only
`dashboard/layout/tables.py` writes HTML, and its text goes through `html_text`.

Imports neither Streamlit nor plotly nor the model.
"""

import html
import unicodedata
from collections.abc import Iterable, Sequence

from evals.runtime import printing

SPACE = "·"
NAMED = {"\n": "↵", "\t": "⇥", "\r": "␍"}
ELLIPSIS = "…"

# Characters that `visible` itself writes; in the input they are escaped, so that different bytes never look alike.
_OWN_MARKS = frozenset({SPACE, ELLIPSIS, "⟨", "⟩", *NAMED.values()})
_COMBINING = frozenset({"Mn", "Mc", "Me"})


def visible(token: bytes) -> str:
    """One token's bytes as text in which nothing is hidden.

    A space is `·`, a newline `↵`, a tab `⇥`, a byte that is not valid UTF-8 `⟨E2⟩`, a control or format character
    `⟨U+202E⟩`. Different bytes give different text. Safe for `st.dataframe`, `st.text`, `st.code(language=None)`
    and `textContent`; not for plotly or Markdown.
    """
    shown: list[str] = []
    # surrogateescape keeps a byte that is not valid UTF-8 as a lone surrogate, U+DC80 to U+DCFF.
    for position, char in enumerate(token.decode("utf-8", "surrogateescape")):
        code = ord(char)
        if 0xDC80 <= code <= 0xDCFF:
            shown.append(f"⟨{code - 0xDC00:02X}⟩")
        elif char == " ":
            shown.append(SPACE)
        elif char in NAMED:
            shown.append(NAMED[char])
        elif _needs_escape(char, first=position == 0):
            shown.append(f"⟨U+{code:04X}⟩")
        else:
            shown.append(char)
    return "".join(shown)


def short(token: bytes, limit: int = 16) -> str:
    """`visible`, cut to `limit` characters with an ellipsis; never cuts through a `⟨…⟩`."""
    text = visible(token)
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    opened = head.rfind("⟨")
    if opened > head.rfind("⟩"):
        head = head[:opened]
    return head + ELLIPSIS


def plotly_labels(tokens: Sequence[bytes], *, start: int = 0, limit: int = 14) -> list[str]:
    """Axis labels such as `12 ·cat`: unique because of the position, escaped for plotly's pseudo-HTML.

    The axis needs `type="category"`: otherwise plotly takes labels such as `12 5` for dates.
    """
    return [f"{start + index} {html.escape(short(token, limit), quote=False)}" for index, token in enumerate(tokens)]


def plotly_text(token: bytes, *, limit: int = 40) -> str:
    """One token inside a plotly title, annotation or hover text."""
    return html.escape(short(token, limit), quote=False)


def plotly_plain(text: str) -> str:
    """A name that is not a token, such as a task's, in a figure; its spaces are kept."""
    return html.escape(plain(text), quote=False)


def plain(text: str) -> str:
    """A prompt or an answer for `st.code(language=None)` and `st.text`: line breaks are kept, the rest is made visible.

    Lone surrogates cannot be sent to a browser, and control characters and overrides could make a text look like a
    different one. Emoji sequences keep their joiners.
    """
    return printing.plain(text)


def html_text(text: str) -> str:
    """A text, which may contain visible tokens, for the content of an HTML element: `plain`, with markup escaped."""
    return html.escape(plain(text))


def printable(values: Iterable[object]) -> list[str]:
    """Table cells that may contain text from a model, each made safe by `plain`."""
    return [plain(str(value)) for value in values]


def _needs_escape(char: str, *, first: bool) -> bool:
    kind = unicodedata.category(char)
    return kind in printing.ESCAPED or char in _OWN_MARKS or (first and kind in _COMBINING)
