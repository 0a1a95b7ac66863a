"""What a user calls a model: a misspelt name is answered with the name that was meant."""

import pytest

from workbench.checkpoint.sources.names import resolve
from workbench.errors import CheckpointError


@pytest.mark.parametrize(
    ("typed", "meant"), [("smolm2", "smollm2"), ("SmolLM2", "smollm2"), ("smollm3", "smollm2"), ("dmeo", "demo")]
)
def test_a_misspelt_name_is_corrected(typed: str, meant: str) -> None:
    sentence = rf"^{typed}: no such file or directory\. Did you mean the model {meant}\?$"
    with pytest.raises(CheckpointError, match=sentence):
        resolve(typed)


@pytest.mark.parametrize("typed", ["checkpoints", "llama", "./demo-2026"])
def test_another_path_is_not_taken_for_a_misspelt_name(typed: str) -> None:
    with pytest.raises(CheckpointError) as error:
        resolve(typed)
    assert str(error.value) == f"{typed}: no such file or directory."
