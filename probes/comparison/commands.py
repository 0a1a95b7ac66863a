"""Commands to find errors: the first difference of two runs, and the first NaN or infinity of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from probes.base.cli_options import ON_A_PROMPT, Adapter, Device, File, Model, Output, Prompt
from probes.base.command import Origin, check, deliver, encoded, load, text_unless_ids

Dtype = Annotated[str, typer.Option(help="bfloat16, float16, float32, or auto (the checkpoint's dtype).")]


def compare(
    model: Model = "demo",
    other: Annotated[str, typer.Option(help="Second model to compare with; default: the same model.")] = "",
    prompt: Prompt = None,
    file: File = None,
    dtype: Dtype = "auto",
    other_dtype: Annotated[str, typer.Option(help="Dtype of the second model.")] = "auto",
    adapter: Adapter = None,
    other_adapter: Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter for the second model.")] = None,
    ablate: Annotated[
        str, typer.Option(help="Heads and sublayers to set to zero in the second run: L2H3,L5.mlp.")
    ] = "",
    intervene: Annotated[
        Path | None, typer.Option(help="JSON file with interventions on the model in the second run.")
    ] = None,
    scaling: Annotated[
        str, typer.Option(help="RoPE scaling of the second run, for example yarn=4 (see the command positions).")
    ] = "",
    before: Annotated[str, typer.Option(help="Text before the prompt in the second run.")] = "",
    by: Annotated[Literal["hook", "head", "position"], typer.Option(help="Rows of the table.")] = "hook",
    threshold: Annotated[float, typer.Option(min=0, help="Relative difference that counts as different.")] = 1e-3,
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Compare two runs of a prompt: differences by hook, head or position."""
    check(output)
    import torch

    from probes.comparison import compare_models, compare_runs
    from workbench.command_options import tokenizer_of
    from workbench.errors import DataError
    from workbench.hooks.intervention_options import InterventionOptions
    from workbench.hooks.rope_scaling import scaling_of

    prompt_text = text_unless_ids(prompt, file)
    a = load(model, device, dtype, adapter=adapter)
    same = (other or model, other_dtype, other_adapter) == (model, dtype, adapter)
    if same and not (ablate or intervene or scaling or before):
        raise DataError(
            "both runs are the same; give --other, --other-dtype, --other-adapter, --ablate, --intervene, --scaling or "
            "--before."
        )
    b = a if same else load(other or model, device, other_dtype, adapter=other_adapter)
    changes = [*InterventionOptions(intervene, ablate).interventions(b.config)]
    changes += [scaling_of(scaling, b.config)] if scaling else []
    if a.tokenizer is not None and b.tokenizer is not None and b.tokenizer.sha256 != a.tokenizer.sha256:
        print("note: the models have different tokenizers; both get the tokens of the first one", file=sys.stderr)
    ids = encoded(a, model, prompt_text)
    tokens = torch.tensor([ids])
    if before:
        tokenizer = tokenizer_of(a, model)
        begin = len(tokenizer.encode("", bos=True))
        longer = torch.tensor([ids[:begin] + tokenizer.encode(before) + ids[begin:]])
        with torch.no_grad():
            _, cap = a.run_with_capture(tokens.to(a.device), compare_models.HOOKS)
            with b.intervene(*changes):
                _, cap_b = b.run_with_capture(longer.to(b.device), compare_models.HOOKS)
        result = compare_runs.compare(cap, cap_b, align="suffix")
    else:
        result = compare_models.compare_runs(a, b, tokens, changes=changes)
    at = result.part(threshold)
    summary = f"no hook differs by more than {threshold:g}" if at is None else f"above {threshold:g} from {at} on"
    print(f"relative difference: {summary}", file=sys.stderr)
    extra = {"other": other or model, "other_dtype": str(b.dtype).removeprefix("torch.")}
    extra |= {"interventions": [change.to_dict() for change in changes], "before": before}
    origin = Origin(model, a, len(ids), extra, ids)
    if by == "hook":
        deliver(result, output, origin, threshold=threshold)
    else:
        part = result.by_head if by == "head" else result.logits
        assert part is not None, "all hooks that both models share were compared"
        deliver(part, output, origin)


def finite(
    model: Model = "demo",
    prompt: Prompt = None,
    file: File = None,
    dtype: Dtype = "auto",
    output: Output = None,
    device: Device = "auto",
) -> None:
    """Find NaN and infinity in a run, hook by hook."""
    check(output)
    import torch

    from probes.base import non_finite as probe

    prompt_text = text_unless_ids(prompt, file)
    loaded = load(model, device, dtype)
    ids = encoded(loaded, model, prompt_text)
    result = probe.trace_non_finite(loaded, torch.tensor([ids]))
    deliver(result, output, Origin(model, loaded, len(ids), {"hooks_checked": result.n_checked}))


COMMANDS = (
    (compare, f" --ablate L2H3{ON_A_PROMPT}"),
    (finite, ON_A_PROMPT),
)
