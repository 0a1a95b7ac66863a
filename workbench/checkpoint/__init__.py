"""Checkpoints: find, verify, load, reshard, convert and fingerprint Meta's and Hugging Face's directories."""

from workbench.checkpoint.convert import convert
from workbench.checkpoint.fingerprint import fingerprint
from workbench.checkpoint.load import load_model
from workbench.checkpoint.manifest import open_checkpoint, read_config, read_shape
from workbench.text.tokenizer import find_tokenizer

__all__ = ["convert", "find_tokenizer", "fingerprint", "load_model", "open_checkpoint", "read_config", "read_shape"]
