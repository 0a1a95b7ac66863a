"""A model-analysis workbench for Llama 3: load a model, look inside it, change it, and measure it.

import workbench as wb
model = wb.load_model("demo")
logits, cap = model.run_with_capture(tokens, ["blocks.*.attn.hook_pattern"])
"""

from workbench.checkpoint import load_model
from workbench.config import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from workbench.errors import WorkbenchError
from workbench.hooks.capture import Capture
from workbench.hooks.hook_points import HOOKS, hook_names
from workbench.hooks.intervention import active_interventions, clear_interventions
from workbench.hooks.interventions import Ablate, Add, Patch, Scale
from workbench.hooks.own_function import Hook
from workbench.hooks.rope_scaling import RopeScaling
from workbench.inference.generate import Generation, generate, stream
from workbench.inference.scoring import score, score_rolling
from workbench.layers.kv_cache import KVCache
from workbench.model import Transformer
from workbench.text.chat import encode_chat, render_chat
from workbench.text.chat_format import decode_message
from workbench.text.chat_message import Message, ToolCall
from workbench.text.tokenizer import Tokenizer

__all__ = [
    "Ablate",
    "Add",
    "Capture",
    "Generation",
    "HOOKS",
    "Hook",
    "KVCache",
    "LinearScaling",
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
    "YarnScaling",
    "active_interventions",
    "clear_interventions",
    "decode_message",
    "encode_chat",
    "generate",
    "hook_names",
    "load_model",
    "render_chat",
    "score",
    "score_rolling",
    "stream",
]
