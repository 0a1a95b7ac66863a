"""The norms while a model writes: what each one divides by, and what each sublayer adds, at every generated token.

Each step is captured as it is run, on the key/value cache: nothing is computed twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from probes import norms
from probes.norms import ContributionRatios, InputRms
from workbench.errors import DataError
from workbench.model import Transformer

HOOKS = tuple(name for name in norms.HOOKS if not name.endswith("resid_post"))
"""What is captured at every step."""


@dataclass(frozen=True)
class GeneratedNorms:
    """Norms over a prompt and what was generated after it, for one sequence.

    `tokens` are the ids that were run: the prompt's, then all generated ones but the last, which nothing has read.
    Position p of `rms` and `contributions` belongs to tokens[p]; from `n_prompt` - 1 on, each one's run chose the next.
    """

    tokens: tuple[int, ...]
    n_prompt: int
    rms: InputRms
    contributions: ContributionRatios

    def frame(self) -> pd.DataFrame:
        """One row per norm and position: layer, norm, pos, step (0 for the prompt), token, rms."""
        table = self.rms.frame().drop(columns="batch")
        steps = np.maximum(table["pos"].to_numpy() - self.n_prompt + 1, 0)
        table.insert(3, "step", steps)
        table.insert(4, "token", np.array(self.tokens)[table["pos"].to_numpy()])
        return table


@torch.no_grad()
def generated_norms(model: Transformer, prompt: Sequence[int], *, steps: int = 32) -> GeneratedNorms:
    """Input RMS and contribution ratios over a prompt and `steps` greedily generated tokens.

    Shapes: prompt [pos] -> rms [norm, 1, pos + steps - 1], contributions [layer, sublayer, 1, pos + steps - 1]
    Units:  as `probes.norms.input_rms` and `contribution_ratios`.
    Raises: DataError for an empty prompt or no steps.
    Exact:  equals one capture of the whole text, up to the rounding of a cached run.
    """
    if not prompt or steps < 1:
        raise DataError(f"generation needs a prompt and at least 1 step; found {len(prompt)} tokens, {steps} steps.")
    cache = model.empty_cache(1, len(prompt) + steps - 1)
    tokens, now = list(prompt), list(prompt)
    found = []
    for step in range(steps):
        logits, cap = model.run_with_capture(torch.tensor([now], device=model.device), HOOKS, cache=cache)
        found.append((norms.input_rms(cap), norms.contribution_ratios(cap)))
        now = [int(logits[0, -1].argmax())]
        if step < steps - 1:
            tokens += now
    rms, ratios = [part[0] for part in found], [part[1] for part in found]

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        whole = np.concatenate(parts, -1)
        whole.setflags(write=False)
        return whole

    return GeneratedNorms(
        tuple(tokens),
        len(prompt),
        InputRms(rms[0].norms, joined([part.rms for part in rms]), sum(part.nonfinite for part in rms)),
        ContributionRatios(
            ratios[0].layers, joined([part.ratio for part in ratios]), joined([part.cosine for part in ratios])
        ),
    )
