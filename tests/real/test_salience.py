"""Input salience of SmolLM2: transformers' gradients at the embeddings of the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

import workbench as wb
from probes.logits.input_salience import gradient_x_input

pytestmark = pytest.mark.real


def test_gradient_x_input_is_that_of_transformers(smollm2: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    model = wb.load_model(smollm2, dtype="float32", device="cpu").eval()
    assert model.tokenizer is not None
    ids = model.tokenizer.encode("The capital of France is", bos=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    x = theirs.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
    logits = theirs(inputs_embeds=x).logits[0, -1]
    first, second = logits.topk(2).indices.tolist()
    (grad,) = torch.autograd.grad(logits[first] - logits[second], x)
    expected = (grad * x).sum(-1)[0].detach().numpy()
    result = gradient_x_input(model, ids, [(first, second)])
    assert result.values[0] == pytest.approx(expected, rel=1e-3, abs=1e-3 * float(np.abs(expected).max()))
