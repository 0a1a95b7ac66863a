"""Options and arguments that several commands share, and what is read from them.

The commands of the other packages use them too, so that an option means the same everywhere.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.errors import GenerationError, TokenizerError, WorkbenchWarning

if TYPE_CHECKING:
    from workbench.hooks.intervention import Intervention
    from workbench.model import Transformer
    from workbench.text.tokenizer import Tokenizer

Model = Annotated[
    str,
    typer.Argument(
        help="A checkpoint folder, a GGUF file, 'demo', 'smollm2', or a hub name (ORG/NAME) in the local cache."
    ),
]
Online = Annotated[bool, typer.Option("--online", help="Download the model if it is a name that is not on this disk.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")]
Dtype = Annotated[str, typer.Option(help="bfloat16, float16, float32, or auto: as stored in the checkpoint.")]
Adapter = Annotated[
    Path | None, typer.Option(help="Folder of a LoRA adapter, as peft writes it, to merge into the weights.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Ids = Annotated[str | None, typer.Option(help="Token ids instead of a text, used as they are: 1,2,3.")]
Intervene = Annotated[Path | None, typer.Option(help="JSON file with interventions on the model.")]
Ablate = Annotated[str, typer.Option(help="Heads and sublayers to set to zero: L5H3,L2.mlp.")]

_MOST_NUMBERS = 10_000_000  # of one option: more is a typing mistake, and would fill the memory


def tokenizer_of(model: Transformer, name: str) -> Tokenizer:
    """The model's tokenizer. Raises: TokenizerError if its folder holds none."""
    if model.tokenizer is None:
        raise TokenizerError(
            f"{name} has no tokenizer that can be read, which text needs. Copy its tokenizer.model or tokenizer.json, "
            "or give token ids."
        )
    return model.tokenizer


def encode_text(model: Transformer, name: str, text: str) -> list[int]:
    """The tokens of a text, after the begin token if the checkpoint's files put one there.

    Warns if the text has the name of a special token, which is read as plain text.
    Raises: TokenizerError if the model has no tokenizer.
    """
    tokenizer = tokenizer_of(model, name)
    warn_of_special_text(tokenizer, [text])
    return tokenizer.encode(text, bos=True)


def warn_of_special_text(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Warn once if a text has the name of a special token: typed text never becomes one."""
    names = [name for name in tokenizer.special_tokens if any(name in text for text in texts)]
    if names:
        warnings.warn(
            f"the prompt has {names[0]}, which is read as plain text, not as the special token. "
            "The begin token is added where the model uses one; for special tokens give ids, or --chat.",
            WorkbenchWarning,
            stacklevel=2,
        )


def token_ids(text: str, model: Transformer, *, option: str = "--ids") -> list[int]:
    """The ids of `--ids`. Raises: GenerationError for what is not an id of this model."""
    ids = numbers(text, option) or []
    if max(ids) >= model.config.vocab_size:
        raise GenerationError(f"{option}: token id {max(ids)} is outside the vocabulary of {model.config.vocab_size}.")
    return ids


def interventions_of(model: Transformer, file: Path | None, ablate: str) -> tuple[Intervention, ...]:
    """The interventions of `--intervene` and `--ablate`; a line on stderr says that the run is not the plain one.

    Raises: DataError, InterventionError or UnknownHookError, with the option's name.
    """
    from workbench.hooks.intervention_options import InterventionOptions, described

    changes = InterventionOptions(file, ablate).interventions(model.config)
    if changes:
        print(f"note: under interventions: {described(changes)}", file=sys.stderr)
    return changes


def numbers(text: str | None, option: str, *, signed: bool = False) -> list[int] | None:
    """`0,2,5-7` as [0, 2, 5, 6, 7]; None stays None. signed: -1 is a number too.

    Raises: GenerationError, with the option's name.
    """
    if text is None:
        return None
    values: list[int] = []
    number = r"(-?[0-9]+)" if signed else r"([0-9]+)"
    for part in text.split(","):
        match = re.fullmatch(rf"\s*{number}(?:-{number})?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match and len(part) < 40 else (0, -1)
        if last < first or (first < 0 <= last) or len(values) + last - first >= _MOST_NUMBERS:
            also = " and, from the end, -1" if signed else ""
            raise GenerationError(f"{option} takes numbers and ranges such as 0,2,5-7{also}; found {text[:80]!r}.")
        values += range(first, last + 1)
    return values
