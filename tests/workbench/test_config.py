"""Published configurations in both layouts, and every error that one can have."""

from typing import Any

import pytest

from workbench.config import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from workbench.config.hf_config import ignored_keys
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
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
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


ODD: dict[str, Any] = {
    "huge": 10**400,
    "huge and negative": -(10**400),
    "past a float": 10**309,
    "large": 2**62,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "true": True,
    "false": False,
    "negative": -1,
    "zero": 0,
    "fraction": 1.5,
    "text": "x" * 5_000,
    "list": [10**400] * 5_000,
    "object": {"a" * 5_000: {"b": [1] * 5_000}},
    "nested": [[[[[[1]]]]]],
}
ROPE_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "rope_type")


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
def test_an_odd_value_gives_a_short_error_or_none(value: Any) -> None:
    """No key of either file makes anything but a configuration or a short ConfigError."""
    readers = [
        (ModelConfig.from_hf, HF_8B, [{key: value} for key in HF_8B]),
        (ModelConfig.from_hf, HF_8B, [{"rope_scaling": HF_8B["rope_scaling"] | {key: value}} for key in ROPE_KEYS]),
        (ModelConfig.from_hf, HF_8B, [{key: value} for key in ("head_dim", "own_key", "sliding_window", "n_layers")]),
        (ModelConfig.from_meta, META_8B, [{key: value} for key in META_8B]),
        (ModelConfig.from_meta, META_8B | {"use_scaled_rope": True}, [{"rope_scaling_factor": value}]),
        (ModelConfig.from_meta, META_8B, [{key: value} for key in ("head_dim", "ffn_dim", "max_seq_len", "own_key")]),
    ]
    refused = 0
    for read, values, changes in readers:
        for change in changes:
            try:
                assert isinstance(read(values | change), ModelConfig)
            except ConfigError as error:
                refused += 1
                assert len(str(error)) < 350 and str(error).startswith(("config.json", "params.json"))
    assert refused > 10


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [
        ("num_hidden_layers", 1_025, "1,024"),
        ("num_attention_heads", 8_192, "4,096"),
        ("hidden_size", 2**20, "131,072"),
        ("vocab_size", 2**30, "8,388,608"),
        ("intermediate_size", 2**30, "1,048,576"),
        ("max_position_embeddings", 2**30, "134,217,728"),
    ],
)
def test_sizes_are_bounded(key: str, value: int, limit: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is {value}; the largest supported is {limit}"):
        ModelConfig.from_hf(HF_8B | {key: value})


def test_multiple_of_zero() -> None:
    with pytest.raises(ConfigError, match="multiple_of and ffn_dim_multiplier must be positive, found 0"):
        ModelConfig.from_meta(META_8B | {"multiple_of": 0})


def test_unknown_keys_are_listed() -> None:
    config = HF_8B | {"own_key": 1, "rope_scaling": HF_8B["rope_scaling"] | {"odd": 2}, "bos_token_id": 1, "_x": 3}
    assert ModelConfig.from_hf(config) == ModelConfig.from_hf(HF_8B)
    assert ignored_keys(config, "config.json") == ("rope_scaling.odd", "own_key")
    assert ignored_keys(HF_8B, "config.json") == ()


def test_everything_that_transformers_writes_is_known() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import json

    config = json.loads(transformers.LlamaConfig(num_labels=3).to_json_string(use_diff=False))
    assert len(config) > 30 and ignored_keys(config, "config.json") == ()


def test_windows_that_are_not_in_use() -> None:
    for harmless in (
        {"sliding_window": None},
        {"sliding_window": 4096, "use_sliding_window": False},
        {"sliding_window": HF_8B["max_position_embeddings"]},
        {"use_sliding_window": True, "sliding_window": None},
    ):
        assert ModelConfig.from_hf(HF_8B | harmless) == ModelConfig.from_hf(HF_8B)


def test_rope_types() -> None:
    def scaling(**group: Any) -> Any:
        return ModelConfig.from_hf(HF_8B | {"rope_scaling": group, "max_position_embeddings": 32_768}).rope_scaling

    assert scaling(type="linear", factor=1.0) is None and scaling(rope_type="default", factor=4.0) is None
    assert scaling(type="linear", factor=2) == LinearScaling(2.0)
    yarn = scaling(type="yarn", factor=4.0, original_max_position_embeddings=8192.0)
    assert yarn == YarnScaling(4.0, 8192) and round(yarn.attention_factor, 6) == 1.138629  # 0.1 ln 4 + 1
    # Without a factor, the ratio of the contexts; without the original context, the context itself.
    assert scaling(type="yarn", original_max_position_embeddings=8192) == yarn
    assert scaling(type="yarn", factor=4.0).original_context == 32_768
    outside = HF_8B | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1}}
    assert ModelConfig.from_hf(outside | {"original_max_position_embeddings": 8192}).rope_scaling == yarn
    for config in (
        ModelConfig.from_hf(outside),
        ModelConfig.from_hf(HF_8B | {"rope_scaling": {"type": "linear", "factor": 2}}),
    ):
        assert ModelConfig.from_hf(config.to_hf()) == config
        with pytest.raises(ConfigError, match="params.json cannot state RoPE of type (yarn|linear)"):
            config.to_meta()


@pytest.mark.parametrize(
    ("params", "theta", "context"),
    [
        ({}, 10_000.0, 4096),
        ({"norm_eps": 1e-6}, 10_000.0, 2048),
        ({"rope_theta": 1e6}, 1e6, 16_384),
        ({"rope_theta": 500_000.0}, 500_000.0, 8192),
        ({"vocab_size": 128_256}, 500_000.0, 8192),
        ({"use_scaled_rope": True}, 500_000.0, 131_072),
        ({"max_seq_len": 123, "rope_theta": 77.0}, 77.0, 123),
    ],
)
def test_what_metas_files_leave_to_the_code(params: dict[str, Any], theta: float, context: int) -> None:
    """Llama 1, Llama 2, Code Llama and Llama 3, by the rules of their files."""
    llama2 = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-5, "vocab_size": 32_000}
    config = ModelConfig.from_meta(llama2 | params)
    assert (config.rope_theta, config.max_seq_len, config.ffn_dim) == (theta, context, 11_008)
    assert ModelConfig.from_meta(llama2 | {"vocab_size": -1}, vocab_size=32_016).vocab_size == 32_016
    assert ModelConfig.from_meta(llama2, llama3=True).rope_theta == 500_000.0
