"""The flags of lm-eval's own command line: which of them `workbench eval run` has, ignores with a line, or refuses.

`LmEvalCommand` rewrites a command line of lm_eval's into one that Typer can parse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from typer.core import TyperCommand

from evals.runtime.printing import echo
from workbench.errors import DataError


class Flag(NamedTuple):
    """A flag of lm_eval's: its names, what happens to it ("same", "ignored" or "refused"), and why.

    `values` is how many words may follow it: "0", "1", "?" (none or one) or "+" (one or more).
    """

    names: tuple[str, ...]
    effect: str
    why: str = ""
    values: str = "1"


SAME, IGNORED, REFUSED = "same", "ignored", "refused"
_UPLOAD = "nothing is uploaded; upload the files of --output yourself."
FLAGS = (
    Flag(
        ("--tasks", "-t"),
        SAME,
        "patterns such as 'mmlu_*' mean the benchmarks of `workbench eval tasks`, or else all of lm-eval's; "
        "`--tasks list` lists the benchmarks",
        "+",
    ),
    Flag(
        ("--model", "-M", "-m"),
        SAME,
        "a checkpoint. With the name of a backend of lm-eval (hf, vllm, ...) it is --backend, and the checkpoint is "
        "`pretrained` in --model_args",
    ),
    Flag(
        ("--model_args", "-a"),
        SAME,
        "without a --backend: pretrained, dtype, device, revision and peft of the workbench's own model",
        "+",
    ),
    Flag(("--num_fewshot", "-f"), SAME),
    Flag(("--batch_size", "-b"), SAME),
    Flag(("--max_batch_size",), SAME),
    Flag(("--device",), SAME),
    Flag(("--limit", "-L"), SAME),
    Flag(("--samples", "-E"), SAME, "a number N is not lm-eval's: N programs per problem"),
    Flag(("--gen_kwargs",), SAME, "", "+"),
    Flag(("--output_path", "-o"), SAME, "of a name that ends in .json, the folder"),
    Flag(("--apply_chat_template",), SAME, "", "?"),
    Flag(("--fewshot_as_multiturn",), SAME, "", "?"),
    Flag(("--system_instruction",), SAME),
    Flag(("--include_path",), SAME),
    Flag(("--seed",), SAME, "the last of four seeds is used"),
    Flag(("--predict_only", "-x"), SAME, "", "0"),
    Flag(
        ("--trust_remote_code",),
        SAME,
        "for another --backend; the workbench's own model runs no code of a checkpoint",
        "0",
    ),
    Flag(("--log_samples", "-s"), IGNORED, "samples are always written.", "0"),
    Flag(("--confirm_run_unsafe_code",), IGNORED, "programs always run in the sandbox.", "0"),
    Flag(("--verbosity", "-v"), IGNORED, "what matters is always printed."),
    Flag(("--write_out", "-w"), IGNORED, "`workbench eval show --sample TASK/0` prints a prompt.", "0"),
    Flag(("--show_config",), IGNORED, "the results file has the configuration of every task.", "0"),
    Flag(("--use_cache", "-c"), IGNORED, "answers are always stored, in the store of --output."),
    Flag(("--cache_requests",), IGNORED, "prompts are made again; it takes moments.", "?"),
    Flag(("--check_integrity",), IGNORED, "tasks are checked when they are loaded.", "0"),
    Flag(("--config", "-C"), REFUSED, "`workbench eval batch FILE.yaml` takes settings from a file."),
    Flag(("--metadata",), REFUSED, "tasks that need metadata cannot be run here.", "+"),
    Flag(("--wandb_args",), REFUSED, _UPLOAD, "+"),
    Flag(("--wandb_config_args",), REFUSED, _UPLOAD, "+"),
    Flag(("--trackio_args",), REFUSED, _UPLOAD, "+"),
    Flag(("--hf_hub_log_args",), REFUSED, _UPLOAD, "+"),
)
_ALSO = {"--chat": "--apply_chat_template"}  # our own other names of flags that may have a value
_YES, _NO = ("true", "1", "yes"), ("false", "0", "no")


class LmEvalCommand(TyperCommand):
    """A command that also takes lm_eval's ways to write its flags: several values, optional values, flags without
    effect here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words, notes = rewritten(args)
        for note in notes:
            echo(note, err=True)
        return super().parse_args(ctx, words)


def rewritten(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line with one value for each flag, and a line for each flag that is ignored.

    Raises: DataError for a flag that is refused, or that has no value.
    """
    words: list[str] = []
    notes: list[str] = []
    several: dict[str, list[str]] = {}  # by flag: lm_eval adds up the values of --tasks, --gen_kwargs, --model_args
    for name, values in _flags(list(args)):
        flag = _flag(name)
        if flag is None:
            words += [name, *values]
        elif flag.effect == REFUSED:
            raise DataError(f"{name} is not supported: {flag.why}")
        elif flag.effect == IGNORED:
            notes.append(f"{name} is ignored: {flag.why}")
        elif flag.values == "+":
            if not values:
                raise DataError(f"{name} needs a value.")
            several.setdefault(flag.names[0], []).extend(values)
        elif flag.names[0] == "--apply_chat_template":
            value = values[0] if values else "true"
            words += [] if value.lower() in _NO else [name, "true" if value.lower() in _YES else value]
        elif flag.names[0] == "--fewshot_as_multiturn":
            value = (values or ["true"])[0].lower()
            if value not in (*_YES, *_NO):
                raise DataError(f"{name} takes true or false; found {values[0]!r}.")
            words.append(name if value in _YES else "--no_fewshot_as_multiturn")
        else:
            words += [name, *values]
    for name, values in several.items():
        objects = [value for value in values if value.lstrip().startswith("{")]
        if objects and len(values) > 1:
            raise DataError(f"{name} takes one JSON object, or pairs; found {len(values)} values.")
        words += [name, ",".join(values)]
    return words, notes


def _flags(args: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The flags of a command line, each with its values; words that follow no known flag are as they are."""
    while args:
        name, equals, value = args.pop(0).partition("=")
        if not name.startswith("-"):
            yield name + equals + value, []
            continue
        flag = _flag(name)
        short = re.fullmatch(r"(-[A-Za-z])(.+)", name)
        known = _flag(short[1]) if flag is None and short else None
        if short and known and known.values in ("1", "+"):  # -L10
            flag, name, equals, value = known, short[1], "=", short[2] + equals + value
        if flag is None:
            yield name + equals + value, []
            continue
        values = [value] if equals else []
        room = {"0": 0, "1": 1, "?": 1, "+": len(args)}[flag.values] - len(values)
        while args and room > 0 and (flag.values == "1" or not re.match(r"--?[A-Za-z]", args[0])):
            values.append(args.pop(0))
            room -= 1
        yield name, values


def _flag(name: str) -> Flag | None:
    name = _ALSO.get(name, name)
    return next((flag for flag in FLAGS if name in flag.names), None)


def documentation() -> list[list[str]]:
    """The rows of the table of flags in the docs: names, effect, why."""
    return [[", ".join(f"`{name}`" for name in flag.names), flag.effect, flag.why] for flag in FLAGS]
