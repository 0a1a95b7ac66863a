"""Steps that all `workbench probe` commands share: load the model, capture a run, print or write the result.

Knows nothing about single commands and their options. Torch, pandas and plotly are imported only when needed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import pandas as pd

    from probes.base.non_finite import NonFiniteHook
    from probes.base.result import Result
    from workbench.config import ModelConfig
    from workbench.hooks.capture import Capture
    from workbench.model import Transformer

MAX_PRINTED_ROWS = 60
TABLES, FIGURES = (".csv", ".parquet"), (".html",)
PACKAGE = {".parquet": "pyarrow", ".html": "plotly"}


@dataclass(frozen=True)
class Origin:
    """The model and the run that a table's numbers come from."""

    model: str
    loaded: Transformer | None = None
    n_tokens: int | None = None
    extra: dict[str, Any] | None = None
    ids: Sequence[int] | None = None  # the tokens that were run
    first_non_finite: NonFiniteHook | None = None  # the first hook with NaN or infinity

    def metadata(self, result: str) -> dict[str, Any]:
        """The metadata that is written next to a table, or into a figure. `result` is the result's class name."""
        from workbench import provenance
        from workbench.checkpoint import fingerprint
        from workbench.hooks.intervention import described_interventions

        about: dict[str, Any] = {"result": result, "model": Path(self.model).name}
        source = None if self.loaded is None else self.loaded.source
        about["checkpoint_sha256"] = fingerprint(self.model) if source is None else source.checkpoint_sha256
        if source is not None and source.adapter is not None:
            about["adapter"] = source.adapter.name
        if self.loaded is not None:
            about["tokenizer_sha256"] = None if source is None else source.tokenizer_sha256
            about["dtype"] = str(self.loaded.dtype).removeprefix("torch.")
            about["device"] = str(self.loaded.device)
            if changes := described_interventions(self.loaded):
                about["interventions"] = changes
        if self.n_tokens is not None:
            about["n_tokens"] = self.n_tokens
        if self.first_non_finite is not None:
            about["non_finite"] = str(self.first_non_finite)
        versions = provenance.versions("numpy", "pandas")
        return about | (self.extra or {}) | {"commit": provenance.commit(), "versions": versions}


def check(output: Path | None) -> None:
    """Check the output path and its packages before a model is loaded."""
    _need("pandas")
    if output is None:
        return
    if output.suffix not in (*TABLES, *FIGURES):
        known = " or ".join((*TABLES, *FIGURES))
        raise DataError(f"--output {output}: unknown file format; the name must end with {known}.")
    if not output.absolute().parent.is_dir():
        raise DataError(f"--output {output}: there is no folder {output.parent}; create it first.")
    _need(PACKAGE.get(output.suffix, "pandas"))


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, "app" if package == "pyarrow" else "probe")


def config(model: str) -> ModelConfig:
    from workbench.checkpoint import read_config

    return read_config(model)


@dataclass(frozen=True)
class RunOptions:
    """The shared options of the command that runs; `scopes` end with the command."""

    adapter: Path | None = None
    ids: str | None = None
    intervene: Path | None = None
    ablate: str = ""
    scopes: ExitStack = field(default_factory=ExitStack)


_NO_OPTIONS = RunOptions()
# Set by `cli_options.with_shared_options`.
RUN: ContextVar[RunOptions] = ContextVar("run", default=_NO_OPTIONS)


def load(model: str, device: str, dtype: str = "auto", *, adapter: Path | None = None) -> Transformer:
    """The model. The interventions of --intervene and --ablate act on it until the command ends."""
    import workbench as wb
    from workbench.command_options import interventions_of

    run = RUN.get()
    loaded = wb.load_model(model, device=device, dtype=dtype, adapter=adapter or run.adapter).eval()
    if changes := interventions_of(loaded, run.intervene, run.ablate):
        run.scopes.enter_context(loaded.intervene(*changes))
    return loaded


def tokens(
    model: str, prompt: str | None, file: Path | None, device: str, *, dtype: str = "auto"
) -> tuple[Transformer, list[int], Origin]:
    """The model and the tokens of the text, or those of --ids."""
    prompt_text = text_unless_ids(prompt, file)
    loaded = load(model, device, dtype)
    ids = encoded(loaded, model, prompt_text)
    return loaded, ids, Origin(model, loaded, len(ids), ids=ids)


def encoded(model: Transformer, name: str, text: str | None) -> list[int]:
    """The tokens of a text, after the begin token if the checkpoint's files put one there; None: those of --ids."""
    from workbench.command_options import encode_text, token_ids

    ids = RUN.get().ids
    return token_ids(ids, model) if text is None and ids is not None else encode_text(model, name, text or "")


def split_begin(model: Transformer, ids: Sequence[int]) -> tuple[int | None, Sequence[int]]:
    """A text's begin token, None if it has none, and the tokens after it."""
    begin = None if model.tokenizer is None else model.tokenizer.bos_id
    return (begin, ids[1:]) if ids and ids[0] == begin else (None, ids)


def capture(
    model: str, prompt: str | None, file: Path | None, hooks: Any, device: str, *, layer: int | None = None
) -> tuple[Transformer, Capture, Origin]:
    import torch

    from probes.base import non_finite

    loaded, ids, origin = tokens(model, prompt, file, device)
    with torch.no_grad():
        layers, batch = None if layer is None else [layer], torch.tensor([ids], device=loaded.device)
        _, cap = loaded.run_with_capture(batch, hooks, layers=layers, logits=None)
    if (first := non_finite.non_finite(cap).first) is not None:
        origin = replace(origin, first_non_finite=_first_non_finite(loaded, ids) or first)
    return loaded, cap, origin


def _first_non_finite(model: Transformer, ids: Sequence[int]) -> NonFiniteHook | None:
    """The first hook of a run with NaN or infinity, captured or not."""
    import torch

    from probes.base import non_finite

    return non_finite.trace_non_finite(model, torch.tensor([list(ids)])).first


def _warn_non_finite(table: pd.DataFrame, origin: Origin) -> Origin:
    """Print the first hook with NaN or infinity, and how many of the table's numbers are not finite.

    A number can also be NaN because it is undefined; that alone prints nothing.
    """
    import numpy as np

    numbers = table.select_dtypes("floating").to_numpy()
    count = int((~np.isfinite(numbers)).sum())
    if count and origin.first_non_finite is None and origin.ids is not None and origin.loaded is not None:
        # The command captured nothing itself.
        origin = replace(origin, first_non_finite=_first_non_finite(origin.loaded, origin.ids))
    if origin.first_non_finite is not None:
        print(f"note: NaN or infinity begins at {origin.first_non_finite}", file=sys.stderr)
        summary = f"{count:,} of the table's {numbers.size:,} numbers are not finite"
        print(f"note: {summary}; the other numbers may be affected too", file=sys.stderr)
    return origin


def text_unless_ids(prompt: str | None, file: Path | None) -> str | None:
    """The text of --prompt or --file; None if --ids gives the tokens."""
    ids = RUN.get().ids
    if [prompt, file, ids].count(None) != 2:
        raise DataError("give the text with --prompt TEXT or --file PATH, or token ids with --ids 1,2,3; one of them.")
    return text(prompt, file) if ids is None else None


def text(prompt: str | None, file: Path | None) -> str:
    """The text of --prompt or --file."""
    if (prompt is None) == (file is None):
        raise DataError("give the text with --prompt TEXT or --file PATH, one of them.")
    if file is None:
        content, name = prompt, "--prompt"
    else:
        name = str(file)
        try:
            content = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    if not content:
        raise DataError(f"{name} is empty; give some text to run.")
    return content


def labels(model: Transformer, cap: Capture) -> list[str]:
    """A label such as `12 cat` for every captured position."""
    from probes.base import capture_access

    positions = capture_access.positions(cap)
    return labels_of(model, cap.tokens[0].cpu()[positions - cap.start].tolist(), positions.tolist())


def labels_of(model: Transformer, ids: Sequence[int], positions: Iterable[int] | None = None) -> list[str]:
    """A label such as `12 cat` for every token: ASCII, with plotly's markup characters escaped; its id without a text.

    `positions` are the tokens' positions; default: from 0.
    """
    tokenizer = model.tokenizer
    plain = [
        repr(tokenizer.token_bytes(token))[2:-1] if tokenizer and tokenizer.has_token(token) else f"id {token}"
        for token in ids
    ]
    numbers = range(len(plain)) if positions is None else positions
    return [f"{i} {_escaped(word)}" for i, word in zip(numbers, plain, strict=True)]


def _escaped(text: str) -> str:
    """Text with plotly's markup characters escaped."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _under(interventions: list[dict[str, Any]]) -> str:
    """The interventions of a record in words, escaped."""
    from workbench.hooks.intervention_options import described_record

    return _escaped(described_record(interventions))


def deliver(result: Result, output: Path | None, origin: Origin, **figure_options: Any) -> None:
    """Print a result's table, or write the table or the figure to `output`. `figure_options` go to the figure."""
    table = result.frame()
    origin = _warn_non_finite(table, origin)
    if output is None:
        print(table.head(MAX_PRINTED_ROWS).to_string(index=False) if len(table) else "none found")
        print(f"units: {result.UNITS}", file=sys.stderr)
        if len(table) > MAX_PRINTED_ROWS:
            print(f"{len(table) - MAX_PRINTED_ROWS} more rows; --output FILE.csv writes all rows", file=sys.stderr)
        return
    about = origin.metadata(type(result).__name__)
    if output.suffix in FIGURES:
        from probes.base.drawing import html_page

        fig = result.figure(stamp=about, **figure_options)
        if about.get("interventions"):
            fig.layout.title.text += f"<br><sub>under interventions: {_under(about['interventions'])}</sub>"
        page = html_page(fig)
        _write(output, lambda path: path.write_text(page, encoding="utf-8"))
    else:
        writer = table.to_parquet if output.suffix == ".parquet" else table.to_csv
        _write(output, lambda path: writer(path, index=False))
        _write(Path(f"{output}.json"), lambda path: path.write_text(json.dumps(about, indent=2) + "\n"))
    print(f"{output}: {len(table)} rows" if output.suffix in TABLES else output)


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write to a temporary name first, so that a file with the real name is always complete."""
    temporary = path.with_name(path.name + ".partial")
    write(temporary)
    os.replace(temporary, path)
