"""Norms while generating: the same as one capture of the whole text, and the text is what generation gives."""

import numpy as np
import pytest
import torch

import workbench as wb
from probes import generated, norms
from workbench.errors import DataError
from workbench.model import Transformer


def test_steps_are_one_capture_of_the_whole_text(tiny_model: Transformer, tokens: torch.Tensor) -> None:
    prompt = tokens[0, :6].tolist()
    found = generated.generated_norms(tiny_model, prompt, steps=5)
    assert len(found.tokens) == 10 and list(found.tokens[:6]) == prompt
    with torch.no_grad():
        logits, cap = tiny_model.run_with_capture(torch.tensor([found.tokens]), norms.HOOKS)
    assert logits[0, 5:-1].argmax(-1).tolist() == list(found.tokens[6:])  # each step's choice
    assert found.rms.norms == norms.input_rms(cap).norms
    assert found.rms.rms == pytest.approx(norms.input_rms(cap).rms, rel=1e-4)  # float32, another order of sums
    whole = norms.contribution_ratios(cap)
    assert found.contributions.ratio == pytest.approx(whole.ratio, rel=1e-3)
    assert found.contributions.cosine == pytest.approx(whole.cosine, abs=1e-4)


def test_the_text_is_what_generate_writes() -> None:
    demo = wb.load_model("demo", device="cpu").eval()
    assert demo.tokenizer is not None
    prompt = demo.tokenizer.encode("12 + 5 =", bos=True)
    found = generated.generated_norms(demo, prompt, steps=3)
    (written,) = wb.generate(demo, ["12 + 5 ="], max_new_tokens=3)
    assert list(found.tokens[len(prompt) :]) == list(written.tokens)[:2]


def test_the_table_counts_steps_from_the_prompts_end(tiny_model: Transformer) -> None:
    table = generated.generated_norms(tiny_model, [1, 2, 3], steps=3).frame()
    assert list(table.columns) == ["layer", "norm", "pos", "step", "token", "rms"]
    first = table[(table["layer"] == 0) & (table["norm"] == "ln1")]
    assert first["step"].tolist() == [0, 0, 0, 1, 2] and first["token"].tolist()[:3] == [1, 2, 3]
    assert np.isfinite(table["rms"]).all() and len(table) == 7 * 5
    for prompt, steps in (([], 3), ([1], 0)):
        with pytest.raises(DataError, match="at least 1 step"):
            generated.generated_norms(tiny_model, prompt, steps=steps)
