"""`workbench probe NAME`: one measurement of a model or a prompt, as a table, a file, or a figure.

The table goes to stdout, or to the file that --output names: .csv or .parquet, with an account of its origin beside
it, or .html for the figure. Torch, pandas and plotly are imported only when a command needs them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from probes.delivery import (
    FIGURES,
    _capture,
    _check,
    _config,
    _deliver,
    _head_figures,
    _lab_figures,
    _labels,
    _labels_of,
    _load,
    _neuron_figures,
    _Origin,
    _text,
    _tokens,
)

app = typer.Typer(
    help="Measure a model's heads, rotary embedding, norms and residual stream.",
    epilog="Example: workbench probe heads --model demo --prompt 'one two one two'",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

Model = Annotated[str, typer.Option(help="A Meta or Hugging Face checkpoint folder, or 'demo'.")]
Prompt = Annotated[str | None, typer.Option(help="Text to run; begin-of-text is put before it.")]
File = Annotated[Path | None, typer.Option(help="Read the text from this UTF-8 file instead.")]
Layer = Annotated[int, typer.Option(min=0, help="The head's layer.")]
Head = Annotated[int, typer.Option(min=0, help="The head.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="A .csv, .parquet or .html file to write.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")]


# --- of a configuration or the weights alone ------------------------------------------------------------------


def wavelengths(model: Model = "demo", output: Output = None) -> None:
    """RoPE: every pair's wavelength against the context."""
    _check(output)
    from probes import rotation

    found = rotation.wavelengths(_config(model))
    _deliver(found, output, _Origin(model), lambda figures: figures.wavelengths)


def decay(model: Model = "demo", output: Output = None) -> None:
    """RoPE: how the score of like vectors fades with distance."""
    _check(output)
    from probes import rotation

    _deliver(rotation.decay(_config(model)), output, _Origin(model), lambda figures: figures.decay)


def gains(model: Model = "demo", output: Output = None, device: Device = "auto") -> None:
    """Norms: quantiles and extreme dimensions of the gains."""
    _check(output)
    from probes import norms

    loaded = _load(model, device)
    found = norms.gain_statistics(loaded)
    _deliver(found, output, _Origin(model, loaded), lambda figures: figures.gain_quantiles)


def induction(
    model: Model = "demo",
    block: Annotated[int, typer.Option(min=1, help="Random tokens that come twice.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the random tokens.")] = 0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Heads: induction on random tokens that come twice."""
    _check(output)
    from probes import attention

    loaded = _load(model, device)
    found = attention.induction_scores(loaded, block=block, seed=seed)
    config = loaded.config

    def draw(figures: Any) -> Callable[..., Any]:
        shape = {"n_heads": config.n_heads, "n_kv_heads": config.n_kv_heads}
        places = {"heads": range(config.n_heads), "layers": range(config.n_layers)}
        title = f"Induction on blocks of {block}: even attention would give {found.chance:.3f}"
        return lambda _, **o: figures.atlas(found.induction, title=title, unit="probability", **shape, **places, **o)

    _deliver(found, output, _Origin(model, loaded, extra={"block": block, "seed": seed}), draw)


def ablation(
    model: Model = "demo",
    chosen: Annotated[
        str, typer.Option("--heads", help="Heads to take away, as L2H3,L5H1; without it, the induction heads found.")
    ] = "",
    block: Annotated[int, typer.Option(min=2, help="Random tokens that come twice.")] = 32,
    n_draws: Annotated[int, typer.Option("--draws", min=1, help="Random sets of as many heads.")] = 20,
    mean: Annotated[bool, typer.Option("--mean", help="Replace a head by its mean instead of zero.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random tokens and draws.")] = 0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Heads: the loss on a repetition without some heads, against without random others."""
    _check(output)
    from probes import ablation as probe

    heads = probe.parse(chosen) if chosen else None
    loaded = _load(model, device)
    replacement: Literal["zero", "mean"] = "mean" if mean else "zero"
    found = probe.induction_ablation(loaded, heads, block=block, n_draws=n_draws, seed=seed, replacement=replacement)
    extra = {"block": block, "draws": n_draws, "seed": seed, "replacement": replacement}
    _deliver(found, output, _Origin(model, loaded, extra=extra), lambda _: _head_figures().induction_ablation)


def neuron(
    layer: Annotated[int, typer.Option(min=0, help="The neuron's layer.")],
    neuron: Annotated[int, typer.Option(min=0, help="The neuron.")],
    model: Model = "demo",
    top: Annotated[int, typer.Option(min=1, help="Tokens on either side.")] = 10,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Neurons: the tokens that one promotes and suppresses."""
    _check(output)
    from probes import neurons as probe

    loaded = _load(model, device)
    found = probe.neuron_tokens(loaded, layer, [neuron], k=top)
    _deliver(found, output, _Origin(model, loaded), lambda _: _neuron_figures().neuron_tokens)


def entropy_neurons(model: Model = "demo", output: Output = None, device: Device = "auto") -> None:
    """Neurons: large weights that move all logits alike."""
    _check(output)
    from probes import neurons as probe

    loaded = _load(model, device)
    found = probe.entropy_neurons(loaded)
    _deliver(found, output, _Origin(model, loaded), lambda _: _neuron_figures().entropy_neurons)


def norm_times(
    model: Model = "demo",
    tokens: Annotated[int, typer.Option(min=1, help="Random tokens to normalise.")] = 512,
    output: Output = None,
) -> None:
    """Norms: time of RMSNorm and LayerNorm on this CPU."""
    _check(output)
    from probes import norm_lab

    found = norm_lab.norm_times(_config(model), tokens=tokens)
    _deliver(found, output, _Origin(model), lambda _: _lab_figures().norm_times)


# --- of a prompt ----------------------------------------------------------------------------------------------


def heads(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Heads: entropy, sinks, previous token, distance, ..."""
    _check(output)
    from probes import attention

    loaded, cap, origin = _capture(model, prompt, file, attention.HOOKS, device)
    shape = {"n_heads": loaded.config.n_heads, "n_kv_heads": loaded.config.n_kv_heads, "name": "entropy"}
    _deliver(attention.head_metrics(cap), output, origin, lambda f: lambda r, **o: f.head_metric(r, **shape, **o))


def catalogue(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    threshold: Annotated[
        list[str] | None, typer.Option(help="Another threshold for a type, as previous=0.5; may be repeated.")
    ] = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Heads: which are of which type. Each line of the text is a prompt; intervals need two or more.

    Induction and duplicate-token heads are looked for on random tokens that come twice.
    """
    _check(output)
    from probes import heads as probe
    from workbench.commands import tokenizer_of

    rules = probe.with_thresholds(threshold or ())
    lines = [line for line in _text(prompt, file).splitlines() if line.strip()]
    loaded = _load(model, device)
    tokenizer = tokenizer_of(loaded, model)
    prompts = [tokenizer.encode(line, bos=True) for line in lines]
    found = probe.catalogue(probe.text_scores(loaded, prompts), probe.repeat_scores(loaded), rules=rules)
    extra = {"n_prompts": len(prompts), "thresholds": {kind: rule.least for kind, rule in rules.items()}}
    origin = _Origin(model, loaded, sum(map(len, prompts)), extra)
    _deliver(found, output, origin, lambda _: _head_figures().catalogue)


def groups(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Heads: how alike those are that share a key, against others."""
    _check(output, FIGURES)
    from probes import groups as probe

    _, cap, origin = _capture(model, prompt, file, probe.HOOKS, device)
    _deliver(probe.group_similarity(cap), output, origin)


def rms(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Norms: what every norm divides every token by."""
    _check(output)
    from probes import norms

    loaded, cap, origin = _capture(model, prompt, file, [h for h in norms.HOOKS if h.endswith("hook_scale")], device)
    labels = _labels(loaded, cap)
    _deliver(norms.input_rms(cap), output, origin, lambda f: lambda r, **o: f.input_rms(r, labels, **o))


def contributions(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Stream: what attention and the MLP add to it."""
    _check(output)
    from probes import norms

    _, cap, origin = _capture(model, prompt, file, norms.HOOKS, device)
    _deliver(norms.contribution_ratios(cap), output, origin, lambda figures: figures.contribution_ratios)


def linear(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    final: Annotated[bool, typer.Option("--final", help="Judge every part at the final norm.")] = False,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Norms: how wrong a linear norm is, part by part."""
    _check(output)
    from probes import norm_lab

    loaded, cap, origin = _capture(model, prompt, file, norm_lab.HOOKS, device)
    found = norm_lab.linearised_norm(loaded, cap, final=final)
    _deliver(found, output, origin, lambda _: _lab_figures().linearised_norm)


def recentring(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Norms: what LayerNorm would have changed."""
    _check(output)
    from probes import norm_lab

    _, cap, origin = _capture(model, prompt, file, norm_lab.HOOKS, device)
    _deliver(norm_lab.recentring(cap), output, origin, lambda _: _lab_figures().recentring)


def positions(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a window; the text, up to 4 contexts, where not given.")
    ] = None,
    scaling: Annotated[
        list[str] | None,
        typer.Option(help="NAME=NUMBER: theta, interpolation, ntk, yarn or llama3 (a factor); may be given again."),
    ] = None,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """RoPE: loss by position, plain and under other scalings."""
    _check(output)
    from probes import positions as probe

    loaded, ids, origin = _tokens(model, prompt, file, device)
    bos, context = ids[0], loaded.config.max_seq_len
    length = min(len(ids), 4 * context) if length is None else length
    factor = max(1.0, length / context)
    given = scaling or [f"{name}={factor:g}" for name in ("interpolation", "ntk", "yarn")]
    runs = {text: [probe.scaling_of(text, loaded.config)] for text in given}
    found = probe.loss_by_position(loaded, probe.windows(ids[1:], length, bos=bos), runs)
    _deliver(found, output, origin, lambda _: _lab_figures().loss_by_position)


def generated(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    steps: Annotated[int, typer.Option(min=1, help="Tokens to generate, greedily.")] = 32,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Norms: what they divide by while the model writes."""
    _check(output)
    from probes import generated as probe

    loaded, ids, origin = _tokens(model, prompt, file, device)
    found = probe.generated_norms(loaded, ids, steps=steps)
    labels = _labels_of(loaded, found.tokens)
    _deliver(found, output, origin, lambda f: lambda r, **o: f.input_rms(r.rms, labels, **o))


def turned(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    scaling: Annotated[
        str, typer.Option(help="NAME=NUMBER: theta, interpolation, ntk, yarn or llama3 (a factor).")
    ] = "yarn=4",
    output: Output = None,
    device: Device = "auto",
) -> None:
    """RoPE: how each head's pattern would move under another."""
    _check(output)
    from probes import positions, rope, turning

    other = positions.scaling_of(scaling, _config(model)).rotary(_config(model))
    loaded, cap, origin = _capture(model, prompt, file, rope.HOOKS, device)
    found = turning.what_if_heads(cap, other.frequencies, temperature=other.temperature)

    def draw(figures: Any) -> Callable[..., Any]:
        shape = {"n_heads": loaded.config.n_heads, "n_kv_heads": loaded.config.n_kv_heads}
        places = {"heads": found.heads, "layers": found.layers, "unit": "share of attention"}
        title = f"Attention that {scaling} would move, mean over queries"
        return lambda r, **o: figures.atlas(r.moved, title=title, **shape, **places, **o)

    _deliver(found, output, origin, draw)


def massive(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    threshold: Annotated[float, typer.Option(help="Least magnitude.")] = 100.0,
    ratio: Annotated[float, typer.Option(help="Least multiple of the layer's median magnitude.")] = 1000.0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: massive activations, entry by entry."""
    _check(output)
    from probes import norms

    _, cap, origin = _capture(model, prompt, file, ["blocks.*.hook_resid_post"], device)
    found = norms.massive_activations(cap, threshold=threshold, ratio=ratio)
    _deliver(found, output, origin, lambda figures: figures.massive_activations)


def outliers(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    magnitude: Annotated[float, typer.Option(help="Least magnitude of a large entry.")] = 6.0,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Stream: dimensions that are large nearly everywhere."""
    _check(output, FIGURES)
    from probes import norms

    _, cap, origin = _capture(model, prompt, file, ["blocks.*.hook_resid_post"], device)
    _deliver(norms.outlier_dimensions(cap, magnitude=magnitude), output, origin)


def lens(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Stream: what it would predict after every block."""
    _check(output, FIGURES)
    from probes import residual

    loaded, cap, origin = _capture(model, prompt, file, ["blocks.*.hook_resid_post", "ln_final.hook_out"], device)
    _deliver(residual.logit_lens(loaded, cap), output, origin)


def neurons(
    model: Model = "demo", prompt: Prompt = None, file: File = None, output: Output = None, device: Device = "auto"
) -> None:
    """Neurons: open gates, sparsity, kurtosis, top position."""
    _check(output)
    from probes import neurons as probe

    _, cap, origin = _capture(model, prompt, file, probe.HOOKS, device)
    _deliver(probe.neuron_statistics(cap), output, origin, lambda _: _neuron_figures().neuron_statistics)


# --- of one head on a prompt ----------------------------------------------------------------------------------


def _of_head(name: str, module: str, function: str, summary: str) -> Callable[..., None]:
    """A command that measures one head on a prompt."""

    def command(
        layer: Layer,
        head: Head,
        model: Model = "demo",
        prompt: Prompt = None,
        file: File = None,
        output: Output = None,
        device: Device = "auto",
    ) -> None:
        _check(output)
        probe = importlib.import_module(f"probes.{module}")
        loaded, cap, origin = _capture(model, prompt, file, probe.HOOKS, device, layer=layer)
        found = getattr(probe, function)(cap, layer, head)

        def draw(figures: Any) -> Callable[..., Any]:
            figure: Callable[..., Any] = getattr(figures, function)
            if module != "maps":
                return figure
            return lambda result, **options: figure(result, result.labels(_labels(loaded, cap)), **options)

        _deliver(found, output, origin, draw)

    command.__name__ = name
    command.__doc__ = summary
    return command


ON_A_HEAD = (
    _of_head("map", "maps", "head_map", "Heads: where one head looks, query by query."),
    _of_head("bands", "rope", "band_contribution", "RoPE: what each frequency adds to one head's scores."),
    _of_head("distance", "rope", "score_by_distance", "RoPE: one head's scores against distance."),
    _of_head("invariance", "rope", "relative_invariance", "RoPE: how rounding breaks shift invariance."),
)
ON_A_PROMPT = (
    *(heads, catalogue, groups, positions, turned),
    *(rms, generated, linear, recentring, contributions, massive, outliers),
    *(lens, neurons),
)
ON_A_MODEL = (wavelengths, decay, gains, norm_times, induction, neuron, entropy_neurons, ablation)

for _command in (*ON_A_MODEL, *ON_A_PROMPT, *ON_A_HEAD):
    _given = " --layer 2 --head 1" if _command in ON_A_HEAD else ""
    _given += " --heads L2H3,L5H0" if _command is ablation else ""
    _given += " --layer 2 --neuron 7" if _command is neuron else ""
    _given += "" if _command in ON_A_MODEL else " --prompt 'one two one two'"
    _example = f"Example: workbench probe {_command.__name__} --model demo{_given}"
    app.command(_command.__name__, epilog=_example)(_command)
