"""Messages of user errors are bounded, and safe to print."""

import pickle
import warnings

import pytest

from workbench.errors import MESSAGE_LIMIT, CheckpointError, MissingExtraError, WorkbenchError, WorkbenchWarning


def test_long_messages_keep_beginning_and_end() -> None:
    error = CheckpointError(f"model.json: expected a number, found {'x' * 9_000_000!r}; set it to 1.")
    text = str(error)
    assert len(text) <= MESSAGE_LIMIT
    assert text.startswith("model.json: expected a number, found 'xxx") and text.endswith("xxx'; set it to 1.")
    assert str(CheckpointError("a" * MESSAGE_LIMIT)) == "a" * MESSAGE_LIMIT


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines", "two\nlines"),
        ("\x1b]8;;http://example.org\x07link\r\t", r"\x1b]8;;http://example.org\x07link\r\t"),
        ("\u202egnp.exe\ud800", r"\u202egnp.exe\ud800"),
        ("déjà vu 🙂", "déjà vu 🙂"),
    ],
)
def test_what_a_terminal_must_not_see_is_escaped(text: str, shown: str) -> None:
    assert str(CheckpointError(text)) == shown
    with pytest.warns(WorkbenchWarning) as caught:
        warnings.warn(text, WorkbenchWarning, stacklevel=1)
    assert str(caught[0].message) == shown


def test_escapes_do_not_make_a_message_long() -> None:
    assert len(str(WorkbenchError("\x1b" * 10_000))) <= MESSAGE_LIMIT


def test_errors_can_be_sent_between_processes() -> None:
    assert str(pickle.loads(pickle.dumps(CheckpointError("x\x1b")))) == r"x\x1b"
    assert "pip install" in str(MissingExtraError("gguf", "formats"))
