"""A model-analysis workbench for Llama 3: load a Llama, look inside it, change it, measure it.

import workbench as wb
model = wb.load_model("demo")
logits, cap = model.run_with_capture(tokens, ["blocks.*.attn.hook_pattern"])
"""

from workbench.cache import KVCache
from workbench.capture import Capture
from workbench.chat import Message, ToolCall, decode_message, encode_chat
from workbench.checkpoint import load_model
from workbench.config import Llama3Scaling, ModelConfig
from workbench.errors import WorkbenchError
from workbench.generate import Generation, generate, stream
from workbench.hooks import HOOKS, hook_names
from workbench.intervene import Ablate, Add, Patch, Scale
from workbench.model import Transformer
from workbench.rope_scaling import RopeScaling
from workbench.scoring import score, score_rolling
from workbench.tokenizer import Tokenizer

__all__ = [
    "Ablate",
    "Add",
    "Capture",
    "Generation",
    "HOOKS",
    "KVCache",
    "Llama3Scaling",
    "Message",
    "ModelConfig",
    "Patch",
    "RopeScaling",
    "Scale",
    "Tokenizer",
    "ToolCall",
    "Transformer",
    "WorkbenchError",
    "decode_message",
    "encode_chat",
    "generate",
    "hook_names",
    "load_model",
    "score",
    "score_rolling",
    "stream",
]
