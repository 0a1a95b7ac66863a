"""Intervention options: the interventions that they describe, and errors before a run starts."""

from pathlib import Path

import pytest

import workbench as wb
from workbench.config import Llama3Scaling, ModelConfig
from workbench.errors import ConfigError, DataError, InterventionError, UnknownHookError, WorkbenchError
from workbench.hooks import interventions
from workbench.hooks.intervention_options import InterventionOptions, described


def test_options_stand_for_interventions(tiny_config: ModelConfig, tmp_path: Path) -> None:
    file = tmp_path / "changes.json"
    file.write_text(interventions.to_json([wb.Add("blocks.1.hook_resid_post", [0.5] * 32, positions=[3])]))
    changes = InterventionOptions(file, "L2H3, L0.mlp", "L1H0=0.5,L1.attn=-2", "yarn=4").interventions(tiny_config)
    expected = [
        wb.Add("blocks.1.hook_resid_post", [0.5] * 32, positions=[3]),
        wb.Ablate("L2H3"), wb.Ablate("L0.mlp"), wb.Scale("L1H0", 0.5), wb.Scale("L1.attn", -2.0),
        wb.RopeScaling(yarn=4.0),
    ]  # fmt: skip
    assert [change.to_dict() for change in changes] == [change.to_dict() for change in expected]
    assert described(changes) == (
        "add blocks.1.hook_resid_post positions 3, ablate L2H3, ablate L0.mlp, scale L1H0 x 0.5, "
        "scale L1.attn x -2, yarn=4.0"
    )
    assert InterventionOptions().interventions(tiny_config) == () and described(()) == "none"


def test_llama3_stretches_the_model_s_own_context(tiny_config: ModelConfig) -> None:
    (scaling,) = InterventionOptions(rope_scaling="llama3=8").interventions(tiny_config)
    assert isinstance(scaling, wb.RopeScaling) and scaling.llama3 == Llama3Scaling(8.0, original_context=128)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"ablate": "L1H4"}, InterventionError, "--ablate L1H4: .*heads 0 to 3, found"),
        ({"ablate": "L3H0"}, UnknownHookError, "--ablate L3H0: "),
        ({"ablate": "L1H0,"}, InterventionError, "a name is empty"),
        ({"ablate": "everything"}, UnknownHookError, "--ablate everything: "),
        ({"scale": "L1H0"}, InterventionError, "is not NAME=NUMBER"),
        ({"scale": "L1H0=much"}, InterventionError, "is not NAME=NUMBER"),
        ({"rope_scaling": "yarn"}, DataError, "--rope-scaling yarn: .*as yarn=4"),
        ({"rope_scaling": "yarn=0.5"}, ConfigError, "--rope-scaling yarn=0.5: "),
    ],
)
def test_a_mistake_is_one_line_with_its_option(
    tiny_config: ModelConfig, given: dict[str, str], error: type[WorkbenchError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        InterventionOptions(**given).interventions(tiny_config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe{", "not UTF-8 text"),
        (b'{"kind": "ablate"}', "not a list of interventions"),
        (b'[{"kind": "remove", "target": "L0H0"}]', "not a list of interventions"),
        (b'[{"kind": "ablate", "target": "L9H0"}]', "--intervene .*L9H0|blocks.9"),
    ],
)
def test_a_file_that_holds_no_interventions(
    tiny_config: ModelConfig, tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "changes.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WorkbenchError, match=words):
        InterventionOptions(path).interventions(tiny_config)
