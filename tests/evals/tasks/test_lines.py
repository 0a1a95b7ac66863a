"""A prompt's lines encoded one by one are the prompt encoded whole."""

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from evals.models.workbench_lm import _LINES, WorkbenchLM
from workbench.model import Transformer
from workbench.text.tokenizer import Tokenizer
from workbench.text.vocabulary_files import Vocabulary


@pytest.fixture(scope="module")
def llama3(shared_data: Path) -> Tokenizer:
    return Tokenizer.from_file(shared_data / "tokenizers" / "llama3" / "tokenizer.model")


@settings(deadline=None)  # the first call builds the encoding
@given(text=st.text(st.sampled_from("aZé7 \n\r\t.,'?-\u00a0\u2028s"), max_size=40))
def test_any_text_is_the_same(llama3: Tokenizer, text: str) -> None:
    assert sum((llama3.encode(part) for part in _LINES.split(text)), []) == llama3.encode(text)


def test_real_prompts_are_the_same_and_cut_often(llama3: Tokenizer, shared_data: Path) -> None:
    with (shared_data / "mmlu" / "test" / "high_school_biology_test.csv").open(newline="") as file:
        rows = list(csv.reader(file))[:40]
    for question, first, second, *_ in rows:
        text = f"{question}\nA. {first}\nB. {second}\nAnswer:" * 2
        assert len(_LINES.split(text)) >= 4
        assert sum((llama3.encode(part) for part in _LINES.split(text)), []) == llama3.encode(text)


def test_another_pattern_is_not_cut(speaking_model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    ranks = {bytes([b]): b for b in range(256)} | {b"\n\n": 256}
    other = Tokenizer.from_vocabulary(Vocabulary(ranks, {"<|begin_of_text|>": 257, "<|end_of_text|>": 258}, gpt2))
    text = "one\n\ntwo"
    assert sum((other.encode(part) for part in _LINES.split(text)), []) != other.encode(text)
    monkeypatch.setattr(speaking_model, "tokenizer", other)
    lm = WorkbenchLM(speaking_model)
    assert lm.tok_encode(text, add_special_tokens=False) == other.encode(text)
