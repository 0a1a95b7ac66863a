"""The training loop on a tiny recipe: it learns, survives being killed, and refuses what it cannot do."""

import copy
import csv
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from workbench.config import ModelConfig
from workbench.errors import TrainingError
from workbench.model import Transformer
from workbench.text.tokenizer import Tokenizer
from workbench.training.recipe import Recipe
from workbench.training.train import LOG, STATE, WEIGHTS, initialise, losses, train

ROOT = Path(__file__).resolve().parents[3]

TINY: dict[str, Any] = {
    "model": {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64, "vocab_size": 576},
    "vocabulary": {"ranks": 320, "documents": 50},
    "optimisation": {
        "seed": 1,
        "batch": 4,
        "length": 64,
        "rate": 5e-3,
        "warmup": 5,
        "save_every": 10,
        "prompt_weight": 0.5,
    },
    "stages": [
        {"steps": 20, "shares": {"statement": 1.0}, "facts": 0.1},
        {"steps": 40, "shares": {"statement": 0.8, "quiz": 0.1, "repeat": 0.1}},
    ],
}


def changed(**parts: dict[str, Any]) -> dict[str, Any]:
    data = copy.deepcopy(TINY)
    for name, values in parts.items():
        data[name].update(values)
    return data


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(Recipe.from_dict(TINY), tmp_path_factory.mktemp("undisturbed"))


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / LOG).open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_learns_and_leaves_a_checkpoint(undisturbed: Path) -> None:
    rows = log(undisturbed)
    assert [int(row["step"]) for row in rows] == [10, 20, 30, 40, 50, 60]
    assert int(rows[-1]["tokens"]) == 60 * 4 * 64
    assert float(rows[0]["loss"]) > 4.5  # ln 576 = 6.4 at the very start
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 1.0
    weights = load_file(undisturbed / WEIGHTS)
    config = ModelConfig.from_meta(json.loads((undisturbed / "params.json").read_text()))
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        name: tuple(value.shape) for name, value in Transformer(config).state_dict().items()
    }
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert Tokenizer.from_file(undisturbed).vocab_size == config.vocab_size == 576
    for line in (undisturbed / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((undisturbed / name).read_bytes()).hexdigest() == digest


def test_killed_and_resumed_gives_the_same_weights(undisturbed: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(TINY))
    folder = tmp_path / "run"
    code = (
        "import json, sys, torch; torch.set_num_threads(1)\n"
        "from workbench.training.recipe import Recipe; from workbench.training.train import train\n"
        "train(Recipe.from_dict(json.load(open(sys.argv[1]))), sys.argv[2])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(recipe), str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (folder / STATE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL  # it was killed in the middle, it had not ended
    step = torch.load(folder / STATE, weights_only=True)["step"]
    assert 10 <= step < 60
    train(Recipe.from_dict(TINY), folder)
    assert (folder / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()
    figures = [[row[name] for name in ("step", "tokens", "rate", "loss", "answer_loss")] for row in log(folder)]
    assert figures == [
        [row[name] for name in ("step", "tokens", "rate", "loss", "answer_loss")] for row in log(undisturbed)
    ]


def test_another_recipes_folder_is_refused(undisturbed: Path) -> None:
    with pytest.raises(TrainingError, match="another recipe"):
        train(Recipe.from_dict(changed(optimisation={"seed": 2})), undisturbed)
    with pytest.raises(TrainingError, match="already holds a training run"):
        train(Recipe.from_dict(TINY), undisturbed, resume=False)


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"576 tokens and the model 600"):
        train(Recipe.from_dict(changed(model={"vocab_size": 600})), tmp_path)


def test_mistakes_in_a_recipe_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="learning_rate"):
        Recipe.from_dict(changed(optimisation={"learning_rate": 1e-3}))
    with pytest.raises(TrainingError, match=r"missing keys \['optimisation'\]"):
        Recipe.from_dict({key: value for key, value in TINY.items() if key != "optimisation"})
    poem = copy.deepcopy(TINY)
    poem["stages"][1]["shares"] = {"poem": 1.0}
    with pytest.raises(TrainingError, match=r"stage 2: unknown kinds of document \['poem'\]"):
        Recipe.from_dict(poem)
    with pytest.raises(TrainingError, match="uses stage 3, but there are 2"):
        Recipe.from_dict(changed(vocabulary={"stage": 3}))
    with pytest.raises(TrainingError, match="cannot be read"):
        Recipe.from_file(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("[model")
    with pytest.raises(TrainingError, match="not a TOML file"):
        Recipe.from_file(tmp_path / "broken.toml")


def test_rates_by_hand() -> None:
    recipe = changed(optimisation={"rate": 1.0, "warmup": 4, "final_rate": 0.1})
    recipe["stages"][0]["steps"], recipe["stages"][1]["steps"] = 50, 54
    rate_at = Recipe.from_dict(recipe).rate_at
    assert [rate_at(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate_at(4) == 1.0
    assert rate_at(54) == pytest.approx(0.55)  # half way between 1 and 0.1
    assert rate_at(104) == pytest.approx(0.1)


def test_a_stage_with_a_rate_starts_anew() -> None:
    two = changed(optimisation={"rate": 1.0, "warmup": 4, "final_rate": 0.1})
    two["stages"][0]["steps"], two["stages"][1] = 54, {**two["stages"][1], "steps": 24, "rate": 0.5}
    two["stages"].append({**two["stages"][0], "steps": 30})
    rate_at = Recipe.from_dict(two).rate_at
    assert rate_at(29) == pytest.approx(0.55) and rate_at(53) == pytest.approx(0.1, abs=0.01)
    assert [rate_at(step) for step in range(54, 58)] == [0.125, 0.25, 0.375, 0.5]
    assert rate_at(54 + 29) == pytest.approx(0.275) and rate_at(54 + 54) == pytest.approx(0.05)


def test_loss_weights_by_hand(tiny_config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Transformer(tiny_config)
    tokens = torch.randint(0, tiny_config.vocab_size, (2, 6))
    answer = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    each = -model(tokens[:, :-1]).log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    total, known = losses(model, tokens, answer, 0.2)
    assert known.item() == pytest.approx(each[answer].mean().item(), rel=1e-5)
    expected = (each[answer].sum() + 0.2 * each[~answer].sum()) / (3 + 0.2 * 7)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    plain, _ = losses(model, tokens, answer, 1.0)
    assert plain.item() == pytest.approx(each.mean().item(), rel=1e-5)


def test_the_residual_stream_begins_at_one_size(tiny_config: ModelConfig) -> None:
    torch.manual_seed(0)
    weights = initialise(Transformer(tiny_config), 0.02).state_dict()
    depth = math.sqrt(2 * tiny_config.n_layers)
    for name, expected in {
        "layers.0.attention.wq.weight": 0.02,
        "layers.1.attention.wo.weight": 0.02 / depth,
        "layers.1.feed_forward.w2.weight": 0.02 / depth,
    }.items():
        assert weights[name].std().item() == pytest.approx(expected, rel=0.1), name
    assert (weights["norm.weight"] == 1).all()


def test_the_committed_recipe_is_llama_2s_and_fits_its_checkpoint() -> None:
    recipe = Recipe.from_file(ROOT / "workbench" / "assets" / "demo" / "recipe.toml")
    settings = recipe.optimisation
    assert (settings.betas, settings.eps, settings.weight_decay) == ((0.9, 0.95), 1e-5, 0.1)
    assert (settings.clip, settings.final_rate) == (1.0, 0.1)
    params = json.loads((ROOT / "workbench" / "assets" / "demo" / "params.json").read_text())
    assert ModelConfig.from_meta(params) == recipe.model
