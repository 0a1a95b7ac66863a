"""LoRA adapters merged on load, against peft's own merge."""

from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests.workbench.checkpoint.checkpoints import hf_model, make_config
from workbench.config import ModelConfig

peft = pytest.importorskip("peft", reason="peft is not installed")
# peft and transformers warn of each other's deprecated names; a warning of ours is still an error.
pytestmark = pytest.mark.filterwarnings("ignore", "error::workbench.errors.WorkbenchWarning")

QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(40).view(1, -1) * 7 % 128


def write_base(folder: Path, config: ModelConfig | None = None) -> Any:
    """A random base in Hugging Face's layout."""
    theirs = hf_model(config or make_config())
    theirs.save_pretrained(folder)
    return theirs


def write_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter with random factors, and random values in modules_to_save, written by peft."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = peft.get_peft_model(
        transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32),
        peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 12} | settings),
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.LlamaForCausalLM.from_pretrained(base, dtype=dtype)
    return peft.PeftModel.from_pretrained(theirs, adapter).merge_and_unload().eval()


def assert_equal_logits(ours: Any, theirs: Any, other: Any | None = None) -> None:
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert torch.allclose(ours(IDS), expected, atol=1e-5, rtol=1e-5), (ours(IDS) - expected).abs().max()
        if other is not None:
            assert (expected - other(IDS).logits).abs().max() > 0.01, "the adapter changes nothing"


SETTINGS: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "all weights": {"target_modules": [*QKVO, *MLP]},
    "all-linear": {"target_modules": "all-linear"},
    "a regular expression": {"target_modules": r"model\.layers\.1\..*(q|k|down)_proj"},
    "rank-stabilised": {"target_modules": QKVO, "use_rslora": True},
    "rank and alpha patterns": {
        "target_modules": [*QKVO, *MLP],
        "rank_pattern": {"q_proj": 6, r"layers\.1\.mlp\.up_proj": 2, "model.layers.0.self_attn.o_proj": 1},
        "alpha_pattern": {"k_proj": 1, r"0\.mlp\.(up|down)_proj": 31.5},
    },
    "rank patterns, rank-stabilised": {"target_modules": QKVO, "rank_pattern": {"v_proj": 9}, "use_rslora": True},
    "layers to transform": {"target_modules": QKVO, "layers_to_transform": [1]},
    "layers to transform, with a pattern": {
        "target_modules": QKVO,
        "layers_to_transform": 0,
        "layers_pattern": "layers",
    },
    "excluded modules": {"target_modules": QKVO, "exclude_modules": ["layers.0.self_attn.q_proj"]},
    "excluded by an expression": {"target_modules": QKVO, "exclude_modules": r".*\.1\.self_attn\.(k|o)_proj"},
    "saved modules": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "saved norms and projection": {
        "target_modules": ["q_proj", "down_proj"],
        "modules_to_save": ["input_layernorm", "k_proj", "model.norm"],
    },
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "embedding and output": {"target_modules": ["embed_tokens", "lm_head"]},
    "dropout": {"target_modules": QKVO, "lora_dropout": 0.3},
    "fan in, fan out": {"target_modules": QKVO, "fan_in_fan_out": True},
    "bias without biases": {"target_modules": QKVO, "bias": "lora_only"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_the_merge_of_peft(tmp_path: Path, name: str) -> None:
    base = write_base(tmp_path / "base")
    adapter = write_adapter(tmp_path / "base", tmp_path / "adapter", **SETTINGS[name])
    ours = wb.load_model(tmp_path / "base", adapter=adapter)
    assert_equal_logits(ours, merged_by_peft(tmp_path / "base", adapter), base)
