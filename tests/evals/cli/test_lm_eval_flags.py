"""A command line of lm_eval's runs as it is; every flag of its parser works, or one line says what happens."""

import argparse
import json
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from lm_eval._cli.run import Run as LmEvalRun

from evals import sandbox
from evals.cli import app, task_names
from evals.cli.lm_eval_flags import FLAGS, IGNORED, REFUSED, SAME, Flag, rewritten
from evals.cli.model_choice import ModelChoice, choose
from evals.report import terminal_table
from evals.results.runs import Run, list_runs
from evals.run.evaluate import evaluate
from evals.run.score_external import score
from evals.run.settings import Settings
from evals.tasks.registry import manager
from workbench.cli import main
from workbench.errors import DataError
from workbench.model import Transformer

needs_sandbox = pytest.mark.skipif(
    sandbox.why_unavailable() is not None, reason=f"no sandbox here: {sandbox.why_unavailable()}"
)


def lm_evals_flags() -> list[argparse.Action]:
    parser = argparse.ArgumentParser()
    LmEvalRun.create(parser.add_subparsers())
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return [action for action in commands.choices["run"]._actions if action.dest != "help"]


@pytest.mark.parametrize("action", lm_evals_flags(), ids=lambda action: str(action.dest))
def test_every_flag_of_lm_eval_is_known(action: argparse.Action) -> None:
    run = get_command(app).commands["run"]  # type: ignore[attr-defined]
    ours = {name for parameter in run.params for name in (*parameter.opts, *parameter.secondary_opts)}
    (flag,) = [flag for flag in FLAGS if flag.names[0] == action.option_strings[0]]
    assert set(action.option_strings) <= set(flag.names)
    assert flag.values == ("0" if action.nargs == 0 else action.nargs or "1")
    if flag.effect == SAME:
        assert set(flag.names) <= ours
    else:
        assert flag.effect in (IGNORED, REFUSED) and flag.why.endswith(".") and not set(flag.names) & ours


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.names[0])
def test_a_flag_without_effect_says_so(flag: Flag, capsys: pytest.CaptureFixture[str]) -> None:
    for name in flag.names:
        words = [name, *([] if flag.values in ("0", "?") else ["a=1"])]
        if flag.effect == REFUSED:
            assert main(["eval", "run", *words]) == 2
            assert f"{name} is not supported: {flag.why}" in capsys.readouterr().err
        elif flag.effect == IGNORED:
            assert rewritten(words) == ([], [f"{name} is ignored: {flag.why}"])


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--tasks a b,c -L 3", "-L 3 --tasks a,b,c"),
        ("-t a --tasks=b -t c d", "--tasks a,b,c,d"),
        ("--gen_kwargs temperature=0 top_p=1 -L10", "-L 10 --gen_kwargs temperature=0,top_p=1"),
        ("--model_args pretrained=x dtype=float32 --limit -1", "--limit -1 --model_args pretrained=x,dtype=float32"),
        ('--gen_kwargs \'{"until": ["a b"]}\'', '--gen_kwargs \'{"until": ["a b"]}\''),
        ("--apply_chat_template -L 1", "--apply_chat_template true -L 1"),
        ("--apply_chat_template tool_use --chat", "--apply_chat_template tool_use --chat true"),
        ("--apply_chat_template True", "--apply_chat_template true"),
        ("--apply_chat_template false -L 1", "-L 1"),
        ("--fewshot_as_multiturn", "--fewshot_as_multiturn"),
        ("--fewshot_as_multiturn=true", "--fewshot_as_multiturn"),
        ("--fewshot_as_multiturn False", "--no_fewshot_as_multiturn"),
        ("--no_fewshot_as_multiturn --ablate L0H1", "--no_fewshot_as_multiturn --ablate L0H1"),
        ("-s -c cache -w --cache_requests refresh --verbosity DEBUG --log_samples --output out", "--output out"),
    ],
)
def test_lm_evals_ways_to_write_values(command: str, expected: str) -> None:
    assert rewritten(shlex.split(command))[0] == shlex.split(expected)


def test_a_value_that_is_missing_or_doubled_is_an_error() -> None:
    with pytest.raises(DataError, match="--tasks needs a value"):
        rewritten(["--tasks", "--limit", "3"])
    with pytest.raises(DataError, match="takes true or false; found 'maybe'"):
        rewritten(["--fewshot_as_multiturn", "maybe"])
    with pytest.raises(DataError, match="one JSON object, or pairs"):
        rewritten(["--gen_kwargs", '{"top_k": 1}', "top_p=1"])


@pytest.mark.parametrize(
    ("model", "backend", "arguments", "expected"),
    [
        ("x", "workbench", {}, ModelChoice("x", "workbench", {}, {})),
        ("hf", "workbench", {"pretrained": "x"}, ModelChoice("", "hf", {"pretrained": "x"}, {})),
        ("demo", "hf", {"pretrained": "x"}, ModelChoice("", "hf", {"pretrained": "x"}, {})),
        ("x", "hf", {"dtype": "float32"}, ModelChoice("x", "hf", {"dtype": "float32"}, {})),
        ("workbench", "workbench", {"pretrained": "x"}, ModelChoice("x", "workbench", {}, {})),
        ("demo", "workbench", {"pretrained": "a/b", "revision": "c", "dtype": "float16"},
         ModelChoice("a/b@c", "workbench", {}, {"dtype": "float16"})),
        ("x", "workbench", {"peft": "lora", "trust_remote_code": True},
         ModelChoice("x", "workbench", {}, {"peft": "lora"})),
    ],
)  # fmt: skip
def test_the_model_of_lm_evals_command_line(
    model: str, backend: str, arguments: dict[str, object], expected: ModelChoice
) -> None:
    assert choose(model, backend, arguments) == expected


def test_a_model_that_is_not_clear_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model, arguments, message in (
        ("hf", {}, "--model hf needs the checkpoint: --model_args pretrained=FOLDER"),
        ("x", {"pretrained": "y"}, "are two models"),
        ("demo", {"pretrained": "y", "parallelize": True}, "parallelize: .* need a --backend"),
    ):
        with pytest.raises(DataError, match=message):
            choose(model, "workbench", arguments)
    assert choose("", "hf", {"pretrained": "x"}, trust_remote_code=True).args["trust_remote_code"] is True
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf").mkdir()
    assert choose("hf", "workbench", {}).path == "hf", "a folder of this name is a checkpoint"


@pytest.mark.parametrize("pattern", ["mmlu_*", "*", "demo_*", "mmlu_llama*", "gsm8k*", "mmlu_?????", "*_tasks"])
def test_a_pattern_is_every_task_once(pattern: str) -> None:
    import fnmatch

    names = task_names.expanded(pattern)
    index = manager().task_index

    def leaves(name: str) -> set[str]:
        entry = index.get(name)
        if entry is None or entry.kind.name in ("TASK", "PY_TASK"):
            return {name}
        children = task_names._children(index, name)
        return set().union(*map(leaves, children)) if children else {name}

    covered = [leaf for name in names for leaf in leaves(name)]
    assert len(covered) == len(set(covered)), "no task twice"
    matched = {leaf for name in index if fnmatch.fnmatch(name, pattern) for leaf in leaves(name)}
    from evals.tasks.registry import names as benchmarks

    expected = {leaf for name in benchmarks() if fnmatch.fnmatch(name, pattern) for leaf in leaves(name)}
    assert set(covered) == expected <= matched


def test_other_names_are_as_they_are() -> None:
    assert task_names.expanded("a, b,,a,dir/x.jsonl") == ["a", "b", "dir/x.jsonl"]
    with pytest.raises(DataError, match="no file matches 'dir/nosuch_\\*\\.yaml'"):
        task_names.expanded("dir/nosuch_*.yaml")
    with pytest.raises(DataError, match="no benchmark matches 'nosuch_\\*'"):
        task_names.expanded("nosuch_*")


def test_a_pattern_matches_files_tasks_of_ones_own_and_at_last_all_of_lm_evals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine_a", "mine_b"):
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\ndataset_path: json\noutput_type: multiple_choice\n")
    assert task_names.expanded("mine_*", [tmp_path]) == ["mine_a", "mine_b"]
    assert task_names.expanded(f"{tmp_path}/mine_?.yaml") == [f"{tmp_path}/mine_a.yaml", f"{tmp_path}/mine_b.yaml"]
    assert "hellaswag" in task_names.expanded("hellasw*")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[x].jsonl").write_text("{}")
    assert task_names.expanded("[x].jsonl") == ["[x].jsonl"], "a file with such a name"


def test_a_command_line_of_lm_eval_runs(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = (
        f"-t demo_mmlu demo_gsm8k -a pretrained={checkpoint} dtype=float32 -f 1 -b auto --max_batch_size 2 "
        f'-E \'{{"demo_mmlu": [7, 3], "demo_gsm8k": [5]}}\' --gen_kwargs max_gen_toks=3 until=x -s -v ERROR -c cache '
        f"--apply_chat_template true --fewshot_as_multiturn false --seed None -o {tmp_path / 'out' / 'mine.json'}"
    )
    assert main(["eval", "run", *shlex.split(command)]) == 0
    err = capsys.readouterr().err
    assert "-s is ignored" in err and "--seed None: the seed is 1234" in err and "mine.json: results files" in err
    (run,) = list_runs(tmp_path / "out")
    assert {task: sorted(set(run.samples(task).doc_id)) for task in run.tasks} == {
        "demo_mmlu": [3, 7],
        "demo_gsm8k": [5],
    }
    assert {score.n for score in run.scores if score.task == "demo_mmlu"} == {2}
    assert run.data["n-samples"]["demo_gsm8k"]["effective"] == 1 and run.provenance["chat"]
    assert run.provenance["questions"] == {"demo_mmlu": [3, 7], "demo_gsm8k": [5]}
    assert not (tmp_path / "out" / "mine.json").exists()


def test_the_list_of_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "run", "--tasks", "list"]) == 0
    assert "demo_mmlu" in capsys.readouterr().out


def test_chosen_questions_are_answered_as_in_the_whole_run(speaking_model: Transformer, tmp_path: Path) -> None:
    def rows(**options: object) -> dict[int, tuple[str, object]]:
        run = evaluate(speaking_model, Settings(tasks=("demo_gsm8k",), output=tmp_path, **options))  # type: ignore[arg-type]
        return {row.doc_id: (row.prompt, row.generated_ids) for row in run.samples("demo_gsm8k").itertuples()}

    sampled = {"gen_kwargs": {"max_gen_toks": 3, "do_sample": True, "temperature": 1.0}}
    whole = rows(limit=6, **sampled)
    assert rows(questions={"demo_gsm8k": [5, 2]}, **sampled) == {number: whole[number] for number in (2, 5)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", '{"demo_gsm8k": [999999]}'], "0 to 299; found 999999"),
        (["--samples", '{"other": [0]}'], "--samples names other"),
        (["--samples", '{"demo_gsm8k": 0}'], "numbers of questions by task"),
        (["--samples", "{"], "--samples"),
        (["--samples", "0"], "number of programs per problem"),
        (["--samples", '{"demo_gsm8k": [0]}', "--limit", "3"], "use one of them"),
        (["--apply_chat_template", "nosuch"], "nosuch"),
        (["--config", "x.yaml"], "eval batch FILE.yaml"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_work(
    options: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "run", "--model", str(checkpoint), "--tasks", "demo_gsm8k", "--output", str(tmp_path / "out")]
    assert main([*command, *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and not (tmp_path / "out").exists()


# --- answers without scores


def test_answers_are_written_without_a_sandbox_and_scored_later(
    speaking_model: Transformer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = ("demo_gsm8k", "demo_humaneval", "demo_mmlu")
    settings = {"tasks": tasks, "limit": 3, "gen_kwargs": {"max_gen_toks": 8}}
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "why_unavailable", lambda: "bubblewrap (bwrap) is not installed")
        patch.setattr(sandbox, "require", lambda: pytest.fail("no sandbox is needed"))
        run = evaluate(speaking_model, Settings(output=tmp_path / "a", predict_only=True, **settings))  # type: ignore[arg-type]
    assert run.tasks == list(tasks) and run.not_run == {} and run.scores == []
    shown = terminal_table.render(run)
    assert shown.startswith("demo_gsm8k: ") and "of 3 questions have an answer that was cut" in shown
    assert "No scores: the run only wrote answers" in shown
    assert {name: run.data["n-samples"][name]["effective"] for name in tasks} == dict.fromkeys(tasks, 3)
    commands = [shlex.split(line) for line in shown.splitlines() if line.startswith("  workbench")]
    assert main(["eval", "show", str(run.path)]) == 0 and "eval score --task demo_gsm8k" in capsys.readouterr().out
    assert all(len(run.samples(task)) == 3 for task in tasks), "one row for each question, without filters"

    judged = [task for task in tasks if task != "demo_humaneval" or sandbox.why_unavailable() is None]
    usual = evaluate(speaking_model, Settings(output=tmp_path / "b", **{**settings, "tasks": tuple(judged)}))  # type: ignore[arg-type]
    for task, command in zip(tasks, commands, strict=True):
        if task in judged:
            assert main([*command[1:], "--output", str(tmp_path / task)]) == 0
            (scored,) = list_runs(tmp_path / task)
            assert values(scored) == {key: value for key, value in values(usual).items() if key[0] == task}
            assert scored.data["n-samples"][task]["effective"] == 3


def values(run: Run) -> dict[tuple[str, str, str], float]:
    return {(s.task, s.metric, s.filter): s.value for s in run.scores}


@needs_sandbox
def test_several_programs_per_problem_have_every_k_as_in_score(speaking_model: Transformer, tmp_path: Path) -> None:
    settings = Settings(
        tasks=("demo_humaneval",), output=tmp_path / "a", limit=2, samples=5, gen_kwargs={"max_gen_toks": 4}
    )
    run = evaluate(speaking_model, settings)
    log = next(run.path.parent.glob("samples_*"))
    scored = score("demo_humaneval", log, output=tmp_path / "b")
    assert [s.metric for s in run.scores] == ["pass@1", "pass@2", "pass@5"] == [s.metric for s in scored.scores]
    alone = Settings(tasks=("demo_humaneval",), output=tmp_path / "c", limit=2, samples=5, predict_only=True,
                     gen_kwargs={"max_gen_toks": 4})  # fmt: skip
    log = next(evaluate(speaking_model, alone).path.parent.glob("samples_*"))
    assert len(json.loads(log.read_text().splitlines()[0])["resps"][0]) == 5
    assert values(score("demo_humaneval", log, output=tmp_path / "d")) == values(scored)
