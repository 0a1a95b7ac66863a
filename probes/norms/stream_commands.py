"""Commands for the residual stream: contributions of the sublayers, massive activations, outlier dimensions."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from probes.base.cli_options import ON_A_PROMPT, Device, File, Model, Output, Prompt
from probes.base.command import capture, check, deliver, labels_of, tokens


def contributions(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Stream: contributions of attention and the MLP."""
    check(output)
    from probes.norms import rms_norms

    _, cap, origin = capture(model, prompt, file, rms_norms.HOOKS, device)
    deliver(rms_norms.contribution_ratios(cap), output, origin)


def massive(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    threshold: Annotated[float, typer.Option(help="Minimum magnitude.")] = 100.0,
    ratio: Annotated[float, typer.Option(help="Minimum ratio to the layer's median magnitude.")] = 1000.0,
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
    magnitude: Annotated[float, typer.Option(help="Minimum size of a large entry, in standard deviations.")] = 6.0,
    absolute: Annotated[bool, typer.Option("--absolute", help="Compare magnitudes themselves.")] = False,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: outlier dimensions, large in many layers and tokens."""
    check(output)
    from probes.norms import rms_norms

    _, cap, origin = capture(model, prompt, file, ["blocks.*.hook_resid_post"], device)
    deliver(rms_norms.outlier_dimensions(cap, magnitude=magnitude, absolute=absolute), output, origin)


def generated_stream(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    steps: Annotated[int, typer.Option(min=1, help="Tokens to generate with greedy decoding.")] = 32,
    show: Annotated[
        Literal["largest", "median", "massive", "large", "attn", "mlp"],
        typer.Option(help="Quantity that the figure shows."),
    ] = "largest",
    threshold: Annotated[float, typer.Option(help="Minimum magnitude of a massive activation.")] = 100.0,
    ratio: Annotated[float, typer.Option(help="Minimum ratio to the position's median magnitude.")] = 1000.0,
    magnitude: Annotated[
        float, typer.Option(help="Minimum size in an outlier dimension, in standard deviations.")
    ] = 6.0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: largest activations and contributions during generation."""
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
