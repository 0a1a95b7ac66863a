"""Training in several processes of torchrun is refused in each of them, before anything is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.errors import TrainingError
from workbench.training.recipe import Recipe
from workbench.training.train import train

RECIPE = Path(__file__).parents[3] / "workbench" / "assets" / "demo" / "recipe.toml"


def test_a_process_of_several_does_not_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(TrainingError, match="training runs in one process, but 2 were started"):
        train(Recipe.from_file(RECIPE), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_torchrun_with_two_processes_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "workbench"]
    done = subprocess.run(
        [*command, "train", str(RECIPE), "--output", str(tmp_path / "out")],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode != 0 and "workbench: training runs in one process, but 2 were started" in done.stderr
    assert not (tmp_path / "out").exists()
