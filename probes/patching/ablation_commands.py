"""Command for head ablation."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from probes.base import head_names
from probes.base.cli_options import Device, Model, Output
from probes.base.command import Origin, check, deliver, load


def ablation(
    model: Model = "demo",
    chosen: Annotated[
        str,
        typer.Option("--heads", help="Heads to ablate, for example L2H3,L5H1; default: the model's induction heads."),
    ] = "",
    block: Annotated[int, typer.Option(min=2, help="Number of random tokens, which are then repeated.")] = 32,
    n_draws: Annotated[int, typer.Option("--draws", min=1, help="Number of random sets of as many heads.")] = 20,
    apart_from: Annotated[
        str, typer.Option(help="Heads to exclude from the draws, for example the previous-token heads: L4H0.")
    ] = "",
    mean: Annotated[bool, typer.Option("--mean", help="Replace a head's output by its mean instead of zero.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random tokens and draws.")] = 0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Heads: loss without some heads, against random others."""
    check(output)
    from probes.attention.head_metrics import repeated_blocks
    from probes.patching import ablation as probe

    heads = head_names.parse(chosen) if chosen else None
    excluded = head_names.parse(apart_from) if apart_from else []
    loaded = load(model, device)
    replacement: Literal["zero", "mean"] = "mean" if mean else "zero"
    result = probe.induction_ablation(
        loaded, heads, block=block, n_draws=n_draws, seed=seed, replacement=replacement, apart_from=excluded
    )
    extra = {"block": block, "draws": n_draws, "seed": seed, "replacement": replacement, "apart_from": apart_from}
    ids = repeated_blocks(loaded, block=block, batch=1, seed=seed)[0].tolist()
    deliver(result, output, Origin(model, loaded, extra=extra, ids=ids))


COMMANDS = ((ablation, " --heads L2H3,L5H0"),)
