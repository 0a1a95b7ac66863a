"""Effects of interventions: predictions, loss, head outputs and quiz answers before and after.

Does not import Streamlit.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import workbench as wb
from probes.base.result import frozen
from probes.logits.logit_lens import position_blocks
from workbench.hooks.capture import Capture
from workbench.hooks.intervention import Intervention
from workbench.hooks.interventions import Ablate, from_json
from workbench.model import Transformer

HOOKS = ("ln_final.hook_out",)
"""Hooks that `shift` and `logits_at` need."""

HEAD_HOOKS = ("blocks.*.attn.hook_z",)
"""Hooks that `head_changes` needs."""

BEFORE, AFTER = 0, 1
Changes = tuple[str, str]
"""The interventions before and after, each as `workbench.hooks.interventions.to_json` writes them."""


@dataclass(frozen=True)
class Shift:
    """How predictions change. `loss` [2, pos - 1] of each next token, before and after; `kl` [pos] KL(before || after).

    Units: nats.
    """

    loss: np.ndarray
    kl: np.ndarray


@torch.no_grad()
def shift(model: Transformer, before: Capture, after: Capture, changes: Changes) -> Shift:
    """KL(before || after) at every position, and the loss on the text. Memory: logits of a block of positions.

    Shapes: ln_final.hook_out [batch, pos, dim] of both -> [pos], [2, pos - 1]
    Units:  nats, in float32.
    """
    n_pos = len(before["ln_final.hook_out"][0])
    following = torch.cat([before.tokens[0, 1:], before.tokens[0, :1]]).to(
        model.device
    )  # the last position has no next token
    kl, losses = [], []
    for part in position_blocks(n_pos, model.config.vocab_size):
        both = _logits(model, before, after, changes, part).log_softmax(-1)  # [2, pos, vocab]
        kl.append((both[BEFORE].exp() * (both[BEFORE] - both[AFTER])).nan_to_num(0.0).sum(-1))
        losses.append(-both.gather(-1, following[part].expand(2, -1)[..., None])[..., 0])
    return Shift(frozen(torch.cat(losses, 1)[:, :-1]), frozen(torch.cat(kl)))


@torch.no_grad()
def logits_at(model: Transformer, before: Capture, after: Capture, changes: Changes, position: int) -> np.ndarray:
    """Logits of every token after one position. Shapes: -> [2, vocab]"""
    return frozen(_logits(model, before, after, changes, slice(position, position + 1))[:, 0])


def head_changes(model: Transformer, before: Capture, after: Capture) -> np.ndarray:
    """The change of each head's output, relative to its size before: |z' - z| / |z| over the prompt.

    Shapes: attn.hook_z [batch, pos, head, head_dim] of both -> [layer, head]
    """
    changes = []
    for layer in range(model.config.n_layers):
        name = f"blocks.{layer}.attn.hook_z"
        old, new = before[name][0].float(), after[name][0].float()  # [pos, head, head_dim]
        changes.append((new - old).norm(dim=(0, 2)) / old.norm(dim=(0, 2)))
    return frozen(torch.stack(changes))


@torch.no_grad()
def choice_logprobs(
    model: Transformer, prompt: Sequence[int], answers: Sequence[Sequence[int]], changes: Changes
) -> list[tuple[float, float]]:
    """The log-probability of each answer after the prompt, before and after, in nats, as multiple choice is scored."""
    requests = [(list(prompt), list(answer)) for answer in answers]
    totals = []
    for side in changes:
        with model.intervene(*from_json(side)):
            totals.append([total for total, _ in wb.score(model, requests)])
    return list(zip(*totals, strict=True))


def eval_command(changes: Sequence[Intervention], *, model: str, task: str, output: Path) -> str:
    """The shell command of the benchmark under these interventions; other than plain ablations, from `changes.json`."""
    plain = [change.target for change in changes if isinstance(change, Ablate) and len(change.to_dict()) == 2]
    option = ["--ablate", ",".join(plain)] if len(plain) == len(changes) else ["--intervene", "changes.json"]
    words = ["--model", model, "--tasks", task, "--output", str(output)]
    return shlex.join(["workbench", "eval", "run", *words, *(option if changes else [])])


def _logits(model: Transformer, before: Capture, after: Capture, changes: Changes, part: slice) -> torch.Tensor:
    rows = []
    for capture, side in zip((before, after), changes, strict=True):
        with model.intervene(*from_json(side)):  # an intervention may change the logits themselves
            rows.append(model.unembed(capture["ln_final.hook_out"][:, part], start=part.start))
    return torch.cat(rows)
