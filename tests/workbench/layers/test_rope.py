"""RoPE: golden numbers of Llama 3.1's scaling, the two pair orders, and relative positions."""

import math
from typing import Any

import pytest
import torch

from workbench.config import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from workbench.hooks.rope_scaling import RopeScaling
from workbench.layers.rope import (
    frequencies,
    rotate,
    rotations,
    temperature,
    to_adjacent,
    to_half_split,
    what_if_frequencies,
)


def test_llama_3_wavelengths() -> None:
    """head_dim 128, theta 5e5: 29 of 64 pairs are longer than 8,192 tokens, the longest 2.56 million."""
    wavelengths = 2 * math.pi / frequencies(128, 500_000.0, dtype=torch.float64)
    assert (wavelengths > 8192).sum() == 29
    assert wavelengths.max() == pytest.approx(2.56e6, rel=0.01)
    assert (2 * math.pi / frequencies(128, 10_000.0, dtype=torch.float64) > 4096).sum() == 18


def test_llama_3_1_scaling() -> None:
    """Factor 8: 29 pairs unchanged, 6 blended, 29 divided by 8."""
    plain = frequencies(128, 500_000.0, dtype=torch.float64)
    scaled = frequencies(128, 500_000.0, Llama3Scaling(8.0), dtype=torch.float64)
    ratio = plain / scaled
    assert (ratio == 1).sum() == 29
    assert torch.isclose(ratio, torch.tensor(8.0, dtype=torch.float64), rtol=1e-12).sum() == 29
    assert ((ratio > 1.0001) & (ratio < 7.9999)).sum() == 6
    assert (ratio.diff() >= 0).all()


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_scaling_equals_hugging_face(factor: float) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(
        hidden_size=2048, num_attention_heads=32, head_dim=64, rope_parameters=parameters,
        max_position_embeddings=131_072,
    )  # fmt: skip
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    assert torch.allclose(frequencies(64, 500_000.0, Llama3Scaling(factor)), theirs, rtol=1e-6)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize(
    "changes",
    [
        {"factor": 4.0, "original_max_position_embeddings": 4096},
        {"factor": 32.0, "original_max_position_embeddings": 8192, "truncate": False},
        {"factor": 16.0, "original_max_position_embeddings": 2048, "beta_fast": 8.0, "beta_slow": 2.0},
        {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 0.707, "mscale_all_dim": 1.0},
        {"factor": 4.0, "original_max_position_embeddings": 4096, "attention_factor": 0.9},
        {"factor": 2.0, "original_max_position_embeddings": 16},
    ],
)
def test_yarn_equals_hugging_face(head_dim: int, theta: float, changes: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    group = {"rope_type": "yarn", "rope_theta": theta, **changes}
    shape = {"hidden_size": 2048, "num_attention_heads": 16, "head_dim": head_dim, "max_position_embeddings": 65_536}
    config = LlamaConfig(**shape, rope_parameters=dict(group))
    theirs, factor = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    read = ModelConfig.from_hf(
        {**shape, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 8, "rope_parameters": group}
    )
    assert isinstance(read.rope_scaling, YarnScaling)
    assert torch.allclose(frequencies(head_dim, theta, read.rope_scaling), theirs, rtol=1e-6)
    assert temperature(read.rope_scaling) == pytest.approx(factor, rel=1e-12)


LLAMA3 = {"head_dim": 128, "theta": 500_000.0, "context": 8192}
SMOLLM2 = {"head_dim": 64, "theta": 100_000.0, "context": 8192}
LLAMA2 = {"head_dim": 128, "theta": 10_000.0, "context": 4096}


@pytest.mark.parametrize("factor", [2.0, 4.0, 8.0])
@pytest.mark.parametrize("shape", [LLAMA3, SMOLLM2, LLAMA2], ids=["Llama 3", "SmolLM2", "Llama 2"])
def test_yarn_what_if_is_hugging_faces_default(shape: dict[str, Any], factor: float) -> None:
    """The what-if, the intervention and a configuration's own scaling are transformers' YaRN, rounded ends included."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    head_dim, theta, context = shape["head_dim"], shape["theta"], shape["context"]
    config = ModelConfig(
        dim=head_dim, n_layers=1, n_heads=1, n_kv_heads=1, ffn_dim=8, vocab_size=8, head_dim=head_dim,
        max_seq_len=context, rope_theta=theta,
    )  # fmt: skip
    group = {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "original_max_position_embeddings": context}
    for truncate in (True, False):
        parameters = group if truncate else group | {"truncate": False}
        theirs, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](
            LlamaConfig(
                hidden_size=head_dim, num_attention_heads=1, head_dim=head_dim, rope_parameters=dict(parameters),
                max_position_embeddings=int(factor) * context,
            ),
            "cpu",
        )  # fmt: skip
        changed = RopeScaling(yarn=factor, truncate=truncate).rotary(config)
        own = frequencies(head_dim, theta, YarnScaling(factor, context, truncate=truncate))
        exact = what_if_frequencies(config, yarn=factor, truncate=truncate)
        assert torch.equal(changed.frequencies, own)
        assert torch.allclose(own, theirs, rtol=1e-6, atol=1e-9)
        assert torch.allclose(exact.float(), theirs, rtol=1e-6, atol=1e-9)
        assert changed.temperature == pytest.approx(attention_factor, rel=1e-12)
    rounded, whole = (what_if_frequencies(config, yarn=factor, truncate=truncate) for truncate in (True, False))
    assert not torch.allclose(rounded, whole, rtol=1e-3)


def test_yarn_by_hand() -> None:
    """head_dim 4, theta 100: pairs of 1 and 0.1 radians; 32 and 1 turns in 1,000 tokens are at pairs 0.70 and 2.20."""
    scaling = YarnScaling(2.0, 1_000)
    # Rounded to 0 and 3: the second pair is a third of the way to half its frequency.
    assert frequencies(4, 100.0, scaling).tolist() == pytest.approx([1.0, 0.1 * (1 - 1 / 6)], rel=1e-6)
    exact = YarnScaling(2.0, 1_000, truncate=False)
    low, high = (4 * math.log(1_000 / (turns * 2 * math.pi)) / (2 * math.log(100)) for turns in (32, 1))
    assert (round(low, 2), round(high, 2)) == (0.7, 2.2)
    assert frequencies(4, 100.0, exact)[1].item() == pytest.approx(0.1 * (1 - (1 - low) / (high - low) / 2), rel=1e-6)
    assert temperature(scaling) == pytest.approx(1 + 0.1 * math.log(2))


def test_linear_scaling_divides_every_frequency() -> None:
    plain = frequencies(64, 10_000.0)
    assert torch.equal(frequencies(64, 10_000.0, LinearScaling(4.0)), plain / 4)
    assert temperature(LinearScaling(4.0)) == temperature(None) == temperature(Llama3Scaling()) == 1.0


def test_the_two_orders_are_permutations_of_each_other() -> None:
    weight = torch.arange(2 * 8 * 3).reshape(16, 3)
    assert torch.equal(to_adjacent(to_half_split(weight, 2), 2), weight)
    # Head 0's rows 0..7 are pairs (0,1) (2,3) (4,5) (6,7): Hugging Face wants the firsts, then the seconds.
    assert to_half_split(weight, 2)[:8, 0].tolist() == [3 * row for row in (0, 2, 4, 6, 1, 3, 5, 7)]


def test_a_rotation_by_hand() -> None:
    """A quarter turn of the first pair, an eighth of the second."""
    freqs = torch.tensor([math.pi / 2, math.pi / 4])
    x = torch.tensor([1.0, 0.0, 1.0, 1.0]).reshape(1, 1, 1, 4).expand(1, 2, 1, 4)
    turned = rotate(x, rotations(torch.tensor([0, 1]), freqs))
    assert torch.allclose(turned[0, 0, 0], torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert torch.allclose(turned[0, 1, 0], torch.tensor([0.0, 1.0, 0.0, math.sqrt(2)]), atol=1e-6)


def test_scores_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 64, generator=generator, dtype=torch.float64)
    freqs = frequencies(64, 500_000.0, dtype=torch.float64)

    def product(i: int, j: int) -> float:
        return float(
            (rotate(q, rotations(torch.tensor([i]), freqs)) * rotate(k, rotations(torch.tensor([j]), freqs))).sum()
        )

    assert product(1007, 1000) == pytest.approx(product(7, 0), abs=1e-10)
    assert abs(product(8, 0) - product(7, 0)) > 1e-3
    assert rotate(q.float(), rotations(torch.tensor([9]), freqs.float())).norm() == pytest.approx(
        float(q.norm()), rel=1e-5
    )
