"""Gradients inside a probe, whatever the caller has switched off."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from workbench.errors import HookError
from workbench.model import Transformer


@contextmanager
def enabled(model: Transformer) -> Iterator[None]:
    """Autograd is on in this block, also inside the caller's `no_grad` or `inference_mode`.

    Raises: HookError if the weights themselves were made in `inference_mode`: no gradient can go through them.
    """
    if any(weight.is_inference() for weight in model.parameters()):
        raise HookError(
            "the model's weights were made under torch.inference_mode(), which forbids gradients; "
            "load the model outside of it."
        )
    with torch.inference_mode(False), torch.enable_grad():
        yield
