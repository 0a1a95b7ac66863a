"""The commands for samples: their output, their errors, and that the commands they print can be run."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
pytest.importorskip("pandas", reason="pandas is not installed")

from evals.results.runs import list_runs
from workbench.cli import main
from workbench.model import Transformer

RUN = ["eval", "run", "--tasks", "demo_mmlu,demo_gsm8k", "--limit", "6", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def place(speaking_model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and the results folder of a run on it."""
    root = tmp_path_factory.mktemp("samples")
    folder = root / "checkpoint"
    folder.mkdir()
    assert speaking_model.tokenizer is not None
    (folder / "params.json").write_text(json.dumps(speaking_model.config.to_meta()))
    (folder / "tokenizer.model").write_bytes(speaking_model.tokenizer.to_tiktoken())
    save_file(speaking_model.state_dict(), folder / "consolidated.00.safetensors")
    assert main([*RUN, "--model", str(folder), "--output", str(root / "out")]) == 0
    return root


@pytest.fixture
def out(place: Path) -> str:
    return str(place / "out")


def wrong(out: str) -> int:
    table = list_runs(out)[-1].samples("demo_mmlu")
    return int(table[table["correct"] == 0]["doc_id"].iloc[0])


def test_a_sample_without_a_model(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    number = wrong(out)
    capsys.readouterr()
    assert main(["eval", "show", out, "--sample", f"demo_mmlu/{number}"]) == 0
    text = capsys.readouterr().out
    row = list_runs(out)[-1].samples("demo_mmlu").set_index("doc_id").loc[number]
    assert text.startswith(f"demo_mmlu/{number}: wrong") and row["prompt"] in text
    assert f"{row['choices'][row['answer']].strip():<12} {max(row['logprobs']):9.4f} nats  chosen" in text
    assert f"right: {'ABCD'[int(row['target'])]}" in text
    assert main(["eval", "show", out, "--sample", "demo_gsm8k/1", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["task"], output["doc_id"]) == ("demo_gsm8k", 1) and output["response"] and "prompt_ids" not in output


def test_a_sample_explained(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    number = wrong(out)
    capsys.readouterr()
    ask = ["eval", "show", out, "--sample", f"demo_mmlu/{number}", "--explain", "--device", "cpu"]
    assert main([*ask, "--json"]) == 0
    explanation = json.loads(capsys.readouterr().out)["explanation"]
    assert explanation["agrees"] and explanation["recomputed"] == pytest.approx(explanation["stored"], abs=1e-4)
    parts = explanation["parts"]
    assert sum(part["contribution"] for part in parts) + explanation["rest"] == pytest.approx(
        explanation["difference"], abs=1e-6
    )
    heads = [part for part in parts if part["kind"] == "head"]
    worst = min(heads, key=lambda part: part["contribution"])
    name = f"L{worst['layer']}H{worst['head']}"
    assert shlex.split(explanation["check"])[-2:] == ["--ablate", name]
    assert main([*ask, "--top", "2"]) == 0
    text = capsys.readouterr().out
    assert f"{name} {worst['contribution']:+13.3f}" in text and explanation["check"] in text
    table = text.split("contribution to the given answer first:\n")[1].split("norm recomputed: the")[0]
    assert len(table.splitlines()) == 3


def test_heads_and_the_check_that_is_advised(
    place: Path, out: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    capsys.readouterr()
    ask = ["eval", "heads", out, "--task", "demo_mmlu", "--limit", "3", "--device", "cpu"]
    assert main([*ask, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["n"] == 3 and len(output["doc_ids"]) == 3 and output["left_out"] == []
    first = next(part for part in output["parts"] if part["kind"] == "head")
    name = f"L{first['layer']}H{first['head']}"
    assert main([*ask, "--top", "1"]) == 0
    text = capsys.readouterr().out
    assert f"{name}  {first['mean']:+.3f}" in text and output["check"] in text
    # The printed command, run on a copy of the store, compares its run with the plain run.
    shutil.copytree(out, tmp_path / "copy")
    command = shlex.split(output["check"])[1:]
    command[command.index("--output") + 1] = str(tmp_path / "copy")
    assert main(command) == 0
    text = capsys.readouterr().out
    assert f"ablate {name}, compared with copy/" in text and "demo_mmlu acc: " in text and "by mcnemar, n 6" in text
    # From there the next head: its command names the run that it compares with.
    changed = list_runs(tmp_path / "copy")[0]
    assert main(["eval", "heads", str(changed.path), "--task", "demo_mmlu", "--limit", "3", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["interventions"] == [{"kind": "ablate", "target": name}]
    assert next(p for p in again["parts"] if f"L{p['layer']}H{p['head']}" == name)["mean"] == 0
    assert shlex.split(again["check"])[-2:] == ["--against", changed.provenance["run"]]
    assert main(shlex.split(again["check"])[1:]) == 0
    text = capsys.readouterr().out
    assert f"ablate {name}, ablate L" in text and f"compared with {changed.name} question by question" in text


def test_without_a_plain_run_it_says_how_to_make_one(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*RUN, "--model", str(place / "checkpoint"), "--output", str(tmp_path / "o"), "--ablate", "L0H0"]
    assert main([*options, "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["provenance"]["interventions"] == [{"kind": "ablate", "target": "L0H0"}]
    assert "The baseline run is not in" in output.err and "--limit 6\n" in output.err
    assert main([*options, "--against", "nothing"]) == 2
    assert "no run matches 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sample", "demo_mmlu"], "--sample must be TASK/ID"),
        (["--sample", "demo_mmlu/x"], "--sample must be TASK/ID"),
        (["--sample", "mmlu/0"], "no samples of 'mmlu'"),
        (["--sample", "demo_mmlu/99"], "has no question 99"),
        (["--explain"], "need --sample"),
        (["--sample", "demo_mmlu/0", "--explain", "--position", "9999"], "--position must be 0 to"),
        (
            ["--sample", "demo_mmlu/0", "--explain", "--model", "demo", "--device", "cpu"],
            "is not the run's model: its checkpo",
        ),
    ],
)
def test_mistakes_are_said_in_a_line(
    out: str, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    capsys.readouterr()
    assert main(["eval", "show", out, *options]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_a_head_that_is_not_there_is_said_before_anything_is_asked(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*RUN, "--model", str(place / "checkpoint"), "--output", str(tmp_path / "o"), "--ablate", "L1H4"]
    capsys.readouterr()
    assert main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("workbench: --ablate L1H4: ") and len(error.splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_a_changed_sample_is_explained_as_something_else(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(out, tmp_path / "copy")
    path = next((tmp_path / "copy").glob("samples_demo_mmlu_*"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["replay"]["prompt_ids"][-1] += 1
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert (
        main(["eval", "show", str(tmp_path / "copy"), "--sample", "demo_mmlu/0", "--explain", "--device", "cpu"]) == 0
    )
    assert "warning: the replay does not match the stored answer" in capsys.readouterr().err
