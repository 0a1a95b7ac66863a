"""Commands that look into a run's samples: one sample, what decided its answer, and the heads behind the wrong ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evals.cli.options import AsJson, Device, Results
from workbench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from evals.compare.matching import Row
    from evals.explain.explain import Explanation
    from evals.results.runs import Run

SampleName = Annotated[str | None, typer.Option("--sample", help="One sample, as TASK/ID: demo_mmlu/17.")]
Explain = Annotated[
    bool, typer.Option("--explain", help="Run the sample again, and say what decided its answer (needs the model).")
]
Top = Annotated[int, typer.Option(min=1, help="How many parts of the model are shown.")]
Position = Annotated[
    int | None, typer.Option(min=0, help="The position whose next token is explained; default where answers part.")
]
Checkpoint = Annotated[
    str | None, typer.Option("--model", help="The run's checkpoint, where it is elsewhere than it was then.")
]


def show_sample(
    run: Run,
    name: str,
    *,
    explained: bool,
    top: int,
    position: int | None,
    model: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Print a sample; with `explained` what decided its answer, after running it again."""
    from evals.explain.replay import sample

    task, doc_id = _named(name)
    row = sample(run, task, doc_id)
    if not explained:
        typer.echo(json.dumps(_told(task, row), indent=2, default=str) if as_json else "\n".join(_said(task, row)))
        return
    from evals.explain import explain
    from evals.explain.replay import model_of

    found = explain.explain(model_of(run, path=model, device=device), run, task, doc_id, position=position)
    if as_json:
        told = {**_told(task, found.replayed.row), "explanation": _explanation(found, run)}
        typer.echo(json.dumps(told, indent=2, default=str))
        return
    typer.echo("\n".join(_said(task, found.replayed.row)))
    if not found.replayed.agrees:
        typer.echo(f"warning: {found.replayed}", err=True)
    typer.echo("\n".join(_explained(found, run, top)))


def heads(
    run: Annotated[
        str | None, typer.Argument(help="A results file, a folder, or part of a run's name; default the newest.")
    ] = None,
    task: Annotated[str, typer.Option(help="A task of the run, or a group.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first wrong answers.")] = None,
    top: Top = 10,
    model: Checkpoint = None,
    device: Device = "auto",
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Rank the heads by how hard they spoke for a task's wrong answers.

    The numbers are direct contributions to the right answer's logit less the given one's, means over the wrong answers.
    That is no proof: the command printed last makes the run without the first head, and compares the two.
    """
    from evals.cli.find_run import find
    from evals.explain import baseline_run, explain
    from evals.explain.replay import changes_of, model_of

    found_run = find(run, results)
    if not task and len(found_run.tasks) != 1:
        raise DataError(f"name a --task of this run: {', '.join(found_run.tasks)}.")
    task = task or found_run.tasks[0]
    explain.explainer()  # what is not installed is said before a model is loaded
    asked = explain.wrong(found_run, task)
    loaded = model_of(found_run, path=model, device=device)
    with _bar(min(limit or len(asked), len(asked))) as bar:
        found = explain.rank_heads_behind_errors(
            loaded, found_run, task, limit=limit, done=lambda now, total: bar.update()
        )
    table = found.heads()
    first = (int(table["layer"][0]), int(table["head"][0]))
    check = baseline_run.without(found_run, first)
    if as_json:
        told = {
            "task": task, "n": len(found.doc_ids), "wrong": len(asked), "doc_ids": found.doc_ids,
            "difference": found.difference, "interventions": [change.to_dict() for change in changes_of(found_run)],
            "parts": found.table.to_dict("records"), "left_out": found.left_out, "check": check,
        }  # fmt: skip
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(f"{task}: {len(found.doc_ids)} of {len(asked)} wrong answers{_under(found_run)};")
    typer.echo(
        f"the right token's logit is {-found.difference:.3f} below the given one's on average. Of that, by head:\n"
    )
    columns = {
        "head": [f"L{layer}H{head}" for layer, head in zip(table["layer"], table["head"], strict=True)],
        "mean": [f"{value:+.3f}" for value in table["mean"]],
        "95% interval": [_interval(low, high) for low, high in zip(table["low"], table["high"], strict=True)],
        "against": [f"{value:.0%}" for value in table["against"]],
    }
    typer.echo("\n".join(_table(columns, top)))
    for line in found.left_out:
        typer.echo(f"left out: {line}", err=True)
    typer.echo("\n" + _check(first, check))


def print_difference(run: Run, against: Run | None, *, err: bool) -> None:
    """After a run under interventions: how it differs from the plain one of its store, or how to find out.

    against: another run to compare with, whatever the interventions. err: print on stderr, beside JSON.
    """
    from evals.explain import baseline_run
    from evals.explain.replay import changes_of
    from evals.interventions import described

    changes = changes_of(run)
    other = against or (baseline_run.plain_of(run) if changes else None)
    if other is not None:
        try:
            lines = baseline_run.compared(other, run)
        except DataError as error:  # the run itself is made, and whole
            typer.echo(f"not compared with {other.name}: {error}", err=True)
            return
        typer.echo(f"\n{described(changes)}, compared with {other.name} question by question:", err=err)
        typer.echo("\n".join(lines), err=err)
    elif changes and (command := baseline_run.command(run)):
        said = f"The plain run is not in {run.path.parent}. This makes it; then make the same run again:"
        typer.echo(f"\n{said}\n  {command}", err=err)


# --- what is printed ------------------------------------------------------------------------------------------


def _named(text: str) -> tuple[str, int]:
    task, _, number = text.rpartition("/")
    if not task or not number.isdecimal():
        raise DataError(f"--sample is TASK/ID, as demo_mmlu/17; found {text!r}.")
    return task, int(number)


def _told(task: str, row: Row) -> dict[str, Any]:
    hidden = ("prompt_ids", "choice_ids", "generated_ids", "generated_logprobs")
    return {"task": task, **{key: value for key, value in row.items() if key not in hidden}}


def _said(task: str, row: Row) -> list[str]:
    from evals.explain import explain

    verdict = {1.0: "right", 0.0: "wrong", None: "not judged"}.get(row["correct"], f"{row['metric']} {row['correct']}")
    lines = [f"{task}/{row['doc_id']}: {verdict}", "", str(row["prompt"]), ""]
    if isinstance(row.get("choices"), list):
        best = row["answer"]
        for i, (choice, value) in enumerate(zip(row["choices"], row["logprobs"], strict=True)):
            lines.append(f"  {str(choice).strip():<12} {value:9.4f} nats{'  chosen' if i == best else ''}")
        return [*lines, f"right: {explain.right(row)}"]
    lines += [f"response: {row['response']}", f"answer: {row['answer']} ({row['filter']})", f"target: {row['target']}"]
    return lines + [f"{key}: {row[key]}" for key in ("verdict", "message") if isinstance(row.get(key), str)]


def _explanation(found: Explanation, run: Run) -> dict[str, Any]:
    from evals.explain import baseline_run

    replayed, where = found.replayed, found.decision
    first = _first(found)
    return {
        "agrees": replayed.agrees, "says": str(replayed), "stored": replayed.stored.tolist(),
        "recomputed": replayed.recomputed.tolist(), "allowed": replayed.allowed.tolist(),
        "decided": where.says, "position": where.position, "token": where.token, "minus": where.contrast_token,
        "difference": found.found.difference, "rest": found.found.residual,
        "lens": found.found.lens().to_dict("records"), "parts": found.found.frame().to_dict("records"),
        "check": None if first is None else baseline_run.without(run, first),
    }  # fmt: skip


def _first(found: Explanation) -> tuple[int, int] | None:
    table = found.heads()
    return None if table.empty else (int(table["layer"][0]), int(table["head"][0]))


def _explained(found: Explanation, run: Run, top: int) -> list[str]:
    from evals.explain import baseline_run

    replayed, what = found.replayed, found.found
    lines = ["", f"replayed{_under(run)}: {replayed}"]
    lines += [f"{found.decision.says}; decided behind position {found.decision.position}.", ""]
    lines += ["Log-probability of each by layer, -1 being the embedding (logit lens, nats):", *_lens(what.lens()), ""]
    parts = what.frame()
    lines.append(f"Right less given is {what.difference:+.3f} logits; the parts miss it by {what.residual:+.2g}:")
    layers = parts.pivot_table(index="layer", columns="kind", values="contribution", aggfunc="sum")
    kinds = [kind for kind in ("embed", "head", "attn", "mlp") if kind in layers]
    columns = {"layer": [str(layer) for layer in layers.index]}
    columns |= {
        f"{kind}s" if kind == "head" else kind: ["" if x != x else f"{x:+.3f}" for x in layers[kind]] for kind in kinds
    }
    lines += [*_table(columns, len(layers)), "", "Heads, those first that spoke most for the given answer:"]
    ranked = found.heads()
    names = [f"L{layer}H{head}" for layer, head in zip(ranked["layer"], ranked["head"], strict=True)]
    columns = {"head": names, "contribution": [f"{x:+.3f}" for x in ranked["contribution"]]}
    columns["norm anew"] = [f"{x:+.3f}" for x in ranked["removed"]]
    columns["norm's error"] = [f"{x:.0%}" for x in ranked["frozen_error"]]
    lines += [*_table(columns, top), "norm anew: what would be lost if the last norm were scaled without the head;"]
    lines.append("norm's error: how wrong its fixed scale is about that head, as a share of the true change.")
    if (first := _first(found)) is not None:
        lines += ["", _check(first, baseline_run.without(run, first))]
    return lines


def _lens(table: pd.DataFrame) -> list[str]:
    wide = table.pivot_table(index="layer", columns="token", values="logprob", sort=False)
    text = dict(zip(table["token"], table["text"], strict=True))
    columns = {"layer": [str(layer) for layer in wide.index]}
    columns |= {f"'{text[token]}'": [f"{x:.2f}" for x in wide[token]] for token in wide.columns}
    return _table(columns, len(wide))


def _check(head: tuple[int, int], command: str | None) -> str:
    name = f"L{head[0]}H{head[1]}"
    if command is None:
        return f"To check it, make the run again with wb.Ablate({name!r}) among its interventions."
    return f"A contribution is no cause. Without {name}, compared with this run:\n  {command}"


def _under(run: Run) -> str:
    from evals.explain.replay import changes_of
    from evals.interventions import described

    changes = changes_of(run)
    return f" under {described(changes)}" if changes else ""


def _interval(low: float, high: float) -> str:
    return "" if low != low else f"{low:+.3f} to {high:+.3f}"


def _table(columns: dict[str, list[str]], rows: int) -> list[str]:
    widths = {name: max(len(name), *map(len, cells[:rows])) for name, cells in columns.items()}
    shown = [tuple(columns), *list(zip(*columns.values(), strict=True))[:rows]]
    return ["  " + "  ".join(map(str.rjust, line, widths.values())) for line in shown]


def _bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="explaining", file=sys.stderr, leave=False)


COMMANDS = (("heads", heads, "results/demo --task demo_mmlu --limit 50"),)
