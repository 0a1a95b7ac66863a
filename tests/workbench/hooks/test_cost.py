"""Cost of hook points without subscriptions: identical logits, and no Python call per hook point."""

import subprocess
import sys
from types import FrameType
from typing import Any

import torch

import workbench as wb
from benchmarks.bare import bare_twin

TOKENS = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(0))


def calls_of_a_decode_step(model: Any) -> int:
    """Python functions entered during one decode step."""
    cache = model.empty_cache(2, 32)
    model(TOKENS, cache)
    model(TOKENS[:, :1], cache)  # fills the caches
    entered = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal entered
        entered += event == "call"

    sys.setprofile(count)
    try:
        model(TOKENS[:, :1], cache)
    finally:
        sys.setprofile(None)
    return entered


@torch.no_grad()
def test_logits_are_those_of_the_bare_model_to_the_last_bit(tiny_model) -> None:
    bare = bare_twin(tiny_model)
    assert torch.equal(tiny_model(TOKENS), bare(TOKENS))
    assert torch.equal(tiny_model.bfloat16()(TOKENS), bare.bfloat16()(TOKENS))


@torch.no_grad()
def test_a_decode_step_calls_nothing_for_its_hook_points(tiny_config) -> None:
    """Two look-ups per run (three calls each), for any number of layers."""
    extra = []
    for n_layers in (2, 6):
        config = wb.ModelConfig(**{**vars(tiny_config), "n_layers": n_layers})
        model = wb.Transformer(config)
        extra.append(calls_of_a_decode_step(model) - calls_of_a_decode_step(bare_twin(model)))
    assert extra[0] == extra[1] <= 6


def test_a_model_without_memory_is_made_without_torch_s_compiler() -> None:
    """Loading makes the model on the meta device first; torch's compiler would cost seconds there."""
    program = (
        "import sys, torch, workbench as wb\n"
        "config = wb.ModelConfig(dim=8, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=8, vocab_size=8)\n"
        "with torch.device('meta'): wb.Transformer(config)\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout == "False\n"
