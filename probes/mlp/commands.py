"""Commands for MLP neurons."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.base.cli_options import ON_A_PROMPT, Device, File, Model, Output, Prompt, without
from probes.base.command import Origin, capture, check, deliver, load


def neurons(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Neurons: open gates, sparsity, kurtosis, top positions."""
    check(output)
    from probes.mlp import neurons as probe

    _, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    deliver(probe.neuron_statistics(cap), output, origin)


@without("intervene", "ablate")
def neuron(
    layer: Annotated[int, typer.Option(min=0, help="Layer of the neuron.")],
    neuron: Annotated[int, typer.Option(min=0, help="Number of the neuron.")],
    model: Model = "demo",
    top: Annotated[int, typer.Option(min=1, help="Promoted and suppressed tokens to list, each.")] = 10,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Neurons: tokens that one neuron promotes and suppresses."""
    check(output)
    from probes.mlp import neurons as probe

    loaded = load(model, device)
    result = probe.neuron_tokens(loaded, layer, [neuron], k=top)
    deliver(result, output, Origin(model, loaded))


@without("intervene", "ablate")
def entropy_neurons(model: Model = "demo", output: Output = None, device: Device = "auto") -> None:
    """Neurons: entropy neurons (large weights, equal effect on all logits)."""
    check(output)
    from probes.mlp import neurons as probe

    loaded = load(model, device)
    result = probe.entropy_neurons(loaded)
    deliver(result, output, Origin(model, loaded))


COMMANDS = (
    (neurons, ON_A_PROMPT),
    (neuron, " --layer 2 --neuron 7"),
    (entropy_neurons, ""),
)
