"""The embedded checkpoint: complete, small, made by its recipe, and as good as its card says."""

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from workbench.model import Transformer
from workbench.training.demo_data.quizzes import Quiz, header
from workbench.training.recipe import Recipe
from workbench.training.train import LOG, tokenizer_for

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "workbench" / "assets" / "demo"


@pytest.fixture(scope="module")
def model() -> Transformer:
    return wb.load_model("demo", device="cpu", dtype="float32")


def items(name: str, count: int) -> list[dict[str, Any]]:
    lines = (ROOT / "evals" / "assets" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def test_files_are_whole_and_small() -> None:
    sums = dict(reversed(line.split("  ")) for line in (DEMO / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == {"params.json", "consolidated.00.safetensors", "tokenizer.model"}
    for name, digest in sums.items():
        assert hashlib.sha256((DEMO / name).read_bytes()).hexdigest() == digest, name
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 12_000_000


def test_the_recipe_makes_the_tokenizer(tmp_path: Path) -> None:
    tokenizer_for(Recipe.from_file(DEMO / "recipe.toml"), tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == (DEMO / "tokenizer.model").read_bytes()


def test_the_log_is_the_recipes() -> None:
    recipe = Recipe.from_file(DEMO / "recipe.toml")
    per_step = recipe.optimisation.batch * recipe.optimisation.length
    with (DEMO / LOG).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert int(rows[-1]["step"]) == recipe.steps
    for row in rows:
        step = int(row["step"])
        assert int(row["tokens"]) == step * per_step
        assert float(row["rate"]) == pytest.approx(recipe.rate_at(step - 1), abs=1e-6)


def test_it_answers_quizzes(model: Transformer) -> None:
    assert model.tokenizer is not None
    letters = [model.tokenizer.encode(f" {letter}")[0] for letter in "ABCD"]
    right = 0
    for item in items("demo_mmlu", 100):
        quiz = Quiz(item["subject"], item["question"], tuple(item["choices"]), item["answer"])
        ids = model.tokenizer.encode(header(quiz.subject) + quiz.body, bos=True)
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1, letters]
        right += int(logits.argmax()) == quiz.answer
    assert 60 <= right < 100


def test_it_works_out_problems(model: Transformer) -> None:
    questions = items("demo_gsm8k", 40)
    prompts = [f"Question: {item['question']}\nAnswer:" for item in questions]
    answers = wb.generate(model, prompts, max_new_tokens=100, temperature=0.0)
    right = 0
    for item, answer in zip(questions, answers, strict=True):
        assert answer.finish_reason == "stop"  # it ends by itself
        match = re.search(r"#### (-?[0-9.,]+)", answer.text)
        right += match is not None and match[1] == item["answer"].split("#### ")[1]
    assert 20 <= right < 40


def test_it_writes_functions(model: Transformer) -> None:
    """Comparing the text of the solution is stricter than running its tests, and needs no sandbox."""
    tasks = items("demo_humaneval", 40)
    answers = wb.generate(model, [item["prompt"] for item in tasks], max_new_tokens=80, temperature=0.0)
    right = sum(answer.text == item["canonical_solution"] for item, answer in zip(tasks, answers, strict=True))
    assert 15 <= right < 40
