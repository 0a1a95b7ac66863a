"""`workbench probe NAME`: one measurement of a model or a prompt, as a table, a file, or a figure.

The table goes to stdout, or to the file that --output names: .csv or .parquet, with an account of its origin beside
it, or .html for the figure. Torch, pandas and plotly are imported only when a command needs them.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from workbench.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from workbench.capture import Capture
    from workbench.config import ModelConfig
    from workbench.model import Transformer

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

SHOWN_ROWS = 60
TABLES, FIGURES = (".csv", ".parquet"), (".html",)
PACKAGE = {".parquet": "pyarrow", ".html": "plotly"}


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
ON_A_PROMPT = (heads, catalogue, groups, rms, contributions, massive, outliers, lens, neurons)
ON_A_MODEL = (wavelengths, decay, gains, induction, neuron, entropy_neurons, ablation)

for _command in (*ON_A_MODEL, *ON_A_PROMPT, *ON_A_HEAD):
    _given = " --layer 2 --head 1" if _command in ON_A_HEAD else ""
    _given += " --heads L2H3,L5H0" if _command is ablation else ""
    _given += " --layer 2 --neuron 7" if _command is neuron else ""
    _given += "" if _command in ON_A_MODEL else " --prompt 'one two one two'"
    _example = f"Example: workbench probe {_command.__name__} --model demo{_given}"
    app.command(_command.__name__, epilog=_example)(_command)


# --- reading the model, writing the result --------------------------------------------------------------------


@dataclass(frozen=True)
class _Origin:
    """Where a table's numbers come from."""

    model: str
    loaded: Transformer | None = None
    n_tokens: int | None = None
    extra: dict[str, Any] | None = None

    def account(self, result: str) -> dict[str, Any]:
        from workbench import provenance
        from workbench.checkpoint import fingerprint

        about: dict[str, Any] = {"result": result, "model": Path(self.model).name}
        about["checkpoint_sha256"] = fingerprint(self.model)
        if self.loaded is not None:
            source = self.loaded.source
            about["tokenizer_sha256"] = None if source is None else source.tokenizer_sha256
            about["dtype"] = str(self.loaded.dtype).removeprefix("torch.")
            about["device"] = str(self.loaded.device)
        if self.n_tokens is not None:
            about["n_tokens"] = self.n_tokens
        versions = provenance.versions("numpy", "pandas")
        return about | (self.extra or {}) | {"commit": provenance.commit(), "versions": versions}


def _check(output: Path | None, refused: tuple[str, ...] = ()) -> None:
    """Everything that can be said about the output before a model is loaded."""
    _need("pandas")
    if output is None:
        return
    known = [suffix for suffix in (*TABLES, *FIGURES) if suffix not in refused]
    if output.suffix not in known:
        reason = "this probe has no figure" if output.suffix in refused else "the name's ending says the format"
        raise DataError(f"--output {output}: {reason}; use {' or '.join(known)}.")
    if not output.absolute().parent.is_dir():
        raise DataError(f"--output {output}: there is no folder {output.parent}; make it first.")
    _need(PACKAGE.get(output.suffix, "pandas"))


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, "app" if package == "pyarrow" else "probe")


def _config(model: str) -> ModelConfig:
    from workbench.checkpoint import read_config

    return read_config(model)


def _load(model: str, device: str) -> Transformer:
    import workbench as wb

    return wb.load_model(model, device=device).eval()


def _capture(
    model: str, prompt: str | None, file: Path | None, hooks: Any, device: str, *, layer: int | None = None
) -> tuple[Transformer, Capture, _Origin]:
    import torch

    from workbench.commands import tokenizer_of

    text = _text(prompt, file)
    loaded = _load(model, device)
    ids = tokenizer_of(loaded, model).encode(text, bos=True)
    if len(ids) > loaded.config.max_seq_len:
        context = loaded.config.max_seq_len
        print(f"note: {len(ids)} tokens, beyond the model's context of {context}", file=sys.stderr)
    with torch.no_grad():
        tokens = torch.tensor([ids], device=loaded.device)
        layers = None if layer is None else [layer]
        _, cap = loaded.run_with_capture(tokens, hooks, layers=layers)
    return loaded, cap, _Origin(model, loaded, len(ids))


def _text(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        raise DataError("say what to run with --prompt TEXT or --file PATH, one of them.")
    if prompt is not None:
        return prompt
    assert file is not None
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def _labels(model: Transformer, cap: Capture) -> list[str]:
    """`12 cat` for every position: ASCII, with nothing that plotly would take for markup."""
    assert model.tokenizer is not None
    tokens = [model.tokenizer.token_bytes(token) for token in cap.tokens[0].tolist()]
    plain = [repr(token)[2:-1].replace("&", "&amp;").replace("<", "&lt;") for token in tokens]
    return [f"{i} {text}" for i, text in enumerate(plain)]


def _deliver(
    found: Any, output: Path | None, origin: _Origin, draw: Callable[[Any], Callable[..., Any]] | None = None
) -> None:
    """Print a result's table, or write it (or its figure) and say where."""
    table = found.frame()
    if output is None:
        print(table.head(SHOWN_ROWS).to_string(index=False) if len(table) else "none found")
        if len(table) > SHOWN_ROWS:
            print(f"{len(table) - SHOWN_ROWS} more rows; --output FILE.csv keeps all", file=sys.stderr)
        return
    about = origin.account(type(found).__name__)
    if output.suffix in FIGURES:
        from probes import figures

        assert draw is not None
        page = draw(figures)(found, stamp=about).to_html(include_plotlyjs=True)
        _write(output, lambda path: path.write_text(page, encoding="utf-8"))
    else:
        writer = table.to_parquet if output.suffix == ".parquet" else table.to_csv
        _write(output, lambda path: writer(path, index=False))
        _write(Path(f"{output}.json"), lambda path: path.write_text(json.dumps(about, indent=2) + "\n"))
    print(f"{output}: {len(table)} rows" if output.suffix in TABLES else output)


def _head_figures() -> Any:
    return importlib.import_module("probes.figures_heads")


def _neuron_figures() -> Any:
    return importlib.import_module("probes.figures_neurons")


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Under a temporary name first, so that a half-written file never bears the real one."""
    temporary = path.with_name(path.name + ".partial")
    write(temporary)
    os.replace(temporary, path)
