"""Training loop: takes a recipe and an empty folder, writes a checkpoint in Meta's layout.

A training run that was stopped at any moment continues from its last saved step and ends with the same weights: the
text is a function of (seed, step), and the saved state holds weights, optimiser and step. The documents come from
`demo_data`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save
from torch import Tensor, nn

from workbench.errors import TrainingError
from workbench.model import Transformer
from workbench.text.tokenizer import Tokenizer
from workbench.training.demo_data import bpe
from workbench.training.demo_data.corpus import Corpus, Packer, batch_rng
from workbench.training.recipe import Optimisation, Recipe

STATE, LOG, TOKENIZER, WEIGHTS = "training.pt", "loss.csv", "tokenizer.model", "consolidated.00.safetensors"
LOG_COLUMNS = ("step", "tokens", "rate", "loss", "answer_loss", "seconds")
LOG_EVERY = 10


def train(recipe: Recipe, output: str | Path, *, resume: bool = True, device: str = "cpu") -> Path:
    """Train to the recipe's end and write the checkpoint to `output`; returns that folder.

    Raises: TrainingError if `output` holds a run of another recipe, or any run if `resume` is false; if it is one of
        several processes of torchrun.
    """
    processes = os.environ.get("WORLD_SIZE", "1")
    if processes != "1" and "RANK" in os.environ:
        raise TrainingError(
            f"training runs in one process, but {processes} were started, which would all write to {output}. "
            "Start it without torchrun."
        )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    state = _load_state(folder, recipe, resume)
    tokenizer = tokenizer_for(recipe, folder)
    if tokenizer.vocab_size != recipe.model.vocab_size:
        raise TrainingError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {recipe.model.vocab_size}; "
            "set vocab_size to ranks + 256."
        )
    torch.manual_seed(recipe.optimisation.seed)
    model = initialise(Transformer(recipe.model), recipe.optimisation.init_std).to(device)
    optimizer = _optimizer(model, recipe.optimisation)
    start = 0
    if state is not None:
        model.load_state_dict(state["model"], strict=True)
        optimizer.load_state_dict(state["optimizer"])
        start = int(state["step"])
    _run(recipe, folder, model, optimizer, _packer(tokenizer, recipe), start)
    export(model, folder)
    return folder


def initialise(model: Transformer, std: float) -> Transformer:
    """Normal initial weights; those that write to the residual stream are scaled down with the number of layers.

    Source: GPT-2 (std 0.02, residual projections divided by the square root of the number of sublayers).
    """
    residual = std / math.sqrt(2 * model.config.n_layers)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=residual if name.endswith(("wo.weight", "w2.weight")) else std)
    return model


def losses(model: Transformer, tokens: Tensor, answer: Tensor, prompt_weight: float) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of a batch, and the unweighted one over its answers only.

    Shapes: tokens [batch, pos + 1] int64, answer [batch, pos] bool
    Units:  nats per token
    """
    logits = model(tokens[:, :-1])
    token_loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    is_answer = answer.flatten()
    weight = is_answer + prompt_weight * ~is_answer
    return (token_loss * weight).sum() / weight.sum(), token_loss.detach()[is_answer].mean()


def export(model: Transformer, folder: Path) -> None:
    """Write the weights in Meta's layout, as bfloat16 safetensors, with their configuration and SHA-256 sums."""
    weights = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in model.state_dict().items()
    }
    _write(folder / WEIGHTS, save(weights))
    _write(folder / "params.json", (json.dumps(model.config.to_meta(), indent=2) + "\n").encode())
    names = ("params.json", WEIGHTS, TOKENIZER)
    sums = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    _write(folder / "SHA256SUMS", "".join(sums).encode())


def _run(
    recipe: Recipe, folder: Path, model: Transformer, optimizer: torch.optim.Optimizer, packer: Packer, start: int
) -> None:
    settings, steps = recipe.optimisation, recipe.steps
    corpora = {id(stage): Corpus(stage.mix) for stage in recipe.stages}
    device = model.device
    model.train()
    with _progress() as bar, _Log(folder / LOG, start) as log:
        task = bar.add_task("training", total=steps, completed=start, loss="")
        for step in range(start, steps):
            start_time = time.perf_counter()
            rows = packer.rows(corpora[id(recipe.stage_at(step))], batch_rng(settings.seed, step), settings.batch)
            tokens, answer = torch.from_numpy(rows.tokens).to(device), torch.from_numpy(rows.answer).to(device)
            rate = recipe.rate_at(step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.autocast):
                loss, answer_loss = losses(model, tokens, answer, settings.prompt_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            n_steps = step + 1
            figures = (loss.item(), answer_loss.item(), time.perf_counter() - start_time)
            log.add(n_steps, n_steps * settings.batch * settings.length, rate, figures)
            bar.update(task, completed=n_steps, loss=f"loss {figures[0]:.3f}, on answers {figures[1]:.3f}")
            if n_steps % settings.save_every == 0 or n_steps == steps:
                log.flush()
                _save_state(folder, recipe, model, optimizer, n_steps)


class _Log:
    """The loss log: a row of means every few steps. Rows after the step at which training resumes are dropped."""

    def __init__(self, path: Path, start: int) -> None:
        self.path, self.sums, self.count = path, [0.0, 0.0, 0.0], 0
        self.previous_rows: list[list[str]] = []
        if start and path.exists():
            with path.open(newline="") as file:
                self.previous_rows = [row for row in islice(csv.reader(file), 1, None) if int(row[0]) <= start]

    def __enter__(self) -> _Log:
        self.file = self.path.open("w", newline="")
        self.writer = csv.writer(self.file)
        self.writer.writerows([list(LOG_COLUMNS), *self.previous_rows])
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, step: int, tokens: int, rate: float, figures: tuple[float, float, float]) -> None:
        self.sums = [total + value for total, value in zip(self.sums, figures, strict=True)]
        self.count += 1
        if step % LOG_EVERY == 0:
            means = [f"{self.sums[i] / self.count:.4f}" for i in (0, 1)]
            self.writer.writerow([step, tokens, f"{rate:.6f}", *means, f"{self.sums[2]:.2f}"])
            self.sums, self.count = [0.0, 0.0, 0.0], 0

    def flush(self) -> None:
        self.file.flush()


def _packer(tokenizer: Tokenizer, recipe: Recipe) -> Packer:
    ordinary = tokenizer.vocab_size - len(tokenizer.special_tokens)
    begin, end = tokenizer.special("<|begin_of_text|>"), tokenizer.special("<|end_of_text|>")
    return Packer(tokenizer.encode, begin, end, ordinary, recipe.optimisation.length)


def tokenizer_for(recipe: Recipe, folder: Path) -> Tokenizer:
    """The folder's tokenizer, or a new one trained by the recipe."""
    path = folder / TOKENIZER
    if not path.exists():
        settings = recipe.vocabulary
        documents = Corpus(recipe.stages[settings.stage - 1].mix).documents(batch_rng(recipe.optimisation.seed, -1))
        text = "\n".join(document.text for document in islice(documents, settings.documents))
        ranks = {token: rank for rank, token in enumerate(bpe.learn(text, settings.ranks))}
        _write(path, Tokenizer.from_ranks(ranks).to_tiktoken())
    return Tokenizer.from_file(path)


def _optimizer(model: Transformer, settings: Optimisation) -> torch.optim.Optimizer:
    """AdamW; the gains of the norms have no weight decay."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.rate, betas=settings.betas, eps=settings.eps)


def _load_state(folder: Path, recipe: Recipe, resume: bool) -> dict[str, Any] | None:
    path = folder / STATE
    if not path.exists():
        return None
    if not resume:
        raise TrainingError(f"{folder} already holds a training run; resume it, or choose an empty folder.")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["recipe"] != recipe.digest:
        raise TrainingError(f"{folder} holds a training run of another recipe; choose an empty folder.")
    return state


def _save_state(folder: Path, recipe: Recipe, model: Transformer, optimizer: torch.optim.Optimizer, step: int) -> None:
    temporary = folder / (STATE + ".tmp")
    state = {"recipe": recipe.digest, "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, temporary)
    os.replace(temporary, folder / STATE)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[loss]}"), console=Console(stderr=True))
