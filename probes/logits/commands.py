"""Commands on what the stream says about the output: both lenses, and attribution to parts, neurons and keys."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from probes.base.cli_options import ON_A_PROMPT, Device, File, Model, Output, Prompt
from probes.base.command import capture, check, deliver, tokens
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.model import Transformer

Texts = Annotated[list[str] | None, typer.Option("--token", help="A token's text, as ' Paris'; may be repeated.")]
Ids = Annotated[list[int] | None, typer.Option("--id", help="A token's number; may be repeated.")]
Position = Annotated[int, typer.Option(help="The position whose next token is asked for; -1 is the last.")]


def lens(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    text: Texts = None,
    number: Ids = None,
    tuned: Annotated[Path | None, typer.Option(help="A tuned lens of this checkpoint, or the folder it is in.")] = None,
    by: Annotated[
        Literal["probability", "kl", "rank"], typer.Option(help="What the figure's colours, or its curves, show.")
    ] = "probability",
    position: Position = -1,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: what it would predict after every block.

    With --token or --id it follows these tokens through the layers; the figure does so at --position.
    """
    check(output)
    from probes.base import capture_access
    from probes.logits import logit_lens as probe
    from probes.logits.tuned_lens import TunedLens, tuned_lens

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    targets = _given(loaded, text, number)
    if tuned is None:
        found = probe.logit_lens(loaded, cap, targets=targets)
    else:
        found = tuned_lens(loaded, cap, TunedLens.load(tuned, loaded), targets=targets)
    if not targets:
        deliver(found, output, origin, by=by)
        return
    at = found.positions[capture_access.place(cap, position)]
    deliver(found.curves, output, origin, position=at, by="rank" if by == "rank" else "logprob")


def tuned_lens(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    train: Annotated[bool, typer.Option("--train", help="Train one on the text's first four fifths.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Where --train writes it: a file, or a folder, such as the model's.")
    ] = None,
    use: Annotated[Path | None, typer.Option(help="Measure one that was saved, on the whole text.")] = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a window.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training, of four windows each.")] = 250,
    seed: Annotated[int, typer.Option(help="Seed of the windows' order.")] = 0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: train a lens, or measure one on text it has not seen."""
    check(output)
    if train == (use is not None):
        raise DataError("say --train to train a lens, or --use PATH to measure one, one of them.")
    if save is not None and not train:
        raise DataError("--save goes with --train.")
    from probes.logits import tuned_lens as probe
    from probes.rope import loss_by_position

    loaded, ids, origin = tokens(model, prompt, file, device)
    windows = loss_by_position.windows(ids[1:], length, bos=ids[0])
    if use is not None:
        found = probe.lens_divergence(loaded, windows, probe.TunedLens.load(use, loaded))
        deliver(found, output, replace(origin, extra={"windows": list(windows.shape)}))
        return
    held = -(-len(windows) // 5)
    if held == len(windows):
        raise DataError(f"the text is one window of {length} tokens; training needs another: give more text.")
    made = probe.train_tuned_lens(loaded, windows[:-held], steps=steps, seed=seed)
    if save is not None:
        print(f"saved as {made.save(save)}", file=sys.stderr)
    found = probe.lens_divergence(loaded, windows[-held:], made)
    extra = {"windows": list(windows[-held:].shape), "trained_on": made.provenance["windows"], "steps": steps}
    deliver(found, output, replace(origin, extra={**extra, "seed": seed}))


def attribution(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    text: Texts = None,
    number: Ids = None,
    position: Position = -1,
    neurons: Annotated[bool, typer.Option("--neurons", help="To the MLPs' neurons instead of parts.")] = False,
    head: Annotated[str | None, typer.Option(help="To the tokens that one head looks at, as L2H3.")] = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: what each part, neuron or token adds to a logit.

    Without --token and --id: to the two likeliest next tokens. The first two tokens' difference comes first.
    """
    check(output)
    if neurons and head is not None:
        raise DataError("say --neurons or --head, one of them.")
    from probes.base.head_names import parse
    from probes.logits import component_attribution
    from probes.logits import logit_attribution as probe

    where = None if head is None else parse(head)[0]
    hooks = (
        component_attribution.NEURON_HOOKS
        if neurons
        else probe.HOOKS
        if where is None
        else component_attribution.SOURCE_HOOKS
    )
    loaded, cap, origin = capture(model, prompt, file, {*hooks, "ln_final.hook_out"}, device)
    given = _given(loaded, text, number)
    aims: list[probe.Target] = [*given]
    if len(given) > 1:
        aims.insert(0, (given[0], given[1]))
    aims = aims or probe.likeliest(loaded, cap, position=position)
    found: probe.LogitAttribution | component_attribution.NeuronAttribution | component_attribution.SourceAttribution
    if neurons:
        found = component_attribution.neuron_attribution(loaded, cap, aims, position=position)
    elif where is not None:
        found = component_attribution.source_attribution(loaded, cap, aims, where, position=position)
    else:
        found = probe.logit_attribution(loaded, cap, aims, position=position)
    named = ", ".join(f'{token} "{name}"' for token, name in probe.texts_of(loaded, aims).items())
    print(f"tokens {named}; the sums miss by {found.error:.1g} at most", file=sys.stderr)
    deliver(found, output, origin)


def _given(model: Transformer, texts: list[str] | None, ids: list[int] | None) -> list[int]:
    """The tokens that --token and --id name, in this order."""
    assert model.tokenizer is not None
    found = []
    for text in texts or ():
        pieces = model.tokenizer.encode(text)
        if len(pieces) != 1:
            raise DataError(f"--token {text!r} is {len(pieces)} tokens, {pieces[:8]}; name one of them with --id.")
        found += pieces
    return found + (ids or [])


COMMANDS = (
    (lens, ON_A_PROMPT),
    (tuned_lens, " --train --file README.md"),
    (attribution, ON_A_PROMPT),
)
