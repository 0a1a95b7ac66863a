"""The tuned lens: the logit lens with a trained affine translator for each layer, x + A x + b.

The translators start at zero, where the lens is the logit lens, and learn to bring each layer's prediction close to
the model's own. They belong to one checkpoint: the saved file names it, and cannot be loaded with another.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from probes.base import arguments, gradients
from probes.base.bootstrap import LEVEL, RESAMPLES, draws, percentiles
from probes.base.result import Result, frozen
from probes.logits import logit_lens as plain
from probes.logits.logit_lens import EMBED, LogitLens
from workbench import provenance
from workbench.errors import CheckpointError, HookError
from workbench.hooks.capture import Capture
from workbench.model import Transformer

FILE = "tuned_lens.safetensors"  # its name in a checkpoint folder
FORMAT = "workbench tuned lens 1"


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Translators for the embedding (layer -1) and every block except the last, whose stream needs none.

    Shapes: weight [layer, dim, dim], bias [layer, dim] float32
    """

    layers: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    provenance: Mapping[str, Any]

    @classmethod
    def zero(cls, model: Transformer) -> "TunedLens":
        """The lens before training: it changes nothing."""
        layers, dim = tuple(range(EMBED, model.config.n_layers - 1)), model.config.dim
        weight = torch.zeros(len(layers), dim, dim, device=model.device)
        return cls(layers, weight, weight.new_zeros(len(layers), dim), MappingProxyType(_provenance(model)))

    def translate(self, layer: int, stream: Tensor) -> Tensor:
        """x + A x + b in float32, then in the stream's dtype; the last layer's stream is not changed.

        Shapes: [..., dim] -> [..., dim]
        """
        if layer not in self.layers:
            return stream
        at = self.layers.index(layer)
        return _translate(stream, self.weight[at], self.bias[at])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the translators and their provenance to a safetensors file; `FILE` is its name if the path is a folder.

        Raises: CheckpointError if the file cannot be written, or the model was not loaded from a checkpoint.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = _lens_path(path)
        if self.provenance["checkpoint_sha256"] is None:
            raise CheckpointError(
                "a tuned lens belongs to a checkpoint, but its model has none; save the model and load it first."
            )
        tensors = {"weight": self.weight.cpu().contiguous(), "bias": self.bias.cpu().contiguous()}
        about = json.dumps({"layers": self.layers, "provenance": dict(self.provenance)})
        temporary = path.with_name(path.name + ".partial")
        try:
            save_file(tensors, temporary, metadata={"format": FORMAT, "about": about})
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointError(f"{path} cannot be written: {error}") from error
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Transformer) -> "TunedLens":
        """Read translators that `save` wrote, from a file or its folder, onto the model's device.

        Raises: CheckpointError for another kind of file, or a lens that was trained on another checkpoint.
        """
        from safetensors import SafetensorError, safe_open

        path = _lens_path(path)
        try:
            with safe_open(str(path), framework="pt", device=str(model.device)) as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise CheckpointError(f"{path} is not a tuned lens in the format {FORMAT!r}.")
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read as a tuned lens: {error}") from error
        about = json.loads(metadata["about"])
        lens_checkpoint, model_checkpoint = about["provenance"]["checkpoint_sha256"], _checkpoint_sha256(model)
        if lens_checkpoint != model_checkpoint:
            this_model = "comes from no file" if model_checkpoint is None else f"is {model_checkpoint[:12]}"
            raise CheckpointError(
                f"{path} was trained on checkpoint {lens_checkpoint[:12]}, but this model {this_model}; "
                "train a lens for this model."
            )
        return cls(tuple(about["layers"]), weight, bias, MappingProxyType(about["provenance"]))


def tuned_lens(
    model: Transformer,
    cap: Capture,
    lens: TunedLens,
    *,
    k: int = 5,
    targets: Sequence[int] = (),
    position: int | None = None,
    row: int = 0,
) -> LogitLens:
    """Top-k tokens decoded from the translated stream of every captured layer: W_U N(x + A_l x + b_l).

    At every captured position, or at one: absolute, or negative from the last captured one. Capture
    `probes.logits.logit_lens.HOOKS`. The cost is that of the logit lens plus 2 * dim^2 FLOPs per layer and position.
    Shapes: hook_resid_post [layer, batch, pos, dim] -> [layer, pos, k]; `curves` [layer, pos, target]
    Units:  natural log (nats), computed in float32 from the model's own logits.
    Raises: MissingHookError if `hook_resid_post` was captured for no layer, or `ln_final.hook_out` was not; HookError
            for a lens of another shape, a target outside the vocabulary, or a position that was not captured.
    Source: arXiv 2303.08112.
    Exact:  a lens of zeros is the logit lens; the last layer equals the model's own output.
    """
    _check_shape(model, lens)
    return plain.decode_streams(model, cap, lens.translate, k=k, targets=targets, position=position, row=row)


def train_tuned_lens(
    model: Transformer, windows: Tensor, *, steps: int = 250, batch: int = 4, lr: float = 1e-3, seed: int = 0
) -> TunedLens:
    """Train translators to minimise the mean KL(final || lens) over tokens, by Adam with a decaying learning rate.

    The layers are independent of each other, and the model itself does not change. The translators, their gradients
    and Adam's two moments take 16 * layers * dim^2 bytes (3.4 MiB for the demo's shape, 8 GiB for Llama 3 8B). The
    streams and logits of one batch are added to this, so memory is linear in the windows' length; logits are computed
    in blocks of `logit_lens.MAX_LOGITS`. A step costs one forward pass of the batch and, per layer and token,
    4 * dim * vocab FLOPs for the unembedding and its gradient. `seed` shuffles the windows; the same seed gives the
    same lens on the same machine.
    Shapes: windows [window, pos] int64
    Works under `no_grad` and `inference_mode` too.
    Raises: HookError for no steps, an empty batch, or no windows.
    Source: arXiv 2303.08112 (there with SGD; Adam needs no warm-up at this size).
    """
    arguments.token_batch(windows, "windows")
    if steps < 1 or batch < 1 or not len(windows):
        raise HookError(
            f"training needs at least 1 step, 1 window and a batch of 1; found {steps} steps, {len(windows)} windows "
            f"and a batch of {batch}."
        )
    with gradients.enabled(model):
        lens = TunedLens.zero(model)
        pairs = zip(lens.weight, lens.bias, strict=True)
        parameters = [view.requires_grad_() for pair in pairs for view in pair]  # trained in the lens's own memory
        optimiser = torch.optim.Adam(parameters, lr=lr)
        generator = torch.Generator().manual_seed(seed)
        rounds = -(-steps * batch // len(windows))
        order = torch.cat([torch.randperm(len(windows), generator=generator) for _ in range(rounds)])
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = lr * (1 - step / steps)
            optimiser.zero_grad()
            chosen = windows[order[step * batch : (step + 1) * batch]].to(model.device)
            for parameter, gradient in zip(parameters, _gradients(model, chosen, parameters), strict=True):
                parameter.grad = gradient
            optimiser.step()
    about = {"windows": list(windows.shape), "steps": steps, "batch": batch, "lr": lr, "seed": seed}
    return replace(lens, provenance=MappingProxyType({**lens.provenance, **about}))


def _gradients(model: Transformer, tokens: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of each layer's mean divergence, in the order of the parameters: weight and bias of every layer."""
    with torch.no_grad():
        _, cap = model.run_with_capture(tokens, plain.HOOKS, logits=None)
    final_out = cap["ln_final.hook_out"].flatten(0, 1)  # [batch * pos, dim]
    streams = list(plain.residual_streams(cap).values())[:-1]
    gradients = [torch.zeros_like(parameter) for parameter in parameters]
    for part in plain.position_blocks(len(final_out), model.config.vocab_size):
        with torch.no_grad():
            final = model.unembed(final_out[part]).log_softmax(-1)
        for at, stream in enumerate(streams):
            translator = parameters[2 * at : 2 * at + 2]
            with torch.enable_grad():
                translated = _translate(stream.flatten(0, 1)[part], *translator)
                prediction = model.unembed(model.norm(translated, None)).log_softmax(-1)
                loss = torch.nn.functional.kl_div(prediction, final, reduction="sum", log_target=True) / len(final_out)
            for total, gradient in zip(
                gradients[2 * at : 2 * at + 2], torch.autograd.grad(loss, translator), strict=True
            ):
                total += gradient
    return gradients


# --- does it help? --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LensDivergence(Result):
    """KL(final || lens) of the logit lens and of a tuned lens, in nats per token. Arrays are [layer, window]."""

    layers: tuple[int, ...]
    logit: np.ndarray
    tuned: np.ndarray

    AXES = {"logit": ("layer", "window"), "tuned": ("layer", "window")}
    FIGURE = "probes.logits.figures.lens_divergence"
    UNITS = "nats per token"

    def frame(self) -> pd.DataFrame:
        """One row per layer: layer, logit, tuned, change, and the change's 95% interval over windows, low to high."""
        change = self.tuned - self.logit
        n = change.shape[1]
        low, high = percentiles(draws(n, RESAMPLES, 0) / n @ change.T, LEVEL) if n > 1 else (np.nan, np.nan)
        means = {"logit": self.logit.mean(1), "tuned": self.tuned.mean(1), "change": change.mean(1)}
        return pd.DataFrame({"layer": self.layers, **means, "low": low, "high": high})


@torch.no_grad()
def lens_divergence(model: Transformer, windows: Tensor, lens: TunedLens) -> LensDivergence:
    """KL from both lenses to the model's own output, by layer; use windows that the lens was not trained on.

    Shapes: windows [window, pos] int64 -> [layer, window]
    Units:  nats per token, the mean over a window.
    Raises: HookError for a lens of another shape.
    Source: arXiv 2303.08112.
    Exact:  0 at the last layer, for both.
    """
    arguments.token_batch(windows, "windows")
    logit, tuned = [], []
    for window in windows.to(model.device):
        _, cap = model.run_with_capture(window[None], plain.HOOKS, logits=None)
        before, after = plain.logit_lens(model, cap, k=1), tuned_lens(model, cap, lens, k=1)
        logit.append(before.kl.mean(-1))
        tuned.append(after.kl.mean(-1))
    return LensDivergence(before.layers, frozen(np.stack(logit, 1)), frozen(np.stack(tuned, 1)))


# --- what they share ------------------------------------------------------------------------------------------


def _lens_path(path: str | os.PathLike[str]) -> Path:
    return Path(path) / FILE if Path(path).is_dir() else Path(path)


def _translate(stream: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    wide = stream.float()
    return (wide + wide @ weight.T + bias).to(stream.dtype)


def _check_shape(model: Transformer, lens: TunedLens) -> None:
    config = model.config
    if lens.layers != tuple(range(EMBED, config.n_layers - 1)) or lens.weight.shape[-1] != config.dim:
        raise HookError(
            f"the lens is for {len(lens.layers)} layers of {lens.weight.shape[-1]}, but the model has "
            f"{config.n_layers} layers of {config.dim}; train a lens for this model."
        )


def _checkpoint_sha256(model: Transformer) -> str | None:
    return None if model.source is None else model.source.checkpoint_sha256


def _provenance(model: Transformer) -> dict[str, Any]:
    return {
        "model": None if model.source is None else model.source.name,
        "checkpoint_sha256": _checkpoint_sha256(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }
