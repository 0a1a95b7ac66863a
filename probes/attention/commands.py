"""Commands about attention heads: metrics, types, maps, and retrieval."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.base.cli_options import ON_A_HEAD, ON_A_PROMPT, Device, File, Model, Output, Prompt, of_head, without
from probes.base.command import Origin, capture, check, deliver, encoded, load, text, text_unless_ids


def heads(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Heads: entropy, sinks, previous token, distance, ..."""
    check(output)
    from probes.attention import head_metrics

    _, cap, origin = capture(model, prompt, file, head_metrics.HOOKS, device)
    deliver(head_metrics.head_metrics(cap), output, origin)


def catalogue(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    threshold: Annotated[
        list[str] | None, typer.Option(help="Threshold of a type, for example previous=0.5. Repeatable.")
    ] = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Heads: list by type. Each line of the text is a prompt; intervals need two or more.

    Induction and duplicate-token heads are measured on repeated random tokens.
    """
    check(output)
    from probes.attention import head_types as probe

    rules = probe.with_thresholds(threshold or ())
    prompt_text = text_unless_ids(prompt, file)
    lines = [None] if prompt_text is None else [line for line in prompt_text.splitlines() if line.strip()]
    loaded = load(model, device)
    prompts = [encoded(loaded, model, line) for line in lines]
    result = probe.catalogue(probe.text_scores(loaded, prompts), probe.repeat_scores(loaded), rules=rules)
    extra = {"n_prompts": len(prompts), "thresholds": {kind: rule.threshold for kind, rule in rules.items()}}
    origin = Origin(model, loaded, sum(map(len, prompts)), extra, prompts[0])
    deliver(result, output, origin)


def groups(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Heads: similarity within and across key/value groups."""
    check(output)
    from probes.attention import kv_groups as probe

    _, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    deliver(probe.group_similarity(cap), output, origin)


def received(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Heads: attention that each token receives."""
    check(output)
    from probes.attention import key_mass as probe

    _, cap, origin = capture(model, prompt, file, probe.HOOKS, device)
    deliver(probe.key_mass(cap), output, origin)


def induction(
    model: Model = "demo",
    block: Annotated[int, typer.Option(min=1, help="Number of random tokens, which are then repeated.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the random tokens.")] = 0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Heads: induction scores on repeated random tokens."""
    check(output)
    from probes.attention import head_metrics

    loaded = load(model, device)
    result = head_metrics.induction_scores(loaded, block=block, seed=seed)
    ids = head_metrics.repeated_blocks(loaded, block=block, batch=1, seed=seed)[0].tolist()
    deliver(result, output, Origin(model, loaded, extra={"block": block, "seed": seed}, ids=ids))


@without("ids")
def retrieval(
    needle: Annotated[str, typer.Option(help="Text to hide between two sentences.")],
    question: Annotated[str, typer.Option(help="Text at the end that asks for the needle.")],
    model: Model = "demo",
    prompt: Annotated[str | None, typer.Option(help="Text in which the needle is hidden.")] = None,
    file: File = None,
    depth: Annotated[
        list[float] | None, typer.Option(help="Position of the needle, 0 to 1. Repeatable; default: 0, 0.5 and 1.")
    ] = None,
    least_recall: Annotated[
        float, typer.Option(min=0, max=1, help="Skip prompts where the model writes a smaller share of the needle.")
    ] = 0.5,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Heads: attention to a needle while the model copies it."""
    check(output)
    from probes.attention import retrieval_heads as probe
    from workbench.command_options import tokenizer_of

    haystack_text = text(prompt, file)
    loaded = load(model, device)
    tokenizer, depths = tokenizer_of(loaded, model), depth or [0.0, 0.5, 1.0]
    haystacks = [probe.haystack(tokenizer, haystack_text, needle, question, depth=at) for at in depths]
    result = probe.retrieval_scores(loaded, haystacks, least_recall=least_recall)
    extra = {"depths": depths, "least_recall": least_recall, "recall": result.recall.tolist()}
    n_tokens = sum(len(hay.tokens) for hay in haystacks)
    deliver(result, output, Origin(model, loaded, n_tokens, extra, haystacks[0].tokens))


head_map_command = of_head("map", "probes.attention.head_map.head_map", "Heads: the attention pattern of one head.")

COMMANDS = (
    (heads, ON_A_PROMPT),
    (catalogue, ON_A_PROMPT),
    (groups, ON_A_PROMPT),
    (head_map_command, ON_A_HEAD),
    (received, ON_A_PROMPT),
    (induction, ""),
    (retrieval, " --prompt 'It rained. It was late.' --needle 'The code is 7 4 1 9.' --question 'The code is'"),
)
