"""Target tokens and the position of a page: typed, the letters of a quiz, or the two answers of a sample."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import streamlit as st
import torch

from dashboard.layout.page import show_error
from dashboard.panels.prompt_input import Input
from dashboard.session import computed, url_state
from dashboard.session.computed import CaptureRef
from dashboard.token_text import plain, plotly_text, short
from probes.logits.logit_attribution import likeliest
from workbench.errors import DataError
from workbench.hooks.capture import Capture
from workbench.model import Transformer

MOST = 6
LETTERS = ("A", "B", "C", "D")
_QUIZ = re.compile(rb"\n\(?A[.):].*\n\(?B[.):]|Answer:\s*$", re.DOTALL)


@dataclass(frozen=True)
class TargetTokens:
    """A position, and candidate tokens after it. For a sample they are the gold and the predicted token."""

    position: int
    tokens: tuple[int, ...]


def choose(
    model: Transformer, prompt: Input, capture_ref: CaptureRef, more: Callable[[], None] = lambda: None
) -> TargetTokens | None:
    """Draw the controls, with `more` next to them; None if a target cannot be read (the page says why).

    The capture must have `ln_final.hook_out`: the default targets are the two most likely tokens.
    """
    with st.container(horizontal=True, vertical_alignment="bottom", key="controls"):
        requested = url_state.url_widget(
            st.number_input, "Position", -1, None, -1, key="position", width=130,
            help="The prediction after this token. -1 is the last token; for a sample, the token where its choices "
            "differ.",
        )  # fmt: skip
        text = url_state.url_widget(
            st.text_input, "Target tokens", "", key="targets", width=260, max_chars=400, placeholder="most likely",
            help=f"Up to {MOST}, separated by spaces: text, where · means a space (·the), or #12 for a token id.",
        )  # fmt: skip
        if is_quiz(prompt):
            st.button("A to D", on_click=_preset, args=(model, prompt), help="Uses the letters of a quiz as targets.")
        more()
    of_choices = of_sample(prompt)
    end = of_choices.position if of_choices else (prompt.prompt_length or len(prompt)) - 1
    position = end if requested < 0 else min(requested, len(prompt) - 1)
    url_state.note_shown("position", requested if requested >= 0 else None, position)

    def probability(token: int) -> float:
        shares: np.ndarray = computed.cached_probe(probabilities, model=model, capture=capture_ref, position=position)
        return float(shares[token])

    try:
        tokens, notes = parse(text, model, probability)
    except DataError as error:
        show_error("The target tokens cannot be read.", str(error))
        return None
    for note in notes:
        st.warning(plain(note))
    if not tokens and of_choices and position == of_choices.position:
        return of_choices
    tokens = tokens or _likeliest(model, capture_ref, position)
    return TargetTokens(position, tokens)


def _likeliest(model: Transformer, capture_ref: CaptureRef, position: int) -> tuple[int, ...]:
    tokens = computed.cached_probe(likeliest, model=model, capture=capture_ref, position=position)
    return tuple(token for token in tokens if isinstance(token, int))


def probabilities(model: Transformer, cap: Capture, *, position: int) -> np.ndarray:
    """Probability of every token after a position. Shapes: -> float32 [vocab]"""
    out = cap["ln_final.hook_out"][0, position]
    with torch.no_grad():
        return model.unembed(out[None])[0].softmax(-1).cpu().numpy()


def parse(
    text: str, model: Transformer, probability: Callable[[int], float] | None = None
) -> tuple[tuple[int, ...], list[str]]:
    """Token ids of the typed words, and notes: words of several tokens, and words that are likelier after a space.

    probability: that of a token at the page's position.
    Raises: DataError for too many, an id outside the vocabulary, or text if the model has no tokenizer.
    """
    first_tokens: list[int] = []
    notes = []
    for word in text.split():
        number = word.removeprefix("#")
        if number.isdecimal() and (word != number or model.tokenizer is None):
            ids = [int(number)]
        elif model.tokenizer is None:
            raise DataError("This checkpoint has no tokenizer; enter token ids, such as #12.")
        else:
            ids = model.tokenizer.encode_continuation(word.replace("·", " ").replace("↵", "\n"))
            notes += _notes(word, ids, model, probability)
        if ids[0] >= model.config.vocab_size:
            raise DataError(f"Token ids are 0 to {model.config.vocab_size - 1}, found {ids[0]}.")
        first_tokens.append(ids[0])
    tokens = tuple(dict.fromkeys(first_tokens))
    if len(tokens) > MOST:
        raise DataError(f"There are {len(tokens)} targets, but at most {MOST} can be shown. Remove some.")
    return tokens, notes


def _notes(word: str, ids: list[int], model: Transformer, probability: Callable[[int], float] | None) -> list[str]:
    """What a reader must know of a typed word: it is cut to its first token, or it is likelier after a space."""
    notes, spaced_word = [], f"·{word}"
    name = lambda token: short(token_bytes(model, token), 24)  # noqa: E731
    spaced = [] if word[0] in "·↵" else model.tokenizer.encode_continuation(" " + word)  # type: ignore[union-attr]
    if len(ids) > 1:
        note = f"{word} is {len(ids)} tokens; only the first, {name(ids[0])} (#{ids[0]}), is used."
        if 0 < len(spaced) < len(ids):
            note += f" With a space, {spaced_word} is {len(spaced)} token{'s' if len(spaced) > 1 else ''}."
        notes.append(note)
    if probability and spaced and spaced[0] != ids[0] and max(spaced[0], ids[0]) < model.config.vocab_size:
        before, after = probability(ids[0]), probability(spaced[0])
        if after > before:
            notes.append(
                f"{spaced_word}, with a space, is likelier here: its first token, {name(spaced[0])}, has "
                f"{after:.3g}, and {name(ids[0])} has {before:.3g}."
            )
    return notes


def of_sample(prompt: Input) -> TargetTokens | None:
    """Gold and predicted token of a multiple-choice sample where they first differ; if right, gold and next best.

    None if the ids are not a replay, or if one of the two choices is a prefix of the other.
    """
    sample = prompt.sample
    if (
        sample is None
        or prompt.prompt_length is None
        or sample.gold is None
        or sample.picked is None
        or not sample.choice_ids
    ):
        return None
    other = sample.picked
    if other == sample.gold:
        others = [choice for choice in range(len(sample.choice_ids)) if choice != sample.gold]
        other = max(others, key=lambda choice: sample.logprobs[choice]) if others else other
    pairs = zip(sample.choice_ids[sample.gold], sample.choice_ids[other], strict=False)
    # The replay has the picked choice after the prompt, so the common prefix is part of it.
    differing = (
        TargetTokens(prompt.prompt_length - 1 + at, pair) for at, pair in enumerate(pairs) if pair[0] != pair[1]
    )
    return next(differing, None)


def is_quiz(prompt: Input) -> bool:
    """Whether the prompt ends like a multiple choice: lettered lines, or "Answer:"."""
    return bool(_QUIZ.search(b"".join(prompt.tokens[: prompt.prompt_length][-400:])))


def letters(model: Transformer, prompt: Input) -> tuple[int, ...]:
    """The tokens of A to D as they would follow the prompt: after a space, if that is a single token."""
    assert model.tokenizer is not None
    ends_open = not b"".join(prompt.tokens[: prompt.prompt_length][-1:]).endswith((b" ", b"\n"))
    for space in ([" "] if ends_open else []) + [""]:
        ids = [model.tokenizer.encode_continuation(space + letter) for letter in LETTERS]
        if all(len(tokens) == 1 for tokens in ids):
            return tuple(tokens[0] for tokens in ids)
    return tuple(tokens[0] for tokens in ids)


def token_bytes(model: Transformer, token: int) -> bytes:
    """A token's bytes; its id if the model has no tokenizer, or if the id is padding of the vocabulary."""
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.has_token(token):
        return f"#{token}".encode()
    return tokenizer.tokens([token])[0]


def plotly_names(model: Transformer, tokens: Iterable[int]) -> dict[int, str]:
    """Token names for figures, escaped."""
    return {token: plotly_text(token_bytes(model, token), limit=14) for token in tokens}


def _preset(model: Transformer, prompt: Input) -> None:
    st.session_state["targets"] = " ".join(f"#{token}" for token in letters(model, prompt))
