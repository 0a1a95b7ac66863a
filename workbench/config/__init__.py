"""The shape of a Llama model, and its reading from Meta's `params.json` or Hugging Face's `config.json`."""

from workbench.config.model_config import ModelConfig
from workbench.config.rope_scaling import (
    PLAIN_CONTEXT,
    SCALED_CONTEXT,
    LinearScaling,
    Llama3Scaling,
    Scaling,
    YarnScaling,
    scaling_from_fields,
)

__all__ = [
    "PLAIN_CONTEXT",
    "SCALED_CONTEXT",
    "LinearScaling",
    "Llama3Scaling",
    "ModelConfig",
    "Scaling",
    "YarnScaling",
    "scaling_from_fields",
]
