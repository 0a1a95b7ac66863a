"""Checkpoints in the layouts of Meta and Hugging Face and GGUF: find, verify, load, reshard, convert, fingerprint."""

from workbench.checkpoint.convert import convert
from workbench.checkpoint.fingerprint import fingerprint
from workbench.checkpoint.load import load_model
from workbench.checkpoint.manifest import open_checkpoint, quantisation_of, read_config, read_shape
from workbench.text.tokenizer import find_tokenizer

__all__ = [
    "convert",
    "find_tokenizer",
    "fingerprint",
    "load_model",
    "open_checkpoint",
    "quantisation_of",
    "read_config",
    "read_shape",
]
