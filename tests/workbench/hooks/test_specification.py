"""Specifications from anywhere: each field is checked, so that JSON gives interventions or an InterventionError."""

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.errors import InterventionError, WorkbenchError
from workbench.hooks.interventions import from_json, to_json
from workbench.hooks.specification import ranges, to_stored

VALUE = {"dtype": "float32", "shape": [2], "base64": base64.b64encode(bytes(8)).decode()}

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([10**400, -1, 1e20, 2**63, "L0H0", "L0.mlp", "quint8", "bfloat16", "AAAAAA==", "patch"])
)  # fmt: skip
odd = st.recursive(leaves, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=6), x, max_size=4))
names = st.sampled_from(
    [
        "target",
        "heads",
        "positions",
        "factor",
        "value",
        "theta",
        "llama3",
        "interpolation",
        "ntk",
        "yarn",
        "temperature",
    ]
)
stored = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["float32", "bfloat16", "float64", "int8", "quint8", "complex64", "bool", "load"])
        | odd,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | odd,
        "base64": st.binary(max_size=16).map(lambda data: base64.b64encode(data).decode()) | odd,
    }
)
llama3 = st.dictionaries(
    st.sampled_from(["factor", "low_freq_factor", "high_freq_factor", "original_context", "more"]), leaves
)
targets = st.sampled_from(["L0H0", "L0.mlp", "blocks.*.attn.hook_z", "hook_logits", "blocks.1.attn.hook_pattern"])
entries = st.builds(
    lambda kind, target, more: {"kind": kind, "target": target, **more},
    st.sampled_from(["ablate", "scale", "add", "patch", "rope_scaling", "hook"]) | odd,
    targets | odd,
    st.dictionaries(names, odd | stored | llama3 | st.lists(st.integers(-1, 5), max_size=3)),
)


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.lists(entries, min_size=1, max_size=2) | odd)
def test_any_json_gives_interventions_or_an_intervention_error(tiny_model, content: Any) -> None:
    try:
        changes = from_json(json.dumps(content))
    except InterventionError as error:
        assert "not a list of interventions" in str(error)
        return
    assert to_json(from_json(to_json(changes))) == to_json(changes)
    for change in changes:
        try:
            scope = tiny_model.intervene(change)
        except WorkbenchError:
            continue
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)  # of positions that this short run does not reach
            try:
                with scope:
                    tiny_model(torch.tensor([[1, 2, 3]]))
            except WorkbenchError:
                continue


@settings(max_examples=500, deadline=None)
@given(text=st.text(max_size=40) | st.text("[]{}\"',:0", max_size=40))
def test_any_text_gives_interventions_or_an_intervention_error(text: str) -> None:
    try:
        assert isinstance(from_json(text), tuple)
    except InterventionError as error:
        assert "not a list of interventions" in str(error)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"kind": "scale", "target": "L0H0", "factor": None}, "factor must be a number"),
        ({"kind": "scale", "target": "L0H0", "factor": "x"}, "factor must be a number"),
        ({"kind": "scale", "target": "L0H0", "factor": 10**400}, "too large for a float"),
        ({"kind": "ablate", "target": "L0H0", "positions": [1e20]}, "positions are too large"),
        ({"kind": "ablate", "target": "L0H0", "positions": [1.5]}, "whole numbers"),
        ({"kind": "ablate", "target": "L0H0", "positions": "12"}, "whole numbers"),
        ({"kind": "ablate", "target": "L0H0", "positions": 5}, "whole numbers"),
        ({"kind": "ablate", "target": "L0H0", "positions": []}, "positions is empty"),
        ({"kind": "ablate", "target": "L0H0", "positions": [-1]}, "counted from 0, found -1.*len\\(tokens\\) - 1"),
        ({"kind": "ablate", "target": "blocks.0.attn.hook_z", "heads": [True]}, "whole numbers"),
        ({"kind": "ablate", "target": 5}, "a target is text"),
        ({"kind": "ablate", "target": "x" * 10_000}, "a target is text"),
        ({"kind": "ablate"}, "ablate needs 'target'"),
        ({"kind": "ablate", "target": "L0H0", "head": 3}, "no field 'head'"),
        ({"kind": ["ablate"], "target": "L0H0"}, "kind is one of ablate, add, patch"),
        ({"kind": "add", "target": "L0.mlp", "value": {**VALUE, "dtype": "quint8"}}, "dtype is float32"),
        ({"kind": "add", "target": "L0.mlp", "value": {**VALUE, "dtype": "nn"}}, "dtype is float32"),
        ({"kind": "add", "target": "L0.mlp", "value": {**VALUE, "shape": [5, 5]}}, "25 numbers of 4 bytes; found 8"),
        ({"kind": "add", "target": "L0.mlp", "value": {**VALUE, "shape": [10**30]}}, "found 8 bytes"),
        ({"kind": "add", "target": "L0.mlp", "value": {**VALUE, "shape": [-2]}}, "positive numbers"),
        ({"kind": "add", "target": "L0.mlp", "value": {**VALUE, "shape": []}}, "1 numbers of 4 bytes; found 8"),
        ({"kind": "add", "target": "L0.mlp", "value": {**VALUE, "base64": "AA=A"}}, "not base64"),
        ({"kind": "add", "target": "L0.mlp", "value": {**VALUE, "base64": 7}}, "not base64"),
        ({"kind": "add", "target": "L0.mlp", "value": 7}, "dtype, shape and base64"),
        ({"kind": "rope_scaling", "theta": 10**400}, "too large for a float"),
        ({"kind": "rope_scaling", "llama3": {"factor": "8"}}, "factor must be a number"),
        ({"kind": "rope_scaling", "yarn": 2.0, "temperature": 0}, "temperature must be positive"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_field_has_its_message(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(InterventionError, match=f"(?s)not a list of interventions.*entry 2: .*{words}"):
        from_json(json.dumps([{"kind": "ablate", "target": "L0H0"}, entry]))


def test_nesting_and_numbers_without_end_are_errors() -> None:
    for text in (
        "[" * 200_000,
        '[{"kind": "scale", "target": "L0H0", "factor": ' + "9" * 5000 + "}]",
        "null",
        "5",
        '"x"',
    ):
        with pytest.raises(InterventionError, match="not a list of interventions"):
            from_json(text)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "uint8"])
def test_values_keep_every_bit(dtype: str) -> None:
    value = torch.arange(-3, 5).to(getattr(torch, dtype)).reshape(2, 4)
    (change,) = from_json(to_json([wb.Add("L0.mlp", value)]))
    assert isinstance(change, wb.Add)
    assert change.tensor.dtype == value.dtype and torch.equal(change.tensor, value)
    assert change.to_dict()["value"] == to_stored(value)


def test_scalings_whose_frequencies_are_not_numbers_are_refused(tiny_model) -> None:
    for parameters in ({"ntk": 1e308}, {"theta": 1e-320}):
        with pytest.raises(WorkbenchError, match="not finite|positive"):
            tiny_model.intervene(wb.RopeScaling(**parameters))


def test_a_target_is_the_whole_text(tiny_model) -> None:
    for target in ("L0H0\n", " L0H0", "L0.mlp\n", "blocks.0.hook_mlp_out\n"):
        with pytest.raises(WorkbenchError, match="no hook is called"):
            tiny_model.intervene(wb.Ablate(target))


def test_positions_come_in_many_forms() -> None:
    for positions in ([4, 2, 9], torch.tensor([4, 2, 9]), np.array([4, 2, 9]), (n for n in (4, 2, 9))):
        assert wb.Ablate("L0H0", positions=positions).positions == (4, 2, 9)
    assert wb.Ablate("L0H0", positions={900, 4, 33}).positions == (4, 33, 900)  # a set has no order of its own
    assert wb.Ablate("L0H0", positions=range(2)).positions == (0, 1)


def test_ranges_are_short() -> None:
    assert ranges([3, 5, 6, 7, 9, 10]) == "3, 5-7, 9, 10" and ranges([4]) == "4"
