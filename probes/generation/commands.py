"""The command on a generated text: what every token was drawn from."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.base.cli_options import ON_A_PROMPT, Device, File, Model, Output, Prompt
from probes.base.command import check, deliver, labels_of, tokens


def sampled(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    steps: Annotated[int, typer.Option(min=1, help="Tokens to generate, at most.")] = 32,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Sample from this much probability; 1 is all.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from this many tokens; 0 is all.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Generation: what every token was drawn from, its rank and the entropy before it."""
    check(output)
    from probes.generation import token_choices as probe
    from workbench.inference.sampling import Sampling

    loaded, ids, origin = tokens(model, prompt, file, device)
    trace = probe.sampling_trace(loaded, ids, Sampling(temperature, top_p, top_k), seed=seed, max_new_tokens=steps)
    deliver(trace, output, origin, labels=labels_of(loaded, trace.tokens))


COMMANDS = ((sampled, ON_A_PROMPT),)
