"""Generation arguments: every argument takes effect as in lm-eval, or one sentence says that it does not."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from lm_eval._cli.utils import key_val_to_dict
from lm_eval.models.utils import normalize_gen_kwargs

from evals.cli.option_values import key_values
from evals.models.generation_args import GenerationArgs, canonical, notes, override, samples
from evals.results.runs import list_runs
from workbench.cli import main
from workbench.errors import DataError

CONTEXT = 64
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.integers(1, 200) for name in LENGTHS},
        "do_sample": st.booleans(),
        "temperature": st.sampled_from([0, 0.0, 0.6, 1]),
        "top_p": st.sampled_from([0.5, 1.0]),
        "top_k": st.sampled_from([0, 5]),
        "min_p": st.sampled_from([0.0, 0.1]),
        "until": st.sampled_from(["\n", ["a,b", "c"]]),
    },
)


@given(task=ARGUMENTS, requested=ARGUMENTS)
@settings(max_examples=400, deadline=None)
def test_each_argument_takes_effect_or_a_note_says_why_not(task: dict[str, Any], requested: dict[str, Any]) -> None:
    lengths = {requested[name] for name in LENGTHS if name in requested}
    if len(lengths) > 1:
        with pytest.raises(DataError, match="contradicts"):
            canonical(requested)
        return
    requested = canonical(requested)
    merged = override(task, requested)
    normal: dict[str, Any] = normalize_gen_kwargs(merged)  # type: ignore[assignment]
    ours = GenerationArgs.of(normal, CONTEXT)
    text = " ".join(notes(requested, merged, context=CONTEXT))
    if lengths:
        assert normal["max_gen_toks"] == lengths.pop()
    assert (ours.tokens != normal["max_gen_toks"]) == ("does not fit" in text)
    assert samples(merged) == (ours.temperature > 0)
    assert ours.temperature == 0 or ours.temperature == merged["temperature"]
    for name, off in (("temperature", 0), ("top_p", 1), ("top_k", 0), ("min_p", 0)):
        if requested.get(name, off) != off:
            assert (f"{name}=" in text) == (ours.temperature == 0)
    assert ("do_sample=true has" in text or "do_sample=true have" in text) == (
        requested.get("do_sample") is True and ours.temperature == 0
    )
    if "until" in requested:
        assert list(ours.stop) == ([requested["until"]] if isinstance(requested["until"], str) else requested["until"])


VALUES = st.one_of(
    st.booleans(),
    st.integers(-5, 10**6),
    st.sampled_from([0.5, 1.25]),
    st.text("abc \n:,[]{}", max_size=6),
    st.lists(st.text("abc:, [](){}\n", max_size=5), max_size=3),
)


@given(st.dictionaries(st.sampled_from(["until", "top_k", "a", "b_c"]), VALUES, max_size=4))
@settings(max_examples=300, deadline=None)
def test_pairs_are_read_as_lm_eval_reads_them(pairs: dict[str, Any]) -> None:
    text = ",".join(
        f"{name}={json.dumps(value) if type(value) is not bool else value}" for name, value in pairs.items()
    )
    assert key_values(text, "--gen_kwargs") == pairs == key_val_to_dict(text)


def test_stop_and_until_are_one_argument() -> None:
    assert canonical({"stop": ["x"], "max_tokens": 3}) == {"until": ["x"], "max_gen_toks": 3}
    with pytest.raises(DataError, match="until='b' contradicts until='a'"):
        canonical({"stop": "a", "until": "b"})


def test_several_greedy_programs_of_a_problem_are_one_program() -> None:
    (note,) = notes({}, {"do_sample": False}, repeats=5)
    assert note.startswith("the 5 answers to a question are the same")
    assert notes({}, {"do_sample": True, "temperature": 0.2}, repeats=5) == []


@pytest.mark.parametrize(
    ("arguments", "sampled", "note"),
    [
        ("temperature=0.9,max_gen_toks=4", False, "temperature=0.9 has no effect, because do_sample is false"),
        ("top_p=0.9,top_k=3,max_new_tokens=4", False, "top_p=0.9, top_k=3 have no effect"),
        ("do_sample=True,max_tokens=4", False, "do_sample=true has no effect, because the temperature is 0"),
        ("do_sample=True,temperature=0.9,max_completion_tokens=4", True, ""),
        ('until=["zz,","\\n\\n\\n"],max_gen_toks=4', False, ""),
        ("max_gen_toks=100000", False, "max_gen_toks=100000 does not fit into the context of 640 tokens"),
    ],
)
def test_a_run_samples_or_says_that_it_does_not(
    arguments: str, sampled: bool, note: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for seed in (1, 2):
        command = f"eval run --tasks demo_gsm8k --limit 2 --dtype float32 --seed {seed} --output {tmp_path / str(seed)}"
        options = ["--model", str(checkpoint), "--gen_kwargs", arguments]
        assert main([*shlex.split(command), *options]) == 0
        shown = capsys.readouterr()
        assert note in shown.err and note in shown.out
        assert bool(note) == ("has no effect" in shown.err or "have no effect" in shown.err or "not fit" in shown.err)
        (run,) = list_runs(tmp_path / str(seed))
        assert run.provenance["notes"] == ([line for line in shown.err.splitlines() if note in line] if note else [])
        effective = run.provenance["generation"]["demo_gsm8k"]
        assert bool(effective["temperature"]) == sampled and effective["tokens"] == (320 if "1000" in arguments else 4)
        rows = run.samples("demo_gsm8k")
        assert max(map(len, rows.generated_ids)) <= effective["tokens"]
        answers.append(rows.response.tolist())
    assert (answers[0] != answers[1]) == sampled
