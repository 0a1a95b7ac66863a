"""Commands about information flow: rollout, maximum flow, value-weighted attention, routes."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from probes.base.cli_options import ON_A_PROMPT, Device, File, Layer, Model, Output, Prompt
from probes.base.command import capture, check, deliver, labels
from workbench.errors import DataError

Position = Annotated[int, typer.Option(help="Target position; negative numbers count from the last.")]


def rollout(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    layer: Annotated[int, typer.Option(help="Layer of the figure; negative numbers count from the last.")] = -1,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Flow: attention rollout through all layers."""
    check(output)
    from probes.flow import rollout as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    if not -loaded.config.n_layers <= layer < loaded.config.n_layers:
        raise DataError(f"--layer {layer}: the model has layers 0 to {loaded.config.n_layers - 1}.")
    deliver(probe.rollout(cap), output, origin, labels=labels(loaded, cap), layer=layer)


def flow(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    position: Position = -1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Refuse more tokens than this: the cost grows steeply.")] = 64,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Flow: maximum flow through attention, with the rollout."""
    check(output)
    from probes.flow import rollout as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    result = probe.attention_flow(cap, position=position, max_tokens=max_tokens)
    deliver(result, output, origin, labels=labels(loaded, cap))


def weighted(
    layer: Layer,
    head: Annotated[int | None, typer.Option(min=0, help="One head; default: all heads and the residual.")] = None,
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Flow: attention weighted by value norms."""
    check(output)
    from probes.flow import value_weighted as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device, layer=layer)
    deliver(probe.weighted_pattern(loaded, cap, layer, head), output, origin, labels=labels(loaded, cap))


def first_token(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    show: Annotated[
        Literal["attention", "weighted", "difference"], typer.Option(help="Values in the figure.")
    ] = "difference",
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Flow: each head's attention to it, and its contribution."""
    check(output)
    from probes.flow import value_weighted as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    deliver(probe.first_token(loaded, cap), output, origin, show=show)


def mixing(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Flow: share that attention brings from other positions."""
    check(output)
    from probes.flow import value_weighted as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    deliver(probe.context_mixing(loaded, cap), output, origin, labels=labels(loaded, cap))


def shares(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Flow: contributions of heads and MLPs to the stream."""
    check(output)
    from probes.flow import information_flow_routes as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    deliver(probe.stream_contributions(loaded, cap), output, origin)


def routes(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    position: Position = -1,
    threshold: Annotated[float, typer.Option(help="Minimum share of the stream for an edge.")] = 0.04,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Flow: information flow routes to one position."""
    check(output)
    from probes.flow import information_flow_routes as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    result = probe.routes(loaded, cap, position=position, threshold=threshold)
    deliver(result, output, origin, labels=labels(loaded, cap))


COMMANDS = (
    (rollout, ON_A_PROMPT),
    (flow, ON_A_PROMPT),
    (weighted, f" --layer 2 --head 1{ON_A_PROMPT}"),
    (first_token, ON_A_PROMPT),
    (mixing, ON_A_PROMPT),
    (shares, ON_A_PROMPT),
    (routes, ON_A_PROMPT),
)
