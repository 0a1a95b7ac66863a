"""Token text: nothing is hidden, different tokens look different, and no output is read as markup."""

import html
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.token_text import plain, plotly_labels, plotly_text, printable, short, visible


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (b" cat", "·cat"),
        (b"  x = 1", "··x·=·1"),
        (b"\n\n", "↵↵"),
        (b"\ta\r", "⇥a␍"),
        (b"\xe2\x80", "⟨E2⟩⟨80⟩"),
        ("€".encode()[:2] + b"a", "⟨E2⟩⟨82⟩a"),
        ("\u202eabc".encode(), "⟨U+202E⟩abc"),
        (b"\x00\x1b[31m", "⟨U+0000⟩⟨U+001B⟩[31m"),
        ("\u200b\u00a0".encode(), "⟨U+200B⟩⟨U+00A0⟩"),
        ("🙂".encode(), "🙂"),
        ("\u0301".encode(), "⟨U+0301⟩"),
        ("e\u0301".encode(), "e\u0301"),
        ("·↵⟨E2⟩…".encode(), "⟨U+00B7⟩⟨U+21B5⟩⟨U+27E8⟩E2⟨U+27E9⟩⟨U+2026⟩"),
        (b"<script>", "<script>"),
        (b"", ""),
    ],
)
def test_visible_shows_what_a_screen_would_hide(token: bytes, shown: str) -> None:
    assert visible(token) == shown


def test_plain_spells_out_each_control_format_and_strange_space_of_unicode() -> None:
    kinds = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
    for char in map(chr, range(0x110000)):
        hidden = unicodedata.category(char) in kinds and char not in "\n\t \u200d\u00a0"
        assert plain(char) == (f"⟨U+{ord(char):04X}⟩" if hidden else char)


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_different_bytes_never_look_alike(token: bytes, other: bytes) -> None:
    assert (visible(token) == visible(other)) == (token == other)


@given(st.binary(max_size=40))
def test_visible_text_can_be_sent_and_holds_no_control(token: bytes) -> None:
    text = visible(token)
    assert text.encode("utf-8").decode("utf-8") == text
    assert not [char for char in text if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}]


@given(st.binary(max_size=60), st.integers(2, 20))
def test_short_keeps_its_limit_and_whole_marks(token: bytes, limit: int) -> None:
    text = short(token, limit)
    assert len(text) <= limit
    assert text.count("⟨") == text.count("⟩")


@given(st.lists(st.binary(max_size=20), max_size=30), st.integers(0, 5000))
def test_plotly_labels_are_unique_and_carry_no_markup(tokens: list[bytes], start: int) -> None:
    labels = plotly_labels(tokens, start=start)
    assert len(set(labels)) == len(tokens)
    for position, (token, label) in enumerate(zip(tokens, labels, strict=True), start):
        assert "<" not in label and ">" not in label
        assert html.unescape(label) == f"{position} {short(token, 14)}"


def test_plotly_reads_escaped_entities_back_as_typed() -> None:
    assert plotly_text(b"<b>&amp;") == "&lt;b&gt;&amp;amp;"
    assert plotly_labels([b" <i>", b"<br>"], start=7) == ["7 ·&lt;i&gt;", "8 &lt;br&gt;"]


def test_plain_keeps_lines_and_emoji_and_shows_the_rest() -> None:
    family = "👨\u200d👩\u200d👧"
    assert plain(f"a\n\tb {family}") == f"a\n\tb {family}"
    assert plain("x\u202ey\ud800z\x07") == "x⟨U+202E⟩y⟨U+D800⟩z⟨U+0007⟩"
    assert printable([1, "\udfff"]) == ["1", "⟨U+DFFF⟩"]
    json.dumps(plain("".join(map(chr, range(0xD7F0, 0xE010))))).encode("utf-8")
