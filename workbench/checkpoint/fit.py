"""The tokenizer beside a checkpoint, if its vocabulary fits the model."""

from __future__ import annotations

from workbench.checkpoint.layout import Layout
from workbench.checkpoint.tensors import Kind
from workbench.config import ModelConfig
from workbench.errors import CheckpointError
from workbench.tokenizer import Tokenizer, find_tokenizer

# Hugging Face checkpoints pad the embedding up to a multiple of at most this many rows; Meta's never do.
_PADDING = 128


def fitting_tokenizer(layout: Layout, config: ModelConfig, *, kind: Kind | None = None) -> Tokenizer | None:
    """The tokenizer in a checkpoint's directory, None where there is none.

    `kind` is the layout that it has to fit, by default the directory's own.
    Raises: CheckpointError if its vocabulary is not the configuration's; TokenizerError if it cannot be read.
    """
    file = find_tokenizer(layout.root)
    if file is None:
        return None
    tokenizer = Tokenizer.from_file(file)
    padding = config.vocab_size - tokenizer.vocab_size
    if not 0 <= padding < (_PADDING if (kind or layout.kind) == "hf" else 1):
        raise CheckpointError(
            f"{file}: this vocabulary has {tokenizer.vocab_size:,} tokens, but {layout.config_file.name} says "
            f"{config.vocab_size:,}; expected the tokenizer that this model was trained with."
        )
    return tokenizer
