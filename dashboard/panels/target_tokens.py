"""Which next tokens a page asks after, and at which position: typed, a quiz's letters, or a sample's two answers."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import streamlit as st

from dashboard.layout.page import show_error
from dashboard.panels.prompt_input import Input
from dashboard.session import computed, url_state
from dashboard.session.computed import CaptureRef
from dashboard.token_text import plotly_text
from probes.logits.logit_attribution import likeliest
from workbench.errors import DataError
from workbench.model import Transformer

MOST = 6
LETTERS = ("A", "B", "C", "D")
_QUIZ = re.compile(rb"\n\(?A[.):].*\n\(?B[.):]|Answer:\s*$", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """A position whose next token is in question, and some tokens for it. Of a sample they are gold and predicted."""

    position: int
    tokens: tuple[int, ...]


def choose(model: Transformer, given: Input, held: CaptureRef, more: Callable[[], None] = lambda: None) -> Asked | None:
    """Draw the controls, `more` beside them; None where a target cannot be read (the page says why).

    The capture must hold `ln_final.hook_out`: without targets they are the two likeliest tokens.
    """
    with st.container(horizontal=True, vertical_alignment="bottom", key="controls"):
        named = url_state.url_widget(
            st.number_input, "Position", -1, None, -1, key="position", width=130,
            help="The prediction after this token. -1 is the last one; of a sample, where its choices part.",
        )  # fmt: skip
        text = url_state.url_widget(
            st.text_input, "Target tokens", "", key="targets", width=260, max_chars=400, placeholder="the likeliest",
            help=f"Up to {MOST}, with spaces between: text, where a dot · stands for a space (·the), or #12 for an id.",
        )  # fmt: skip
        if is_quiz(given):
            st.button("A to D", on_click=_preset, args=(model, given), help="The letters of a quiz as targets.")
        more()
    decided = of_sample(given)
    end = decided.position if decided else (given.asked or len(given)) - 1
    position = end if named < 0 else min(named, len(given) - 1)
    url_state.note_shown("position", named if named >= 0 else None, position)
    try:
        tokens, notes = parse(text, model)
    except DataError as error:
        show_error("The target tokens cannot be read.", str(error))
        return None
    for note in notes:
        st.text(note)
    if not tokens and decided and position == decided.position:
        return decided
    tokens = tokens or _likeliest(model, held, position)
    return Asked(position, tokens)


def _likeliest(model: Transformer, held: CaptureRef, position: int) -> tuple[int, ...]:
    found = computed.cached_probe(likeliest, model=model, capture=held, position=position)
    return tuple(token for token in found if isinstance(token, int))


def parse(text: str, model: Transformer) -> tuple[tuple[int, ...], list[str]]:
    """Token ids of words as the pages write them, and a note for each word that is more than one token.

    Raises: DataError for too many, an id outside the vocabulary, or text where the model has no tokenizer.
    """
    found: list[int] = []
    notes = []
    for word in text.split():
        number = word.removeprefix("#")
        if number.isdecimal() and (word != number or model.tokenizer is None):
            ids = [int(number)]
        elif model.tokenizer is None:
            raise DataError("This checkpoint has no tokenizer: give token ids, as #12.")
        else:
            ids = model.tokenizer.encode(word.replace("·", " ").replace("↵", "\n"))
            if len(ids) > 1:
                notes.append(f"A target is {len(ids)} tokens long; its first, #{ids[0]}, stands for it.")
        if ids[0] >= model.config.vocab_size:
            raise DataError(f"Token ids are 0 to {model.config.vocab_size - 1}, found {ids[0]}.")
        found.append(ids[0])
    tokens = tuple(dict.fromkeys(found))
    if len(tokens) > MOST:
        raise DataError(f"{len(tokens)} targets are more than the {MOST} that can be told apart. Leave some out.")
    return tokens, notes


def of_sample(given: Input) -> Asked | None:
    """Gold and predicted of a multiple choice, where their tokens first part; if it was right, gold and next best.

    None where the ids are no replay, or one of the two is the beginning of the other.
    """
    sample = given.sample
    if sample is None or given.asked is None or sample.gold is None or sample.picked is None or not sample.choice_ids:
        return None
    other = sample.picked
    if other == sample.gold:
        others = [choice for choice in range(len(sample.choice_ids)) if choice != sample.gold]
        other = max(others, key=lambda choice: sample.logprobs[choice]) if others else other
    pairs = zip(sample.choice_ids[sample.gold], sample.choice_ids[other], strict=False)
    # The picked choice follows the prompt in the replay, so what both share is there to be read.
    found = (Asked(given.asked - 1 + at, pair) for at, pair in enumerate(pairs) if pair[0] != pair[1])
    return next(found, None)


def is_quiz(given: Input) -> bool:
    """Whether the prompt ends like a multiple choice: lettered lines, or "Answer:"."""
    return bool(_QUIZ.search(b"".join(given.tokens[: given.asked][-400:])))


def letters(model: Transformer, given: Input) -> tuple[int, ...]:
    """The tokens of A to D as they would follow the prompt: behind a space, where that is one token of its own."""
    assert model.tokenizer is not None
    ends_open = not b"".join(given.tokens[: given.asked][-1:]).endswith((b" ", b"\n"))
    for space in ([" "] if ends_open else []) + [""]:
        ids = [model.tokenizer.encode(space + letter) for letter in LETTERS]
        if all(len(one) == 1 for one in ids):
            return tuple(one[0] for one in ids)
    return tuple(one[0] for one in ids)


def token_bytes(model: Transformer, token: int) -> bytes:
    """A token's bytes; its number where the model has no tokenizer, or the vocabulary is padded there."""
    tokenizer = model.tokenizer
    if tokenizer is None or token >= tokenizer.vocab_size:
        return f"#{token}".encode()
    return tokenizer.tokens([token])[0]


def plotly_names(model: Transformer, tokens: Iterable[int]) -> dict[int, str]:
    """What figures call tokens, escaped."""
    return {token: plotly_text(token_bytes(model, token), limit=14) for token in tokens}


def _preset(model: Transformer, given: Input) -> None:
    st.session_state["targets"] = " ".join(f"#{token}" for token in letters(model, given))
