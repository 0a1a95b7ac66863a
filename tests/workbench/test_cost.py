"""What hook points cost when nobody subscribed: no bit of the logits, and no Python call a hook point."""

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
    model(TOKENS[:, :1], cache)  # everything that is made once has been made
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
    """Two look-ups a run (three calls each), whatever the number of layers."""
    extra = []
    for n_layers in (2, 6):
        config = wb.ModelConfig(**{**vars(tiny_config), "n_layers": n_layers})
        model = wb.Transformer(config)
        extra.append(calls_of_a_decode_step(model) - calls_of_a_decode_step(bare_twin(model)))
    assert extra[0] == extra[1] <= 6
