"""Other spellings of a checkpoint that change nothing: they load with the logits of transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workbench.checkpoint.checkpoints import meta_state
from tests.workbench.checkpoint.kind_builders import LLAMA2, LLAMA2_PARAMS, hf, meta
from workbench.checkpoint import load_model
from workbench.errors import ConfigError, WorkbenchError, WorkbenchWarning

TOKENS = torch.randint(128, (1, 70), generator=torch.Generator().manual_seed(1))


def logits(folder: Path) -> Tensor:
    with torch.no_grad():
        return load_model(folder, device="cpu", dtype="float32")(TOKENS)


def theirs_logits(theirs: Any) -> Tensor:
    with torch.no_grad():
        return theirs(TOKENS).logits


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": {}},
        {"quantization_config": False},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": False, "load_in_4bit": False}},
        {"compression_config": {}},
        {"hidden_size": 64.0, "num_hidden_layers": 2.0, "vocab_size": 128.0},
        {"rope_scaling": False},
        {"rope_scaling": []},
        {"attention_bias": 0},
    ],
    ids=str,
)
def test_values_of_config_json_that_say_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = hf(tmp_path, changes)
    assert torch.allclose(logits(tmp_path), theirs_logits(theirs), atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"load_in_4bit": True}, {"load_in_8bit": True, "load_in_4bit": False}, {"quant_method": "awq", "bits": 4}],
    ids=str,
)
def test_a_quantisation_that_is_on_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    hf(tmp_path, {"quantization_config": settings})
    with pytest.raises(ConfigError, match="weights quantised with (bitsandbytes|awq) cannot be loaded"):
        load_model(tmp_path, device="cpu")


WRAPPERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "DataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "nested twice": lambda state: {"state_dict": {"model": state}, "epoch": 3},
    "nested, DataParallel": lambda state: {"net": {f"module.{name}": tensor for name, tensor in state.items()}},
    "a step": lambda state: {**state, "step": torch.tensor(3)},
    "columns first": lambda state: {n: t.t().contiguous().t() if t.dim() == 2 else t for n, t in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_of_a_torch_file(tmp_path: Path, wrapper: str) -> None:
    theirs = meta(tmp_path, LLAMA2_PARAMS | {"dim": 64.0, "n_kv_heads": 2, "vocab_size": None}, **LLAMA2)
    torch.save(WRAPPERS[wrapper](meta_state(theirs)), tmp_path / "consolidated.00.pth")
    assert torch.allclose(logits(tmp_path), theirs_logits(theirs), atol=1e-4)


def test_a_weight_under_two_names_is_refused(tmp_path: Path) -> None:
    theirs = meta(tmp_path, LLAMA2_PARAMS | {"n_kv_heads": 2}, **LLAMA2)
    state = meta_state(theirs)
    old = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(old | {"norm.weight": state["norm.weight"] * 2}, tmp_path / "consolidated.00.pth")
    with pytest.raises(WorkbenchError, match="'module.norm.weight' and 'norm.weight' are both 'norm.weight'"):
        load_model(tmp_path, device="cpu")


def test_weights_of_meta_in_two_formats(tmp_path: Path) -> None:
    theirs = meta(tmp_path, LLAMA2_PARAMS | {"n_kv_heads": 2}, suffix="safetensors", **LLAMA2)
    other = {name: tensor * 2 for name, tensor in meta_state(theirs).items()}
    torch.save(other, tmp_path / "consolidated.00.pth")
    with pytest.warns(WorkbenchWarning, match=r"consolidated.00.safetensors: is loaded; the consolidated.\*.pth files"):
        found = logits(tmp_path)
    assert torch.allclose(found, theirs_logits(theirs), atol=1e-4)
