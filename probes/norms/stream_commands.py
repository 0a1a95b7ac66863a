"""Commands on the residual stream: what is added to it, what grows in it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from probes.base.cli_options import ON_A_PROMPT, Device, File, Model, Output, Prompt
from probes.base.command import capture, check, deliver, labels_of, tokens


def contributions(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Stream: what attention and the MLP add to it."""
    check(output)
    from probes.norms import rms_norms

    _, cap, origin = capture(model, prompt, file, rms_norms.HOOKS, device)
    deliver(rms_norms.contribution_ratios(cap), output, origin)


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
    from probes.norms import rms_norms

    _, cap, origin = capture(model, prompt, file, ["blocks.*.hook_resid_post"], device)
    result = rms_norms.massive_activations(cap, threshold=threshold, ratio=ratio)
    deliver(result, output, origin)


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
    from probes.norms import rms_norms

    _, cap, origin = capture(model, prompt, file, ["blocks.*.hook_resid_post"], device)
    deliver(rms_norms.outlier_dimensions(cap, magnitude=magnitude), output, origin)


def generated_stream(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    steps: Annotated[int, typer.Option(min=1, help="Tokens to generate, greedily.")] = 32,
    show: Annotated[
        Literal["largest", "median", "massive", "large", "attn", "mlp"], typer.Option(help="What the figure shows.")
    ] = "largest",
    threshold: Annotated[float, typer.Option(help="Least magnitude of a massive activation.")] = 100.0,
    ratio: Annotated[float, typer.Option(help="Least multiple of the position's median magnitude.")] = 1000.0,
    magnitude: Annotated[float, typer.Option(help="Least magnitude of an outlier dimension's entry.")] = 6.0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: what grows in it while the model writes."""
    check(output)
    from probes.norms import during_generation as probe

    loaded, ids, origin = tokens(model, prompt, file, device)
    limits = {"threshold": threshold, "ratio": ratio, "magnitude": magnitude}
    result = probe.generated_stream(loaded, ids, steps=steps, **limits)
    deliver(result, output, origin, labels=labels_of(loaded, result.tokens), show=show)


COMMANDS = (
    (contributions, ON_A_PROMPT),
    (massive, ON_A_PROMPT),
    (outliers, ON_A_PROMPT),
    (generated_stream, ON_A_PROMPT),
)
