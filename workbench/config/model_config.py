"""`ModelConfig`: the shape of a Llama, read from Meta's `params.json` or Hugging Face's `config.json`.

It knows nothing of files or tensors: it reads a dictionary and returns a frozen value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from workbench.config.hf_config import hf_scaling, read_hf
from workbench.config.keys import LARGEST, naming, short
from workbench.config.meta_params import read_meta
from workbench.config.rope_scaling import PLAIN_CONTEXT, LinearScaling, Llama3Scaling, Scaling, YarnScaling
from workbench.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama; fields have the names of Meta's params.json where they exist there."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    vocab_size: int
    head_dim: int = 0  # 0: dim / n_heads
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: Scaling | None = None
    max_seq_len: int = PLAIN_CONTEXT
    tied_output: bool = False

    def __post_init__(self) -> None:
        for name, largest in LARGEST.items():
            value, least = getattr(self, name), 0 if name == "head_dim" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name} must be a positive whole number, found {short(value)}.")
            if value > largest:
                raise ConfigError(f"{name} is {short(value)}; the largest supported is {largest:,}.")
        if self.head_dim == 0:
            if self.dim % self.n_heads:
                raise ConfigError(f"dim {self.dim} is not divisible by n_heads {self.n_heads}; set head_dim.")
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        if self.head_dim < 2 or self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for RoPE, found {self.head_dim}.")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}: "
                "each key/value head serves a whole group of query heads."
            )
        if not 0 < self.norm_eps < math.inf or not 0 < self.rope_theta < math.inf:
            raise ConfigError(f"norm_eps and rope_theta must be positive, found {self.norm_eps}, {self.rope_theta}.")
        if isinstance(self.rope_scaling, YarnScaling) and self.rope_theta <= 1:
            raise ConfigError(f"YaRN needs rope_theta > 1, found {self.rope_theta}.")

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.n_heads // self.n_kv_heads

    @property
    def original_context(self) -> int:
        """The context in tokens before RoPE was scaled, which linear scaling does not state."""
        scaling = self.rope_scaling
        return self.max_seq_len if scaling is None or isinstance(scaling, LinearScaling) else scaling.original_context

    @property
    def n_params(self) -> int:
        """Number of parameters; a tied output is counted once."""
        return sum(self.parameters_by_part.values())

    @property
    def parameters_by_part(self) -> dict[str, int]:
        """Number of parameters of each part; a tied output counts with the embedding.

        Exact:  they sum to the number of parameters in the model.
        """
        table = self.vocab_size * self.dim
        counts = {
            "Embedding": table,
            "Attention": self.n_layers * 2 * self.dim * self.head_dim * (self.n_heads + self.n_kv_heads),
            "MLP": self.n_layers * 3 * self.dim * self.ffn_dim,
            "Norms": (2 * self.n_layers + 1) * self.dim,
            "Output": 0 if self.tied_output else table,
        }
        return {part: count for part, count in counts.items() if count}

    @classmethod
    def from_meta(
        cls,
        params: dict[str, Any],
        *,
        source: str = "params.json",
        vocab_size: int | None = None,
        llama3: bool = False,
    ) -> ModelConfig:
        """The configuration in Meta's `params.json`.

        Values that Meta's files leave to the code have keys of this project: `tied_output`, `max_seq_len`,
        `rope_low_freq_factor`, `rope_original_context`. Either `ffn_dim`, or Meta's `multiple_of` and
        `ffn_dim_multiplier`, gives the MLP's size. `vocab_size` is what -1 in the file stands for. A file that states
        no `rope_theta` is Llama 3's if `llama3` is set, if its RoPE is scaled or its vocabulary has 128,256 tokens;
        else Llama 1's or 2's.
        Raises: ConfigError for unknown, missing or contradictory keys.
        """
        with naming(source):
            return cls(**read_meta(params, source, vocab_size=vocab_size, llama3=llama3))

    @property
    def in_meta_format(self) -> bool:
        """Whether Meta's `params.json` can state this configuration: it has no linear or YaRN scaling of RoPE."""
        return not isinstance(self.rope_scaling, (LinearScaling, YarnScaling))

    def to_meta(self) -> dict[str, Any]:
        """A `params.json` that `from_meta` reads as an equal configuration.

        Raises: ConfigError for a RoPE scaling that Meta's code does not have.
        """
        scaling = self.rope_scaling
        if scaling is not None and not isinstance(scaling, Llama3Scaling):
            kind = hf_scaling(scaling) or {}
            raise ConfigError(
                f"Meta's params.json cannot state RoPE of type {kind.get('rope_type')}; use Hugging Face's layout."
            )
        params: dict[str, Any] = {
            "dim": self.dim,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "vocab_size": self.vocab_size,
            "ffn_dim": self.ffn_dim,
            "norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "use_scaled_rope": scaling is not None,
            "max_seq_len": self.max_seq_len,
            "tied_output": self.tied_output,
        }
        if self.head_dim * self.n_heads != self.dim:
            params["head_dim"] = self.head_dim
        if scaling:
            params["rope_scaling_factor"] = scaling.factor
            params["rope_high_freq_factor"] = scaling.high_freq_factor
            # Meta has no keys for these two: its models use the defaults.
            if scaling.low_freq_factor != 1.0:
                params["rope_low_freq_factor"] = scaling.low_freq_factor
            if scaling.original_context != PLAIN_CONTEXT:
                params["rope_original_context"] = scaling.original_context
        return params

    @classmethod
    def from_hf(cls, config: dict[str, Any], *, source: str = "config.json") -> ModelConfig:
        """The configuration in Hugging Face's `config.json` (transformers 4 and 5).

        Raises: ConfigError for another architecture, keys that change the computation, missing or contradictory keys.
        """
        with naming(source):
            return cls(**read_hf(config, source))

    def to_hf(self) -> dict[str, Any]:
        """A `config.json` that transformers 4 and 5 read."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn_dim,
            "vocab_size": self.vocab_size,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": hf_scaling(self.rope_scaling),
            "max_position_embeddings": self.max_seq_len,
            "tie_word_embeddings": self.tied_output,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
        }
