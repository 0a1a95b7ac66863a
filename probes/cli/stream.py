"""Commands on the residual stream: what is added to it, what grows in it."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.cli.given import ON_A_PROMPT, Device, File, Model, Output, Prompt
from probes.delivery import capture, check, deliver


def contributions(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Stream: what attention and the MLP add to it."""
    check(output)
    from probes import norms

    _, cap, origin = capture(model, prompt, file, norms.HOOKS, device)
    deliver(norms.contribution_ratios(cap), output, origin)


def massive(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    threshold: Annotated[float, typer.Option(help="Least magnitude.")] = 100.0,
    ratio: Annotated[float, typer.Option(help="Least multiple of the layer's median magnitude.")] = 1000.0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: massive activations, entry by entry."""
    check(output)
    from probes import norms

    _, cap, origin = capture(model, prompt, file, ["blocks.*.hook_resid_post"], device)
    found = norms.massive_activations(cap, threshold=threshold, ratio=ratio)
    deliver(found, output, origin)


def outliers(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    magnitude: Annotated[float, typer.Option(help="Least magnitude of a large entry.")] = 6.0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: dimensions that are large nearly everywhere."""
    check(output)
    from probes import norms

    _, cap, origin = capture(model, prompt, file, ["blocks.*.hook_resid_post"], device)
    deliver(norms.outlier_dimensions(cap, magnitude=magnitude), output, origin)


COMMANDS = (
    (contributions, ON_A_PROMPT),
    (massive, ON_A_PROMPT),
    (outliers, ON_A_PROMPT),
)
