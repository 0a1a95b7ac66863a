"""Published configurations in both layouts, and every error that one can have."""

from typing import Any

import pytest

from workbench.config import Llama3Scaling, ModelConfig
from workbench.errors import ConfigError

# Meta's params.json as published.
META_8B = {
    "dim": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "multiple_of": 1024,
    "ffn_dim_multiplier": 1.3,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
}
META_70B = META_8B | {"dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 4096}
META_1B = META_8B | {"dim": 2048, "n_layers": 16, "multiple_of": 256, "ffn_dim_multiplier": 1.5}
META_3B = META_8B | {"dim": 3072, "n_layers": 28, "n_heads": 24, "multiple_of": 256, "ffn_dim_multiplier": 1.0}

HF_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


@pytest.mark.parametrize(
    ("params", "ffn_dim", "billions", "factor"),
    [
        (META_8B, 14336, 8.03, None),
        (META_70B, 28672, 70.55, None),
        (META_8B | {"use_scaled_rope": True}, 14336, 8.03, 8.0),
        (META_1B | {"use_scaled_rope": True, "tied_output": True}, 8192, 1.24, 32.0),
        (META_3B | {"use_scaled_rope": True, "tied_output": True}, 8192, 3.21, 32.0),
    ],
)
def test_published_params(params: dict[str, Any], ffn_dim: int, billions: float, factor: float | None) -> None:
    config = ModelConfig.from_meta(params)
    assert config.ffn_dim == ffn_dim
    assert round(config.n_params / 1e9, 2) == billions
    assert (config.rope_scaling.factor if config.rope_scaling else None) == factor
    assert config.max_seq_len == (131_072 if factor else 8_192)
    assert ModelConfig.from_meta(config.to_meta()) == config
    assert ModelConfig.from_hf(config.to_hf()) == config


def test_published_hugging_face_config() -> None:
    config = ModelConfig.from_hf(HF_8B)
    assert config == ModelConfig.from_meta(META_8B | {"use_scaled_rope": True})
    newer = without(HF_8B, "rope_theta", "rope_scaling", "torch_dtype")
    parameters = HF_8B["rope_scaling"] | {"rope_theta": 500000.0}
    assert ModelConfig.from_hf(newer | {"rope_parameters": parameters, "dtype": "bfloat16"}) == config
    assert ModelConfig.from_hf(HF_8B | {"rope_parameters": parameters, "head_dim": 128}) == config
    plain = newer | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    assert ModelConfig.from_hf(plain).rope_scaling is None
    assert ModelConfig.from_hf(without(HF_8B, "rope_scaling") | {"num_key_value_heads": None}).n_kv_heads == 32


def test_any_scaling_is_stated_in_both_layouts() -> None:
    scaling = Llama3Scaling(factor=4.0, low_freq_factor=1.5, high_freq_factor=3.0, original_context=4096)
    config = ModelConfig(64, 2, 4, 2, 96, 128, head_dim=32, rope_scaling=scaling, tied_output=True)
    assert ModelConfig.from_meta(config.to_meta()) == config
    assert ModelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimension": 3}, "unknown key 'dimension'"),
        ({"n_kv_heads": 5}, "n_heads 32 is not a multiple of n_kv_heads 5"),
        ({"n_heads": 33, "n_kv_heads": 33}, "not divisible by n_heads"),
        ({"dim": "4096"}, "dim must be a whole number, found '4096'"),
        ({"n_layers": None}, "n_layers is missing"),
        ({"n_layers": 0}, "n_layers must be a positive"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"ffn_dim": 14000}, "ffn_dim is 14000 but multiple_of and ffn_dim_multiplier give 14336"),
        ({"rope_scaling_factor": 8.0}, "use_scaled_rope is not true"),
        ({"use_scaled_rope": "yes"}, "must be true or false"),
        ({"rope_theta": "big"}, "rope_theta must be a number"),
        ({"norm_eps": float("nan")}, "norm_eps must be a number"),
        ({"norm_eps": 0.0}, "must be positive"),
        ({"ffn_dim_multiplier": []}, "ffn_dim_multiplier must be a number"),
    ],
)
def test_wrong_params(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_meta(META_8B | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"sliding_window": 4096}, "sliding_window is 4096, shorter than the context"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "RoPE type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor must be a number"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, "rope_theta is 500000.0 but"),
        ({"rope_parameters": {"rope_type": "default"}}, "contradict each other"),
        ({"hidden_size": 4096.0}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"tie_word_embeddings": 1}, "must be true or false"),
    ],
)
def test_wrong_hugging_face_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_hf(HF_8B | changes)
