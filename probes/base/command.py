"""What every `workbench probe` command does before and after its measurement: read the model, write the result.

Knows nothing of commands and their options. Torch, pandas and plotly are imported only when they are needed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    import pandas as pd

    from probes.base.non_finite import Place
    from probes.base.result import Result
    from workbench.config import ModelConfig
    from workbench.hooks.capture import Capture
    from workbench.model import Transformer

SHOWN_ROWS = 60
TABLES, FIGURES = (".csv", ".parquet"), (".html",)
PACKAGE = {".parquet": "pyarrow", ".html": "plotly"}


@dataclass(frozen=True)
class Origin:
    """Where a table's numbers come from."""

    model: str
    loaded: Transformer | None = None
    n_tokens: int | None = None
    extra: dict[str, Any] | None = None
    ids: Sequence[int] | None = None  # the tokens that were run
    spoilt: Place | None = None  # where the run's activations were no longer finite

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
        if self.spoilt is not None:
            about["non_finite"] = str(self.spoilt)
        versions = provenance.versions("numpy", "pandas")
        return about | (self.extra or {}) | {"commit": provenance.commit(), "versions": versions}


def check(output: Path | None) -> None:
    """Everything that can be said about the output before a model is loaded."""
    _need("pandas")
    if output is None:
        return
    if output.suffix not in (*TABLES, *FIGURES):
        known = " or ".join((*TABLES, *FIGURES))
        raise DataError(f"--output {output}: the name's ending says the format; use {known}.")
    if not output.absolute().parent.is_dir():
        raise DataError(f"--output {output}: there is no folder {output.parent}; make it first.")
    _need(PACKAGE.get(output.suffix, "pandas"))


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, "app" if package == "pyarrow" else "probe")


def config(model: str) -> ModelConfig:
    from workbench.checkpoint import read_config

    return read_config(model)


def load(model: str, device: str, dtype: str = "auto") -> Transformer:
    import workbench as wb

    return wb.load_model(model, device=device, dtype=dtype).eval()


def tokens(model: str, prompt: str | None, file: Path | None, device: str) -> tuple[Transformer, list[int], Origin]:
    """The model and the text's tokens, begin-of-text first."""
    from workbench.commands import tokenizer_of

    given = text(prompt, file)
    loaded = load(model, device)
    ids = tokenizer_of(loaded, model).encode(given, bos=True)
    return loaded, ids, Origin(model, loaded, len(ids), ids=ids)


def capture(
    model: str, prompt: str | None, file: Path | None, hooks: Any, device: str, *, layer: int | None = None
) -> tuple[Transformer, Capture, Origin]:
    import torch

    from probes.base import non_finite

    loaded, ids, origin = tokens(model, prompt, file, device)
    if len(ids) > loaded.config.max_seq_len:
        context = loaded.config.max_seq_len
        print(f"note: {len(ids)} tokens, beyond the model's context of {context}", file=sys.stderr)
    with torch.no_grad():
        layers = None if layer is None else [layer]
        _, cap = loaded.run_with_capture(torch.tensor([ids], device=loaded.device), hooks, layers=layers)
    if (held := non_finite.non_finite(cap).first) is not None:
        origin = replace(origin, spoilt=_began(loaded, ids) or held)
    return loaded, cap, origin


def _began(model: Transformer, ids: Sequence[int]) -> Place | None:
    """Where NaN or infinity began in a run, whatever was captured of it."""
    import torch

    from probes.base import non_finite

    return non_finite.trace_non_finite(model, torch.tensor([list(ids)])).first


def _warned(table: pd.DataFrame, origin: Origin) -> Origin:
    """Say where a run's activations were no longer finite, and how much of the table they touch.

    A number may also be NaN because it is undefined; that alone raises no alarm.
    """
    import numpy as np

    numbers = table.select_dtypes("floating").to_numpy()
    touched = int((~np.isfinite(numbers)).sum())
    if touched and origin.spoilt is None and origin.ids is not None and origin.loaded is not None:
        origin = replace(origin, spoilt=_began(origin.loaded, origin.ids))  # of a command that captures nothing itself
    if origin.spoilt is not None:
        print(f"note: the run is not finite from {origin.spoilt}", file=sys.stderr)
        counted = f"{touched:,} of the table's {numbers.size:,} numbers are not finite"
        print(f"note: {counted}; the others may come from later hooks or leave values out", file=sys.stderr)
    return origin


def text(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        raise DataError("say what to run with --prompt TEXT or --file PATH, one of them.")
    if file is None:
        given, name = prompt, "--prompt"
    else:
        name = str(file)
        try:
            given = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    if not given:
        raise DataError(f"{name} is empty; there is nothing to run.")
    return given


def labels(model: Transformer, cap: Capture) -> list[str]:
    """`12 cat` for every position of a capture."""
    return labels_of(model, cap.tokens[0].tolist())


def labels_of(model: Transformer, ids: Sequence[int]) -> list[str]:
    """`12 cat` for every position: ASCII, with nothing that plotly would take for markup."""
    assert model.tokenizer is not None
    plain = [repr(model.tokenizer.token_bytes(token))[2:-1] for token in ids]
    return [f"{i} {word.replace('&', '&amp;').replace('<', '&lt;')}" for i, word in enumerate(plain)]


def deliver(found: Result, output: Path | None, origin: Origin, **drawn: Any) -> None:
    """Print a result's table, or write it (or its figure, `drawn` with these options) and say where."""
    table = found.frame()
    origin = _warned(table, origin)
    if output is None:
        print(table.head(SHOWN_ROWS).to_string(index=False) if len(table) else "none found")
        print(f"units: {found.UNITS}", file=sys.stderr)
        if len(table) > SHOWN_ROWS:
            print(f"{len(table) - SHOWN_ROWS} more rows; --output FILE.csv keeps all", file=sys.stderr)
        return
    about = origin.account(type(found).__name__)
    if output.suffix in FIGURES:
        page = found.figure(stamp=about, **drawn).to_html(include_plotlyjs=True)
        _write(output, lambda path: path.write_text(page, encoding="utf-8"))
    else:
        writer = table.to_parquet if output.suffix == ".parquet" else table.to_csv
        _write(output, lambda path: writer(path, index=False))
        _write(Path(f"{output}.json"), lambda path: path.write_text(json.dumps(about, indent=2) + "\n"))
    print(f"{output}: {len(table)} rows" if output.suffix in TABLES else output)


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Under a temporary name first, so that a half-written file never bears the real one."""
    temporary = path.with_name(path.name + ".partial")
    write(temporary)
    os.replace(temporary, path)
