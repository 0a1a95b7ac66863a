"""Commands on what reaches a position and from where: rollout, flow, what is moved, routes, retrieval, generation."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from probes.cli.given import ON_A_PROMPT, Device, File, Layer, Model, Output, Prompt
from probes.delivery import Origin, capture, check, deliver, labels, labels_of, load, text, tokens
from workbench.errors import DataError

Position = Annotated[int, typer.Option(help="The position asked about; negative ones count from the last.")]


def rollout(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    layer: Annotated[int, typer.Option(help="The figure's layer; negative ones count from the last.")] = -1,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Flow: attention followed back through all layers."""
    check(output)
    from probes import flow as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    if not -loaded.config.n_layers <= layer < loaded.config.n_layers:
        raise DataError(f"--layer {layer}: the model has layers 0 to {loaded.config.n_layers - 1}.")
    deliver(probe.rollout(cap), output, origin, labels=labels(loaded, cap), layer=layer)


def flow(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    position: Position = -1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Refuse a longer way: the cost grows steeply.")] = 64,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Flow: the largest through attention, beside the rollout."""
    check(output)
    from probes import flow as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    found = probe.attention_flow(cap, position=position, max_tokens=max_tokens)
    deliver(found, output, origin, labels=labels(loaded, cap))


def weighted(
    layer: Layer,
    head: Annotated[int | None, typer.Option(min=0, help="One head; all with the residual where not given.")] = None,
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Flow: attention weighted by the norms of what it moves."""
    check(output)
    from probes import weighted as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device, layer=layer)
    deliver(probe.weighted_pattern(loaded, cap, layer, head), output, origin, labels=labels(loaded, cap))


def first_token(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    show: Annotated[
        Literal["attention", "weighted", "difference"], typer.Option(help="What the figure shows.")
    ] = "difference",
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Flow: every head's attention to it, and what it gives."""
    check(output)
    from probes import weighted as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    deliver(probe.first_token(loaded, cap), output, origin, show=show)


def mixing(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Flow: how much attention brings from other positions."""
    check(output)
    from probes import weighted as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    deliver(probe.context_mixing(loaded, cap), output, origin, labels=labels(loaded, cap))


def shares(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Flow: heads' and MLPs' shares of the stream they enter."""
    check(output)
    from probes import routes as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    deliver(probe.stream_contributions(loaded, cap), output, origin)


def routes(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    position: Position = -1,
    threshold: Annotated[float, typer.Option(help="Least share of the stream that an edge enters.")] = 0.04,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Flow: the edges that lead to one position, as a graph."""
    check(output)
    from probes import routes as probe

    loaded, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    found = probe.routes(loaded, cap, position=position, threshold=threshold)
    deliver(found, output, origin, labels=labels(loaded, cap))


def retrieval(
    needle: Annotated[str, typer.Option(help="What is hidden in the text, between two sentences.")],
    question: Annotated[str, typer.Option(help="What is put after the text, so that the needle is written.")],
    model: Model = "demo",
    prompt: Annotated[str | None, typer.Option(help="The text that hides the needle.")] = None,
    file: File = None,
    depth: Annotated[
        list[float] | None, typer.Option(help="Where, from 0 to 1; may be repeated. 0, 0.5 and 1 where not given.")
    ] = None,
    least_recall: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out a prompt on which less of the needle is written.")
    ] = 0.5,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Heads: which look at a needle while they copy it."""
    check(output)
    from probes import retrieval as probe
    from workbench.commands import tokenizer_of

    given = text(prompt, file)
    loaded = load(model, device)
    tokenizer, depths = tokenizer_of(loaded, model), depth or [0.0, 0.5, 1.0]
    hays = [probe.haystack(tokenizer, given, needle, question, depth=at) for at in depths]
    found = probe.retrieval_scores(loaded, hays, least_recall=least_recall)
    extra = {"depths": depths, "least_recall": least_recall, "recall": found.recall.tolist()}
    deliver(found, output, Origin(model, loaded, sum(len(hay.tokens) for hay in hays), extra))


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
    from probes import generated as probe

    loaded, ids, origin = tokens(model, prompt, file, device)
    limits = {"threshold": threshold, "ratio": ratio, "magnitude": magnitude}
    found = probe.generated_stream(loaded, ids, steps=steps, **limits)
    deliver(found, output, origin, labels=labels_of(loaded, found.tokens), show=show)


COMMANDS = (
    (rollout, ON_A_PROMPT),
    (flow, ON_A_PROMPT),
    (weighted, f" --layer 2 --head 1{ON_A_PROMPT}"),
    (first_token, ON_A_PROMPT),
    (mixing, ON_A_PROMPT),
    (shares, ON_A_PROMPT),
    (routes, ON_A_PROMPT),
    (retrieval, " --prompt 'It rained. It was late.' --needle 'The code is 7 4 1 9.' --question 'The code is'"),
    (generated_stream, ON_A_PROMPT),
)
