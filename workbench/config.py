"""`ModelConfig`: the shape of a Llama 3 model, read from Meta's `params.json` or Hugging Face's `config.json`.

It knows nothing of files or tensors: it reads a dictionary and returns a frozen value. An unknown or contradictory key
is an error, because ignoring it silently would give a wrong model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from workbench.errors import ConfigError

# Context of the published Llama 3: 8,192 tokens; with scaled RoPE (3.1 and later) 131,072.
PLAIN_CONTEXT, SCALED_CONTEXT = 8_192, 131_072

# Meta's params.json says only `use_scaled_rope`. Its 3.2 text models (1B and 3B) were trained with factor 32,
# every other scaled model with 8, so the shape gives the factor if the file does not state it.
FACTOR_32_SHAPES = {(2048, 16), (3072, 28)}

_META_SCALING = (
    "rope_scaling_factor",
    "rope_low_freq_factor",
    "rope_high_freq_factor",
    "rope_original_context",
)

# Fixed properties of the model; other values would be another model.
_HF_FIXED = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "quantization_config": None,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
}

# Other keys that transformers 4 and 5 write; they do not change what the model computes.
_HF_HARMLESS = """
    architectures auto_map attention_dropout bos_token_id eos_token_id pad_token_id sep_token_id
    chat_template chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id dtype
    torch_dtype exponential_decay_length_penalty finetuning_task id2label label2id initializer_range
    is_decoder output_attentions output_hidden_states prefix pretraining_tp problem_type pruned_heads
    remove_invalid_values return_dict task_specific_params tf_legacy_loss tie_encoder_decoder
    tokenizer_class torchscript transformers_version use_bfloat16 use_cache bad_words_ids
    begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    forced_bos_token_id forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_scores repetition_penalty
    return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
""".split()  # noqa: SIM905 (fifty lines otherwise)


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's RoPE scaling: low frequencies are divided by `factor`, high ones kept, with a ramp between."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8_192

    def __post_init__(self) -> None:
        if self.factor < 1 or self.original_context < 1 or self.low_freq_factor <= 0:
            raise ConfigError(f"RoPE scaling needs factor >= 1 and positive bounds, found {self}.")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"RoPE scaling needs high_freq_factor > low_freq_factor, "
                f"found {self.high_freq_factor} and {self.low_freq_factor}."
            )


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama 3 model; fields have the names of Meta's params.json where they exist there."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    vocab_size: int
    head_dim: int = 0  # 0: dim / n_heads
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: Llama3Scaling | None = None
    max_seq_len: int = PLAIN_CONTEXT
    tied_output: bool = False

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size", "max_seq_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be a positive whole number, found {value!r}.")
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
        if not self.norm_eps > 0 or not self.rope_theta > 0:
            raise ConfigError(f"norm_eps and rope_theta must be positive, found {self.norm_eps}, {self.rope_theta}.")

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.n_heads // self.n_kv_heads

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
    def from_meta(cls, params: dict[str, Any], *, source: str = "params.json") -> ModelConfig:
        """The configuration in Meta's `params.json`.

        Values that Meta's files leave to the code have keys of this project: `tied_output`, `max_seq_len`,
        `rope_low_freq_factor`, `rope_original_context`. Either `ffn_dim`, or Meta's `multiple_of` and
        `ffn_dim_multiplier`, gives the MLP's size.
        Raises: ConfigError for unknown, missing or contradictory keys.
        """
        keys = _Keys(params, source)
        dim, n_heads = keys.whole("dim"), keys.whole("n_heads")
        n_layers = keys.whole("n_layers")
        scaling = None
        scaled = keys.flag("use_scaled_rope", False)
        stated = [name for name in _META_SCALING if params.get(name) is not None]
        if scaled:
            scaling = Llama3Scaling(
                factor=keys.number("rope_scaling_factor", 32.0 if (dim, n_layers) in FACTOR_32_SHAPES else 8.0),
                low_freq_factor=keys.number("rope_low_freq_factor", 1.0),
                high_freq_factor=keys.number("rope_high_freq_factor", 4.0),
                original_context=keys.whole("rope_original_context", PLAIN_CONTEXT),
            )
        elif stated:
            raise ConfigError(f"{source}: {stated[0]} is {params[stated[0]]} but use_scaled_rope is not true.")
        ffn_dim = keys.take("ffn_dim", None)
        multiple_of = keys.whole("multiple_of", 256)
        multiplier = keys.number("ffn_dim_multiplier") if params.get("ffn_dim_multiplier") is not None else None
        computed = swiglu_size(dim, multiple_of=multiple_of, multiplier=multiplier)
        if ffn_dim is None:
            ffn_dim = computed
        elif ("multiple_of" in params or multiplier is not None) and ffn_dim != computed:
            raise ConfigError(
                f"{source}: ffn_dim is {ffn_dim} but multiple_of and ffn_dim_multiplier give {computed}; remove one."
            )
        vocab_size = keys.whole("vocab_size")
        if vocab_size < 1:
            raise ConfigError(f"{source}: vocab_size is {vocab_size}; set it to the size of the tokenizer.")
        keys.ignore("max_batch_size", "model_parallel_size", "qk_norm")
        config = cls(
            dim=dim,
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=keys.whole("n_kv_heads", n_heads),
            head_dim=keys.whole("head_dim", 0),
            ffn_dim=ffn_dim,
            vocab_size=vocab_size,
            norm_eps=keys.number("norm_eps", 1e-5),
            rope_theta=keys.number("rope_theta", 500_000.0),
            rope_scaling=scaling,
            max_seq_len=keys.whole("max_seq_len", SCALED_CONTEXT if scaling else PLAIN_CONTEXT),
            tied_output=keys.flag("tied_output", False),
        )
        keys.finish()
        return config

    def to_meta(self) -> dict[str, Any]:
        """A `params.json` that `from_meta` reads as an equal configuration."""
        params: dict[str, Any] = {
            "dim": self.dim,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "vocab_size": self.vocab_size,
            "ffn_dim": self.ffn_dim,
            "norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "use_scaled_rope": self.rope_scaling is not None,
            "max_seq_len": self.max_seq_len,
            "tied_output": self.tied_output,
        }
        if self.head_dim * self.n_heads != self.dim:
            params["head_dim"] = self.head_dim
        if self.rope_scaling:
            params["rope_scaling_factor"] = self.rope_scaling.factor
            params["rope_high_freq_factor"] = self.rope_scaling.high_freq_factor
            # Meta has no keys for these two: its models use the defaults.
            if self.rope_scaling.low_freq_factor != 1.0:
                params["rope_low_freq_factor"] = self.rope_scaling.low_freq_factor
            if self.rope_scaling.original_context != PLAIN_CONTEXT:
                params["rope_original_context"] = self.rope_scaling.original_context
        return params

    @classmethod
    def from_hf(cls, config: dict[str, Any], *, source: str = "config.json") -> ModelConfig:
        """The configuration in Hugging Face's `config.json` (transformers 4 and 5).

        Raises: ConfigError for another architecture, biases, quantised weights, an unsupported RoPE type, unknown
            keys, or contradictions.
        """
        keys = _Keys(config, source)
        model_type = keys.take("model_type", "llama")
        if model_type != "llama":
            raise ConfigError(f"{source}: model_type is {model_type!r}; only 'llama' text models can be loaded.")
        for name, required in _HF_FIXED.items():
            value = keys.take(name, required)
            if value != required:
                raise ConfigError(f"{source}: {name} is {value!r}; Llama 3 has {required!r}.")
        theta, scaling = _hf_rope(keys, source)
        n_heads = keys.whole("num_attention_heads")
        keys.ignore(*_HF_HARMLESS, *(name for name in config if name.startswith(("_", "unsloth"))))
        result = cls(
            dim=keys.whole("hidden_size"),
            n_layers=keys.whole("num_hidden_layers"),
            n_heads=n_heads,
            n_kv_heads=keys.whole("num_key_value_heads", n_heads),
            head_dim=keys.whole("head_dim", 0),
            ffn_dim=keys.whole("intermediate_size"),
            vocab_size=keys.whole("vocab_size"),
            norm_eps=keys.number("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            max_seq_len=keys.whole("max_position_embeddings", SCALED_CONTEXT if scaling else PLAIN_CONTEXT),
            tied_output=keys.flag("tie_word_embeddings", False),
        )
        keys.finish()
        return result

    def to_hf(self) -> dict[str, Any]:
        """A `config.json` that transformers 4 and 5 read."""
        scaling: dict[str, Any] | None = None
        if self.rope_scaling:
            scaling = {
                "rope_type": "llama3",
                "factor": self.rope_scaling.factor,
                "low_freq_factor": self.rope_scaling.low_freq_factor,
                "high_freq_factor": self.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": self.rope_scaling.original_context,
            }
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
            "rope_scaling": scaling,
            "max_position_embeddings": self.max_seq_len,
            "tie_word_embeddings": self.tied_output,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
        }


def swiglu_size(dim: int, *, multiple_of: int, multiplier: float | None) -> int:
    """Meta's rule for the MLP's size: two thirds of 4 dim, times the multiplier, rounded up to `multiple_of`."""
    size = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return multiple_of * ((size + multiple_of - 1) // multiple_of)


def _hf_rope(keys: _Keys, source: str) -> tuple[float, Llama3Scaling | None]:
    """Theta and scaling, from `rope_theta` + `rope_scaling` (transformers 4) or `rope_parameters` (5)."""
    stated = keys.take("rope_theta", None)
    groups = {name: keys.group(name) for name in ("rope_scaling", "rope_parameters")}
    settings = []
    for name, group in groups.items():
        if group is None:
            continue
        inner = _Keys({**group, "rope_theta": group.get("rope_theta", stated)}, f"{source}, {name}")
        settings.append(_hf_rope_group(inner))
        if stated is not None and inner.values["rope_theta"] != stated:
            raise ConfigError(f"{source}: rope_theta is {stated} but {name} says {inner.values['rope_theta']}.")
    if not settings:
        return keys.number("rope_theta", 10_000.0), None
    if settings[0] != settings[-1]:
        raise ConfigError(f"{source}: rope_scaling and rope_parameters contradict each other.")
    return settings[0]


def _hf_rope_group(keys: _Keys) -> tuple[float, Llama3Scaling | None]:
    theta = keys.number("rope_theta", 10_000.0)
    kind = keys.take("rope_type", keys.take("type", "default"))  # "type" in early files
    if kind not in ("default", "llama3"):
        raise ConfigError(f"{keys.source}: unknown RoPE type {kind!r}; Llama 3 has 'default' and 'llama3'.")
    if kind == "default":
        keys.ignore("factor", "original_max_position_embeddings")
        keys.finish()
        return theta, None
    scaling = Llama3Scaling(
        keys.number("factor"),
        keys.number("low_freq_factor"),
        keys.number("high_freq_factor"),
        keys.whole("original_max_position_embeddings"),
    )
    keys.finish()
    return theta, scaling


class _Keys:
    """A dictionary that records which keys were read, so that unknown keys can be rejected."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values, self.source, self.seen = values, source, set[str]()

    def take(self, name: str, default: Any) -> Any:
        """The value, or the default if the key is absent or null."""
        self.seen.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.take(name, default)
        if value is None:
            raise ConfigError(f"{self.source}: {name} is missing.")
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{self.source}: {name} must be a whole number, found {value!r}.")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.take(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise ConfigError(f"{self.source}: {name} must be a number, found {value!r}.")
        return float(value)

    def group(self, name: str) -> dict[str, Any] | None:
        value = self.take(name, None)
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{self.source}: {name} must be an object, found {value!r}.")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.source}: {name} must be true or false, found {value!r}.")
        return value

    def ignore(self, *names: str) -> None:
        self.seen.update(names)

    def finish(self) -> None:
        unknown = sorted(name for name, value in self.values.items() if name not in self.seen and value is not None)
        if unknown:
            raise ConfigError(f"{self.source}: unknown key {', '.join(unknown)}; ignoring it could give a wrong model.")
