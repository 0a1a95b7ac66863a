"""Command for generation: the distribution from which each token was drawn."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.base.cli_options import ON_A_PROMPT, Device, File, Model, Output, Prompt
from probes.base.command import check, deliver, labels_of, tokens


def sampled(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    steps: Annotated[int, typer.Option(min=1, help="Maximum number of tokens to generate.")] = 32,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature; 0 is greedy decoding.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Top-p (nucleus) sampling; 1 disables it.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Top-k sampling; 0 disables it.")] = 0,
    min_p: Annotated[
        float, typer.Option(min=0, max=1, help="Min-p sampling: share of the most likely token's; 0 disables it.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Divide the logits of tokens that occurred before; 1 disables it.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Random seed for sampling.")] = 0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Generation: probability, rank and entropy of every sampled token."""
    check(output)
    from probes.generation import token_choices as probe
    from workbench.inference.sampling import Sampling

    loaded, ids, origin = tokens(model, prompt, file, device)
    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty)
    trace = probe.sampling_trace(loaded, ids, sampling, seed=seed, max_new_tokens=steps)
    deliver(trace, output, origin, labels=labels_of(loaded, trace.tokens))


COMMANDS = ((sampled, ON_A_PROMPT),)
