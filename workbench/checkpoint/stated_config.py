"""The configuration that a checkpoint's file states, with what only the other files of the directory show.

Meta's `params.json` leaves the vocabulary's size to the tokenizer, and theta and the context to the code.
"""

from __future__ import annotations

import re

from workbench.checkpoint.encoded_tensor import TensorsByFile
from workbench.checkpoint.files import Layout
from workbench.checkpoint.float8 import QUANTISATION_KEYS, float8_scaling
from workbench.checkpoint.gguf_config import gguf_config
from workbench.checkpoint.tensors import EMBEDDING
from workbench.config import ModelConfig
from workbench.config.hf_config import ignored_keys
from workbench.config.meta_params import LLAMA1_CONTEXT, is_llama1_65b
from workbench.errors import WorkbenchError
from workbench.small_files import read_json
from workbench.text.tokenizer import Tokenizer, find_tokenizer

_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=*[ \t]\d+\r?\n")


def stated_config(layout: Layout, files: TensorsByFile | None = None) -> tuple[ModelConfig, tuple[str, ...]]:
    """The configuration, and notes on it for the user; for Meta's layout only the weights show a tied output.

    `files` are the tensors by file, None if the weights were not opened.
    Raises: CheckpointError, or ConfigError for errors in the configuration file.
    """
    if layout.kind == "gguf":
        return gguf_config(layout.weight_files), ()
    values, source = read_json(layout.config_file), str(layout.config_file)
    if layout.kind == "hf":
        float8_scaling(values, source)  # refuses other quantisations
        values = {key: value for key, value in values.items() if key not in QUANTISATION_KEYS}
        config = ModelConfig.from_hf(values, source=source)
        unknown = ignored_keys(values, source)
        return config, (_ignored(source, unknown),) if unknown else ()
    vocab_size = None
    if values.get("vocab_size", -1) == -1:
        vocab_size = _embedding_rows(files, values.get("dim")) if files else _tokenizer_size(layout)
    llama3 = _has_tiktoken_file(layout)
    config = ModelConfig.from_meta(values, source=source, vocab_size=vocab_size, llama3=llama3)
    if is_llama1_65b(values) and not llama3:
        note = (
            f"{source}: the context is taken as {config.max_seq_len:,} tokens, as in Llama 2; if this is Llama 1's "
            f'65B, add "max_seq_len": {LLAMA1_CONTEXT}.'
        )
        return config, (note,)
    return config, ()


def _ignored(source: str, unknown: tuple[str, ...]) -> str:
    names = ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in unknown[:6])
    more = f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""
    return f"{source}: unknown keys are ignored: {names}{more}. If one changes the computation, results are wrong."


def _embedding_rows(files: TensorsByFile, dim: object) -> int | None:
    shapes = [tensors[EMBEDDING].shape for tensors in files.values() if EMBEDDING in tensors]
    if not shapes or len(shapes[0]) != 2:
        return None
    rows, columns = shapes[0]
    # Llama 2's shards divide the columns, Llama 3's the rows.
    return int(rows) if columns != dim else int(rows) * len(shapes)


def _tokenizer_size(layout: Layout) -> int | None:
    try:
        return Tokenizer.from_file(layout.root).vocab_size
    except (WorkbenchError, OSError):
        return None


def _has_tiktoken_file(layout: Layout) -> bool:
    """Whether the tokenizer is a tiktoken file, which Llama 3 introduced; Llama 1 and 2 have SentencePiece."""
    file = find_tokenizer(layout.root)
    if file is None:
        return False
    try:
        with file.open("rb") as stream:
            return _TIKTOKEN_LINE.match(stream.read(200)) is not None
    except OSError:  # the tokenizer's own reading says so
        return False
