"""Commands for the logit lens, the tuned lens, and logit attribution to parts, neurons and keys."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from probes.base.cli_options import ON_A_PROMPT, Device, File, Model, Output, Prompt
from probes.base.command import capture, check, deliver, labels_of, split_begin, tokens
from workbench.errors import DataError

if TYPE_CHECKING:
    from workbench.model import Transformer

Texts = Annotated[
    list[str] | None, typer.Option("--token", help="Text of a token, for example ' Paris'; can be repeated.")
]
Ids = Annotated[list[int] | None, typer.Option("--id", help="Token id; can be repeated.")]
Position = Annotated[int, typer.Option(help="Position whose next token is predicted; -1 is the last.")]


def lens(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    text: Texts = None,
    number: Ids = None,
    tuned: Annotated[Path | None, typer.Option(help="File of a tuned lens of this checkpoint, or its folder.")] = None,
    by: Annotated[
        Literal["probability", "kl", "rank"], typer.Option(help="Quantity that the figure's colours or curves show.")
    ] = "probability",
    position: Position = -1,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: predictions after every block, by the logit lens.

    With --token or --id: probability and rank of these tokens at every layer; the figure shows them at --position.
    """
    check(output)
    from probes.base import capture_access
    from probes.logits import logit_lens as probe
    from probes.logits.tuned_lens import TunedLens, tuned_lens

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    targets = _target_ids(loaded, text, number)
    if tuned is None:
        result = probe.logit_lens(loaded, cap, targets=targets)
    else:
        result = tuned_lens(loaded, cap, TunedLens.load(tuned, loaded), targets=targets)
    if not targets:
        deliver(result, output, origin, by=by)
        return
    absolute = result.positions[capture_access.place(cap, position)]
    deliver(result.curves, output, origin, position=absolute, by="rank" if by == "rank" else "logprob")


def tuned_lens(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    train: Annotated[bool, typer.Option("--train", help="Train a lens on the first 80% of the text.")] = False,
    save: Annotated[
        Path | None, typer.Option(help="Where --train saves the lens: a file or a folder, for example the model's.")
    ] = None,
    use: Annotated[Path | None, typer.Option(help="Measure a saved lens on the whole text.")] = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Training steps, of four windows each.")] = 250,
    seed: Annotated[int, typer.Option(help="Seed for the order of the windows.")] = 0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: train a tuned lens, or measure one on new text."""
    check(output)
    if train == (use is not None):
        raise DataError("use --train to train a lens, or --use PATH to measure one; exactly one of them.")
    if save is not None and not train:
        raise DataError("--save goes with --train; without it there is no new lens to save.")
    from probes.logits import tuned_lens as probe
    from probes.rope import loss_by_position

    loaded, ids, origin = tokens(model, prompt, file, device)
    begin, body = split_begin(loaded, ids)
    windows = loss_by_position.windows(body, length, bos=begin)
    if use is not None:
        result = probe.lens_divergence(loaded, windows, probe.TunedLens.load(use, loaded))
        deliver(result, output, replace(origin, extra={"windows": list(windows.shape)}))
        return
    n_test = -(-len(windows) // 5)
    if n_test == len(windows):
        raise DataError(f"the text is one window of {length} tokens; training needs at least two: give more text.")
    lens = probe.train_tuned_lens(loaded, windows[:-n_test], steps=steps, seed=seed)
    if save is not None:
        print(f"saved as {lens.save(save)}", file=sys.stderr)
    result = probe.lens_divergence(loaded, windows[-n_test:], lens)
    extra = {"windows": list(windows[-n_test:].shape), "trained_on": lens.provenance["windows"], "steps": steps}
    deliver(result, output, replace(origin, extra={**extra, "seed": seed}))


def attribution(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    text: Texts = None,
    number: Ids = None,
    position: Position = -1,
    neurons: Annotated[
        bool, typer.Option("--neurons", help="Attribute to the neurons of the MLPs instead of parts.")
    ] = False,
    head: Annotated[
        str | None, typer.Option(help="Attribute to the tokens that one head attends to, for example L2H3.")
    ] = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: contribution of each part, neuron or token to a logit.

    Without --token and --id, the tokens are the two most likely next tokens. The difference of the first two tokens'
    logits comes first.
    """
    check(output)
    if neurons and head is not None:
        raise DataError("use --neurons or --head, only one of them.")
    from probes.base.head_names import parse
    from probes.logits import component_attribution
    from probes.logits import logit_attribution as probe

    layer_head = None if head is None else parse(head)[0]
    hooks = (
        component_attribution.NEURON_HOOKS
        if neurons
        else probe.HOOKS
        if layer_head is None
        else component_attribution.SOURCE_HOOKS
    )
    loaded, cap, origin = capture(model, prompt, file, {*hooks, "ln_final.hook_out"}, device)
    token_ids = _target_ids(loaded, text, number)
    targets: list[probe.Target] = [*token_ids]
    if len(token_ids) > 1:
        targets.insert(0, (token_ids[0], token_ids[1]))
    targets = targets or probe.likeliest(loaded, cap, position=position)
    result: probe.LogitAttribution | component_attribution.NeuronAttribution | component_attribution.SourceAttribution
    if neurons:
        result = component_attribution.neuron_attribution(loaded, cap, targets, position=position)
    elif layer_head is not None:
        result = component_attribution.source_attribution(loaded, cap, targets, layer_head, position=position)
    else:
        result = probe.logit_attribution(loaded, cap, targets, position=position)
    description = ", ".join(f'{token} "{name}"' for token, name in probe.target_texts(loaded, targets).items())
    print(f"tokens {description}; largest error of the sums: {result.error:.1g}", file=sys.stderr)
    deliver(result, output, origin)


def salience(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    text: Texts = None,
    number: Ids = None,
    position: Position = -1,
    method: Annotated[
        Literal["integrated", "gradient"], typer.Option(help="Integrated gradients, or one gradient times the input.")
    ] = "integrated",
    baseline: Annotated[
        str, typer.Option(help="Where integrated gradients begin: mean (of all embeddings), zero, or a token id.")
    ] = "mean",
    tolerance: Annotated[float, typer.Option(help="Largest error of the sum, as a share of the change.")] = 0.01,
    dtype: Annotated[str, typer.Option(help="float32, or auto: the checkpoint's dtype, often too coarse.")] = "float32",
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: contribution of each input token to a logit.

    Without --token and --id, the target is the difference of the two most likely next tokens. With several tokens, the
    difference of the first two comes first.
    """
    check(output)
    import torch

    from probes.logits import input_salience as probe
    from probes.logits.logit_attribution import Target, target_texts

    start: probe.Baseline = baseline if baseline in ("mean", "zero") else -1  # type: ignore[assignment]
    if start == -1:
        if not baseline.isdecimal():
            raise DataError(f"--baseline {baseline}: use mean, zero or a token id.")
        start = int(baseline)
    loaded, ids, origin = tokens(model, prompt, file, device, dtype=dtype)
    token_ids = _target_ids(loaded, text, number)
    targets: list[Target] = [*token_ids]
    if len(token_ids) > 1:
        targets.insert(0, (token_ids[0], token_ids[1]))
    if not targets:
        with torch.no_grad():
            logits = loaded(torch.tensor([ids], device=loaded.device))[0]
        if not -len(ids) <= position < len(ids):
            raise DataError(f"--position {position}: the prompt has positions 0 to {len(ids) - 1}.")
        first, second = logits[position].topk(2).indices.tolist()
        targets = [(first, second)]
    if method == "gradient":
        result = probe.gradient_x_input(loaded, ids, targets, position=position)
    else:
        result = probe.integrated_gradients(
            loaded, ids, targets, position=position, baseline=start, tolerance=tolerance
        )
    description = ", ".join(f'{token} "{name}"' for token, name in target_texts(loaded, targets).items())
    print(f"tokens {description}; largest error of the sums: {result.error:.2g} logits", file=sys.stderr)
    extra = {"method": result.method, "position": result.position, "targets": [*result.tokens]}
    extra |= {"error": result.error, "converged": result.converged, "n_gradients": result.n_gradients}
    extra |= {} if method == "gradient" else {"baseline": baseline, "tolerance": tolerance}
    deliver(result, output, replace(origin, extra=extra), labels=labels_of(loaded, result.prompt))


def _target_ids(model: Transformer, texts: list[str] | None, ids: list[int] | None) -> list[int]:
    """Token ids of --token, then of --id."""
    if not texts:
        return ids or []
    if model.tokenizer is None:
        raise DataError("the model has no tokenizer, which --token needs; give --id.")
    token_ids = []
    for text in texts:
        pieces = model.tokenizer.encode_continuation(text)
        if len(pieces) != 1:
            raise DataError(f"--token {text!r} is {len(pieces)} tokens, {pieces[:8]}; give one of them with --id.")
        token_ids += pieces
    return token_ids + (ids or [])


COMMANDS = (
    (lens, ON_A_PROMPT),
    (tuned_lens, " --train --file README.md"),
    (attribution, ON_A_PROMPT),
    (salience, f"{ON_A_PROMPT} --method gradient"),
)
