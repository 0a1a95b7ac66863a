"""Gradients through captures of the real model equal those of transformers."""

from pathlib import Path

import pytest
import torch

from tests.real.conftest import transformers_model
from workbench.model import Transformer

pytestmark = pytest.mark.real

LAYERS = (0, 9, 29)


def test_gradients_of_patterns_and_the_embedding_equal_transformers(
    model: Transformer, smollm2: Path, text_ids: torch.Tensor
) -> None:
    reference = transformers_model(smollm2, attn_implementation="eager")
    ids, causal = text_ids[:1, :48], torch.ones(48, 48, dtype=torch.bool).tril()
    embedded = reference.get_input_embeddings()(ids).detach().requires_grad_()
    out = reference(inputs_embeds=embedded, output_attentions=True)
    targets = [out.attentions[layer] for layer in LAYERS]
    token = int(out.logits[0, -1].argmax())
    expected = torch.autograd.grad(out.logits[0, -1, token], [*targets, embedded])
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in LAYERS]
    logits, captured = model.run_with_capture(ids, [*names, "hook_embed"], logits="last", grad=True)
    gradients = torch.autograd.grad(logits[0, -1, token], [captured[name] for name in [*names, "hook_embed"]])
    for gradient, theirs in zip(gradients, expected, strict=True):
        if gradient.shape[-1] == 48:  # what a query may not attend to has no gradient here
            theirs = theirs * causal
            gradient = gradient * causal
        scale = theirs.abs().max()
        assert scale > 1e-2 and (gradient - theirs).abs().max() < 1e-3 * scale
