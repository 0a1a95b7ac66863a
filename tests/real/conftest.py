"""The real model in float32: ours from the folder and from the GGUF file, and transformers' reading of both."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from workbench.model import Transformer


def transformers_model(folder: Path, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


@pytest.fixture(scope="session")
def model(smollm2: Path) -> Transformer:
    return wb.load_model(smollm2, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def reference(smollm2: Path) -> Any:
    return transformers_model(smollm2)


@pytest.fixture(scope="session")
def text_ids(model: Transformer) -> torch.Tensor:
    """[2, 96]: an English text and a program; half of the second row is any ids of the vocabulary."""
    assert model.tokenizer is not None
    story = "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do. "
    code = "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)  # 12,345\n"
    rows = [(model.tokenizer.encode(text, bos=True) * 8)[:96] for text in (story, code)]
    rows[1][48:] = torch.randint(0, 49_152, (48,), generator=torch.Generator().manual_seed(0)).tolist()
    return torch.tensor(rows)
