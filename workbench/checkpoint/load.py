"""`load_model`: load a checkpoint directory, memory-mapped, with a chosen dtype and device."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.checkpoint.adapter import adapter_files, with_adapter
from workbench.checkpoint.assemble import MappedPages, Target, assemble, verify
from workbench.checkpoint.files import Layout
from workbench.checkpoint.fingerprint import fingerprint
from workbench.checkpoint.manifest import Checkpoint, open_checkpoint
from workbench.checkpoint.pieces import Weight
from workbench.config import ModelConfig
from workbench.errors import ConfigError, WorkbenchError, WorkbenchWarning
from workbench.layers import tensor_parallel
from workbench.model import Transformer
from workbench.provenance import ModelSource, file_states
from workbench.text.tokenizer import Tokenizer, find_tokenizer

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
}
# Rows and tokens may differ: rows are padded to a round number, and added tokens may have no row. A tokenizer is
# probably another model's if it has many tokens without a row, or leaves most rows without a token.
_MOST_WITHOUT_ROW, _LEAST_SHARE = 64, 0.5
STEPS = 20  # progress reports in each half


def load_model(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    adapter: str | Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Transformer:
    """A model from a Meta or Hugging Face directory, a GGUF file, or the embedded one ("demo"), ready for inference.

    `adapter` is the folder of a LoRA adapter, which is merged into the weights. `dtype` "auto" is the dtype of the
    stored weights, bfloat16 if they are quantised; `device` "auto" is CUDA if there is a device. In a
    tensor-parallel run (`tensor_parallel.init`) every process reads only its own shard. On the CPU, in the stored
    dtype, weights stay in the mapped file: do not change the file while the model is in use. `progress` is called with
    the fraction done, between 0 and 1: the first half is loading the weights, the second half is checking them.

    A tokenizer that cannot be read leaves the model without text. `model.notes`, each also a WorkbenchWarning, say
    what a user should know of the directory.
    Raises: CheckpointError or ConfigError if anything in the directory does not fit; ConfigError for a device or dtype
        that is not available.
    """
    target = resolve_device(device)
    requested_dtype = _dtype(dtype)
    checkpoint = open_checkpoint(path)
    files = (checkpoint.layout.config_file, *checkpoint.layout.weight_files)
    if adapter is not None:
        adapter = Path(adapter).expanduser()
        files += adapter_files(adapter)
    states = file_states(files)
    if adapter is not None:
        checkpoint = with_adapter(checkpoint, adapter)
    tokenizer, about_tokenizer = fitting_tokenizer(checkpoint.layout, checkpoint.config)
    # On the meta device, so that no memory is allocated before the weights are assigned.
    with torch.device("meta"):
        model = Transformer(checkpoint.config)
    _fill(model, checkpoint, requested_dtype or checkpoint.dtype, target, progress)
    model.tokenizer = tokenizer
    model.notes = (*checkpoint.notes, *about_tokenizer)
    for note in model.notes:
        warnings.warn(note, WorkbenchWarning, stacklevel=2)
    model.source = ModelSource(
        checkpoint.layout.root,
        partial(fingerprint, adapter=adapter),
        tokenizer.sha256 if tokenizer else None,
        states,
        adapter,
    )
    return model.eval()


def _fill(
    model: Transformer,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[float], None] | None,
) -> None:
    pages = MappedPages(checkpoint.layout.weight_files)
    target = Target(dtype, device, tensor_parallel.rank(), tensor_parallel.size())
    tensors: list[Tensor] = []
    for part in _parts(checkpoint.weights, STEPS if progress else 1):
        tensors += [assemble(weight, pages, target) for weight in checkpoint.weights[part]]
        if progress:
            progress(part.stop / len(checkpoint.weights) / 2)
    for part in _parts(checkpoint.weights, STEPS if progress else 1):
        verify(checkpoint.weights[part], tensors[part], target)
        if progress:
            progress((1 + part.stop / len(checkpoint.weights)) / 2)
    for weight, tensor in zip(checkpoint.weights, tensors, strict=True):
        owner, _, leaf = weight.spec.name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor))
    unassigned = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not unassigned, f"weights that are not in the table of tensors: {unassigned}"


def _parts(weights: Sequence[Weight], count: int) -> Iterator[slice]:
    """Consecutive slices that cover all weights: at most `count`, with about as many weights each."""
    step = -(-len(weights) // count)
    return (slice(first, min(first + step, len(weights))) for first in range(0, len(weights), step))


def fitting_tokenizer(layout: Layout, config: ModelConfig) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """The tokenizer in a checkpoint's directory, or None, and notes on it for the user.

    A model works with token ids without one, so a tokenizer that cannot be read is a note, not an error.
    """
    file = find_tokenizer(layout.root)
    if file is None:
        return None, ()
    try:
        tokenizer = Tokenizer.from_file(layout.root)
        tokens, rows = tokenizer.vocab_size, config.vocab_size
    except (KeyboardInterrupt, SystemExit):
        raise
    # A damaged file can make a library raise anything; a panic of the Rust ones is not even an Exception.
    except BaseException as error:
        reason = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.removeprefix(f"{file}: ").split())[:200].rstrip(".")
        return None, (f"{file}: the tokenizer is not used ({reason}). The model works with token ids, without text.",)
    notes = tuple(f"{file}: {note}" for note in tokenizer.notes)
    if tokens - rows > _MOST_WITHOUT_ROW or tokens < _LEAST_SHARE * rows:
        return tokenizer, (
            *notes,
            f"{file}: this vocabulary has {tokens:,} tokens, but the model has {rows:,} embedding rows; it may be "
            "another model's tokenizer.",
        )
    return tokenizer, notes


def resolve_device(device: str | torch.device) -> torch.device:
    """The device with a name. Raises: ConfigError for an unknown name or a device that does not exist."""
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"unknown device {device!r}; use 'auto', 'cpu', 'cuda' or 'cuda:N'.") from error
    if resolved.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {resolved} is not supported; use 'auto', 'cpu', 'cuda' or 'cuda:N'.")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        reason = f"{count} CUDA devices were found" if torch.version.cuda else "this torch is built without CUDA"
        raise ConfigError(f"there is no device {resolved}; {reason}. Use 'cpu' or 'auto'.")
    return resolved


def _dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    if dtype == "auto":
        return None
    resolved = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved not in _DTYPES.values():
        raise ConfigError(f"unknown dtype {dtype!r}; use 'auto', 'bfloat16', 'float16' or 'float32'.")
    return resolved
