"""Commands for the samples of a run: one sample, its explanation, and the heads behind wrong answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evals.cli.options import AsJson, Results
from evals.results import json_text
from evals.runtime.printing import echo
from workbench.command_options import Device
from workbench.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from evals.compare.matching import Row
    from evals.explain.explain import Explanation
    from evals.results.runs import Run

SampleName = Annotated[str | None, typer.Option("--sample", help="Sample to print, as TASK/ID: demo_mmlu/17.")]
Explain = Annotated[
    bool, typer.Option("--explain", help="Run the sample again and explain what decided its answer (needs the model).")
]
Top = Annotated[int, typer.Option(min=1, help="Number of heads to show.")]
Position = Annotated[
    int | None,
    typer.Option(
        min=0, help="Explain the token after this position; default: where the given and the right answer diverge."
    ),
]
Checkpoint = Annotated[
    str | None, typer.Option("--model", help="Checkpoint of the run, if it is no longer at its original path.")
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
    """Print a sample; with `explained`, run it again and print what decided its answer."""
    from evals.explain.replay import sample

    task, doc_id = _parse_sample_name(name)
    row = sample(run, task, doc_id)
    if not explained:
        echo(
            json_text.dumps(_sample_json(task, row), indent=2, default=str)
            if as_json
            else "\n".join(_sample_lines(task, row))
        )
        return
    from evals.explain import explain
    from evals.explain.replay import model_of

    explanation = explain.explain(model_of(run, path=model, device=device), run, task, doc_id, position=position)
    if as_json:
        output = {**_sample_json(task, explanation.replayed.row), "explanation": _explanation_json(explanation, run)}
        echo(json_text.dumps(output, indent=2, default=str))
        return
    echo("\n".join(_sample_lines(task, explanation.replayed.row)))
    if not explanation.replayed.agrees:
        echo(f"warning: {explanation.replayed}", err=True)
    echo("\n".join(_explanation_lines(explanation, run, top)))


def heads(
    run: Annotated[
        str | None, typer.Argument(help="A results file, a folder, or part of a run's name; default: the newest run.")
    ] = None,
    task: Annotated[str, typer.Option(help="A task or group of the run; required if the run has several tasks.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only this many wrong answers, the first ones.")] = None,
    top: Top = 10,
    model: Checkpoint = None,
    device: Device = "auto",
    results: Results = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Rank the attention heads by their contribution to a task's wrong answers.

    The numbers are direct contributions to the right answer's logit minus the given answer's logit, averaged over the
    wrong answers. Attribution is not causation: the last line of the output is a command that runs the benchmark
    without the top head and compares the two runs.
    """
    from evals.cli.find_run import find
    from evals.explain import baseline_run, explain
    from evals.explain.replay import interventions_of, model_of

    found_run = find(run, results)
    if not task and len(found_run.tasks) != 1:
        raise DataError(f"this run has several tasks; pass --task with one of: {', '.join(found_run.tasks)}.")
    task = task or found_run.tasks[0]
    explain.explainer()  # fails before the model is loaded if the plugin is not installed
    wrong_rows = explain.wrong_answers(found_run, task)
    loaded = model_of(found_run, path=model, device=device)
    with _progress_bar(min(limit or len(wrong_rows), len(wrong_rows))) as bar:
        ranking = explain.rank_heads_behind_errors(
            loaded, found_run, task, limit=limit, done=lambda now, total: bar.update()
        )
    table = ranking.heads()
    first = (int(table["layer"][0]), int(table["head"][0]))
    check = baseline_run.ablation_command(found_run, first)
    if as_json:
        output = {
            "task": task, "n": len(ranking.doc_ids), "wrong": len(wrong_rows), "doc_ids": ranking.doc_ids,
            "difference": ranking.difference,
            "interventions": [change.to_dict() for change in interventions_of(found_run)],
            "parts": ranking.table.to_dict("records"), "left_out": ranking.left_out, "check": check,
        }  # fmt: skip
        echo(json_text.dumps(output, indent=2))
        return
    echo(f"{task}: {len(ranking.doc_ids)} of {len(wrong_rows)} wrong answers{_under_interventions(found_run)};")
    echo(f"the right token's logit is on average {-ranking.difference:.3f} below the given token's.")
    echo("Contribution to this difference by head:\n")
    columns = {
        "head": [f"L{layer}H{head}" for layer, head in zip(table["layer"], table["head"], strict=True)],
        "mean": [f"{value:+.3f}" for value in table["mean"]],
        "95% interval": [_interval(low, high) for low, high in zip(table["low"], table["high"], strict=True)],
        "against": [f"{value:.0%}" for value in table["against"]],
    }
    echo("\n".join(_table(columns, top)))
    for line in ranking.left_out:
        echo(f"left out: {line}", err=True)
    echo("\n" + _check_hint(first, check))


def print_difference(run: Run, against: Run | None, *, err: bool) -> None:
    """After a run with interventions, print its difference to the baseline in its store, or the command to make one.

    against: another run to compare with, also without interventions. err: print to stderr, because stdout has JSON.
    """
    from evals.explain import baseline_run
    from evals.explain.replay import interventions_of
    from workbench.hooks.intervention_options import described

    changes = interventions_of(run)
    baseline = against or (baseline_run.find_baseline(run) if changes else None)
    if baseline is not None:
        try:
            lines = baseline_run.difference_lines(baseline, run)
        except DataError as error:  # the run itself is complete
            echo(f"not compared with {baseline.name}: {error}", err=True)
            return
        echo(f"\n{described(changes)}, compared with {baseline.name} question by question:", err=err)
        echo("\n".join(lines), err=err)
    elif changes and (command := baseline_run.run_command(run)):
        message = (
            f"The baseline run is not in {run.path.parent}. Make it with this command, then repeat your run to compare:"
        )
        echo(f"\n{message}\n  {command}", err=err)


# --- output ---------------------------------------------------------------------------------------------------


def _parse_sample_name(text: str) -> tuple[str, int]:
    task, _, number = text.rpartition("/")
    if not task or not number.isdecimal():
        raise DataError(f"--sample must be TASK/ID, for example demo_mmlu/17; found {text!r}.")
    return task, int(number)


def _sample_json(task: str, row: Row) -> dict[str, Any]:
    hidden = ("prompt_ids", "choice_ids", "generated_ids", "generated_logprobs")
    return {"task": task, **{key: value for key, value in row.items() if key not in hidden}}


def _sample_lines(task: str, row: Row) -> list[str]:
    from evals.explain import explain

    verdict = {1.0: "right", 0.0: "wrong", None: "not judged"}.get(row["correct"], f"{row['metric']} {row['correct']}")
    if row["correct"] != row["correct"]:  # NaN, in a table with other questions
        verdict = "not judged"
    if spoilt := row.get("not_finite") is True:
        verdict = "not scored, because the model's logits were not finite"
    lines = [f"{task}/{row['doc_id']}: {verdict}", "", str(row["prompt"]), ""]
    if (row.get("cut") or 0) > 0:  # NaN in a table with questions that do not record it
        lines += [
            f"The model saw only the end of this prompt: {int(row['cut'])} tokens were truncated on the left.",
            "",
        ]
    if isinstance(row.get("choices"), list):
        best = None if spoilt else row["answer"]
        for i, (choice, value) in enumerate(zip(row["choices"], row["logprobs"], strict=True)):
            lines.append(f"  {str(choice).strip():<12} {value:9.4f} nats{'  chosen' if i == best else ''}")
        return [*lines, f"right: {explain.right_answer(row)}"]
    lines += [f"response: {row['response']}", f"answer: {row['answer']} ({row['filter']})", f"target: {row['target']}"]
    if row.get("finish_reason") == "length":
        lines.append(f"finish reason: length (cut after {len(row['generated_ids'])} tokens; raise max_gen_toks)")
    return lines + [f"{key}: {row[key]}" for key in ("verdict", "message") if isinstance(row.get(key), str)]


def _explanation_json(explanation: Explanation, run: Run) -> dict[str, Any]:
    from evals.explain import baseline_run

    replayed, decided, attribution = explanation.replayed, explanation.decision, explanation.attribution
    first = _top_head(explanation)
    return {
        "agrees": replayed.agrees, "says": str(replayed), "stored": replayed.stored.tolist(),
        "recomputed": replayed.recomputed.tolist(), "allowed": replayed.allowed.tolist(),
        "decided": decided.description, "position": decided.position,
        "token": decided.token, "minus": decided.contrast_token,
        "difference": attribution.difference, "rest": attribution.residual,
        "lens": attribution.lens().to_dict("records"), "parts": attribution.frame().to_dict("records"),
        "check": None if first is None else baseline_run.ablation_command(run, first),
    }  # fmt: skip


def _top_head(explanation: Explanation) -> tuple[int, int] | None:
    table = explanation.heads()
    return None if table.empty else (int(table["layer"][0]), int(table["head"][0]))


def _explanation_lines(explanation: Explanation, run: Run, top: int) -> list[str]:
    from evals.explain import baseline_run

    replayed, attribution = explanation.replayed, explanation.attribution
    lines = ["", f"replay{_under_interventions(run)}: {replayed}"]
    lines += [f"{explanation.decision.description}; decided after position {explanation.decision.position}.", ""]
    lines += [
        "Log-probability of both tokens by layer in nats (logit lens; layer -1 is the embedding):",
        *_lens_lines(attribution.lens()),
        "",
    ]
    parts = attribution.frame()
    lines += [
        f"Logit of the right token minus logit of the given token: {attribution.difference:+.3f}.",
        f"Contributions by layer and part (not explained: {attribution.residual:+.2g}):",
    ]
    layers = parts.pivot_table(index="layer", columns="kind", values="contribution", aggfunc="sum")
    kinds = [kind for kind in ("embed", "head", "attn", "mlp") if kind in layers]
    columns = {"layer": [str(layer) for layer in layers.index]}
    columns |= {
        f"{kind}s" if kind == "head" else kind: ["" if x != x else f"{x:+.3f}" for x in layers[kind]] for kind in kinds
    }
    lines += [*_table(columns, len(layers)), "", "Heads, the largest contribution to the given answer first:"]
    ranked = explanation.heads()
    names = [f"L{layer}H{head}" for layer, head in zip(ranked["layer"], ranked["head"], strict=True)]
    columns = {"head": names, "contribution": [f"{x:+.3f}" for x in ranked["contribution"]]}
    columns["norm recomputed"] = [f"{x:+.3f}" for x in ranked["removed"]]
    columns["frozen-norm error"] = [f"{x:.0%}" for x in ranked["frozen_error"]]
    lines += [
        *_table(columns, top),
        "norm recomputed: the contribution if the scale of the final norm is recomputed without the head.",
        "frozen-norm error: the error of the fixed scale for this head, as a share of the true change.",
    ]
    if (first := _top_head(explanation)) is not None:
        lines += ["", _check_hint(first, baseline_run.ablation_command(run, first))]
    return lines


def _lens_lines(table: pd.DataFrame) -> list[str]:
    wide = table.pivot_table(index="layer", columns="token", values="logprob", sort=False)
    text = dict(zip(table["token"], table["text"], strict=True))
    columns = {"layer": [str(layer) for layer in wide.index]}
    columns |= {f"'{text[token]}'": [f"{x:.2f}" for x in wide[token]] for token in wide.columns}
    return _table(columns, len(wide))


def _check_hint(head: tuple[int, int], command: str | None) -> str:
    name = f"L{head[0]}H{head[1]}"
    if command is None:
        return f"To test the top head, run the benchmark again with wb.Ablate({name!r}) added to its interventions."
    return f"Attribution is not causation. To test {name}, run the benchmark without it and compare:\n  {command}"


def _under_interventions(run: Run) -> str:
    from evals.explain.replay import interventions_of
    from workbench.hooks.intervention_options import described

    changes = interventions_of(run)
    return f" under {described(changes)}" if changes else ""


def _interval(low: float, high: float) -> str:
    return "" if low != low else f"{low:+.3f} to {high:+.3f}"


def _table(columns: dict[str, list[str]], rows: int) -> list[str]:
    widths = {name: max(len(name), *map(len, cells[:rows])) for name, cells in columns.items()}
    shown = [tuple(columns), *list(zip(*columns.values(), strict=True))[:rows]]
    return ["  " + "  ".join(map(str.rjust, line, widths.values())) for line in shown]


def _progress_bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="explaining", file=sys.stderr, leave=False)


COMMANDS = (("heads", heads, "results/demo --task demo_mmlu --limit 50"),)
