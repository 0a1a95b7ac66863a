"""Greedy continuations of the real model, all prompts in one batch, are those of transformers' `generate`."""

from typing import Any

import pytest
import torch

import workbench as wb
from workbench.model import Transformer

pytestmark = [pytest.mark.real, pytest.mark.slow]

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at",
    "Q: What is 17 + 25?\nA:",
    "The three primary colours are",
    "import numpy as np\n\n",
    "Dear Sir or Madam,\n\n",
    "1, 2, 3, 4, 5,",
    "El perro corre por",
    "# Introduction\n\nPhotosynthesis is",
    "<html>\n<head>\n",
    "In 1969, Neil Armstrong",
    "SELECT name, age FROM",
    "The opposite of hot is",
    "Ingredients:\n- 2 eggs\n-",
    "naïve café: ",
    "A",
    "\n",
    "<|im_start|>user\nName a planet.<|im_end|>\n<|im_start|>assistant\n",
)
NEW = 32


def test_greedy_ids(model: Transformer, reference: Any) -> None:
    """transformers has the prompts in one batch too, with padding on the left."""
    assert model.tokenizer is not None
    prompts = [model.tokenizer.encode(text, bos=True, allow_special=True) for text in PROMPTS]
    assert len(prompts) == 20
    width = max(map(len, prompts))
    rows = torch.tensor([[2] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    outputs = reference.generate(rows, attention_mask=mask, max_new_tokens=NEW, do_sample=False)[:, width:].tolist()
    ours = wb.generate(model, prompts, max_new_tokens=NEW, temperature=0)
    ended = 0
    for text, expected, generation in zip(PROMPTS, outputs, ours, strict=True):
        ends = [at for at, token in enumerate(expected) if token in model.tokenizer.stop_ids]
        if ends:
            del expected[ends[0] + 1 :]
        assert list(generation.tokens) == expected, text
        assert generation.finish_reason == ("stop" if ends else "length"), text
        ended += bool(ends)
    assert ours[0].text.startswith(" Paris.")
    assert 0 < ended < len(PROMPTS), "both ends should occur"
