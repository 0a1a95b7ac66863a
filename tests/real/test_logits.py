"""Logits and text of the real model in each layout against transformers' reading of the same weights, in float32."""

from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests.real.conftest import transformers_model
from workbench.checkpoint import convert
from workbench.errors import CheckpointError
from workbench.model import Transformer

pytestmark = pytest.mark.real

TEXTS = ("The capital of France is", "12 x 345 = 4,140\n\n", "naïve 東京 🙂 <|im_end|>", "")


@torch.no_grad()
def difference(ours: Transformer, theirs: Any, ids: torch.Tensor) -> float:
    """The largest difference of logits, with the same first choice everywhere."""
    mine, expected = ours(ids), theirs(ids).logits
    assert mine.dtype == torch.float32 and expected.std() > 1
    assert torch.equal(mine.argmax(-1), expected.argmax(-1))
    return float((mine - expected).abs().max())


def assert_same_text(ours: Transformer, expected: Transformer) -> None:
    mine, theirs = ours.tokenizer, expected.tokenizer
    assert mine is not None and theirs is not None
    for text in TEXTS:
        for options in ({}, {"bos": True}, {"allow_special": True}):
            assert mine.encode(text, **options) == theirs.encode(text, **options), text
    chat = [{"role": "user", "content": "Hi"}]
    assert wb.encode_chat(mine, chat) == wb.encode_chat(theirs, chat)
    roles = ("bos_id", "eos_id", "unk_id", "pad_id", "eot_id", "adds_bos", "stop_ids", "prefix_id", "chat_template")
    for role in roles:
        assert getattr(mine, role) == getattr(theirs, role), role


def test_the_folder(model: Transformer, reference: Any, text_ids: torch.Tensor) -> None:
    assert difference(model, reference, text_ids) <= 1e-4


@pytest.mark.slow
def test_the_gguf_file(smollm2_gguf: Path, model: Transformer, text_ids: torch.Tensor) -> None:
    theirs = transformers_model(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    ours = wb.load_model(smollm2_gguf, device="cpu", dtype="float32")
    assert difference(ours, theirs, text_ids) <= 1e-4
    assert_same_text(ours, model)
    # The folder holds the same weights rounded to bfloat16, one part in 256 of each.
    with torch.no_grad():
        assert 1e-4 < float((ours(text_ids) - model(text_ids)).abs().mean()) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "container"), [(1, "safetensors"), (3, "safetensors"), (3, "pth")])
def test_metas_layout_and_back(
    smollm2: Path,
    model: Transformer,
    reference: Any,
    text_ids: torch.Tensor,
    tmp_path: Path,
    shards: int,
    container: Any,
) -> None:
    """The Meta folder and the folder made from it compute the same bits and encode the same text as the original."""
    meta = convert(smollm2, tmp_path / "meta", layout="meta", shards=shards, container=container)
    ours = wb.load_model(meta, device="cpu", dtype="float32")
    assert difference(ours, reference, text_ids) <= 1e-4
    assert_same_text(ours, model)
    again = convert(meta, tmp_path / "hf", layout="hf")
    back = wb.load_model(again, device="cpu", dtype="float32")
    for name, weight in model.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight) and torch.equal(back.state_dict()[name], weight), name
    assert_same_text(back, model)
    assert (again / "tokenizer.json").read_bytes() == (smollm2 / "tokenizer.json").read_bytes()
    theirs = transformers_model(again)
    with torch.no_grad():
        assert torch.equal(theirs(text_ids).logits, reference(text_ids).logits)


def test_nine_heads_do_not_split_in_two(smollm2: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="2") as caught:
        convert(smollm2, tmp_path / "meta", layout="meta", shards=2)
    assert len(str(caught.value)) < 600 and not (tmp_path / "meta").exists()
