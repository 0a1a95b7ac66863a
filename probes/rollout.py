"""Attention followed back to the input tokens, through all layers at once."""

import numpy as np
import torch

from probes import reading
from probes.attention import HOOKS as HOOKS
from probes.attention import PATTERN
from probes.results import frozen
from workbench.capture import Capture
from workbench.errors import HookError


def rollout(cap: Capture) -> np.ndarray:
    """Attention followed back through the layers: R_l = (A_l / 2 + I / 2) R_{l-1}, A_l the mean over heads.

    Shapes: hook_pattern of every layer -> [layer, batch, query_pos, key_pos], float64; every row sums to 1
    Units:  share of a position's stream that comes from each input token, if values and MLPs changed nothing: the
            paper's assumption, which no real model meets.
    Raises: HookError if a layer or a head is missing, or the capture is narrowed; the whole product is held in memory.
    Source: arXiv 2005.00928.
    """
    reading.whole(cap, "rollout")
    reading.unpadded(cap)
    if reading.layers(cap, PATTERN) != tuple(range(cap.config.n_layers)) or cap.heads is not None:
        raise HookError("rollout multiplies every layer's mean over heads; capture all layers and heads.")
    batch, seqlen = cap.tokens.shape
    mixed = torch.eye(seqlen, dtype=torch.float64).expand(batch, -1, -1)
    found = []
    for layer in range(cap.config.n_layers):
        attended = cap.pattern(layer).detach().double().mean(1).cpu()  # [batch, query_pos, key_pos]
        mixed = (attended @ mixed + mixed) / 2
        found.append(mixed)
    return frozen(torch.stack(found))
