"""Two processes that share a run's questions find what one finds; one of them killed, the run goes on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

from evals.models.response_cache import ResponseCache
from evals.results.runs import Run, list_runs
from evals.runtime.distributed import ALONE, Team, join
from evals.store.store import Store

WORKER = Path(__file__).with_name("team_worker.py")
TASKS = "demo_mmlu,demo_gsm8k"


def command(processes: int, *arguments: str, slowly: float = 0.0, **more: str) -> subprocess.Popen[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "SLOWLY": str(slowly), "PYTHONPATH": str(Path(__file__).parents[3]),
        "CUDA_VISIBLE_DEVICES": "", **more,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, *torchrun, str(WORKER), "eval", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out, err


def asked(checkpoint: Path, output: Path, **more: str) -> list[str]:
    arguments = ["run", "--model", str(checkpoint), "--tasks", TASKS, "--limit", "20", "--num_fewshot", "2", "--json"]
    options = [text for key, value in more.items() for text in (f"--{key}", value)]
    return [*arguments, "--device", "cpu", "--dtype", "float32", "--output", str(output), *options]


def compare(found: Run, expected: Run) -> None:
    """Scores identical, samples in the same order with the same prompts and texts, log-probabilities to 1e-4, which is
    what another batch may change in float32."""
    assert [vars(score) for score in found.scores] == [vars(score) for score in expected.scores]
    for task in expected.tasks:
        ours, theirs = found.samples(task), expected.samples(task)
        for name in ("doc_id", "filter", "prompt", "prompt_ids", "answer", "correct"):
            assert list(ours[name]) == list(theirs[name]), f"{task} {name}"
        if "logprobs" in ours:
            for values, expected_values in zip(ours.logprobs, theirs.logprobs, strict=True):
                assert values == pytest.approx(expected_values, abs=1e-4)


def askers(err: str) -> dict[int, int]:
    """How many questions each rank asked."""
    counts: dict[int, int] = {}
    for rank, number in re.findall(r"rank (\d+) asked (\d+)", err):
        counts[int(rank)] = counts.get(int(rank), 0) + int(number)
    return counts


SAMPLED = {"gen_kwargs": "do_sample=true,temperature=0.8,max_gen_toks=6"}


@pytest.mark.slow
def test_two_processes_find_what_one_finds(checkpoint: Path, tmp_path: Path) -> None:
    _, err = ended(command(1, *asked(checkpoint, tmp_path / "one", **SAMPLED)))
    assert askers(err) == {0: 20 * 4 + 20}
    out, err = ended(command(2, *asked(checkpoint, tmp_path / "two", **SAMPLED)))
    json.loads(out)  # one process speaks, and only once
    (expected,), (run,) = list_runs(tmp_path / "one"), list_runs(tmp_path / "two")
    compare(run, expected)
    assert askers(err) == {0: 50, 1: 50}, "every question once, half of them in each process"
    assert len({path.name.split(".")[1] for path in (tmp_path / "two" / "responses").glob("*.zz")}) == 2
    with Store.open(tmp_path / "two") as store:
        (row,) = store.runs()
    assert row.status == "finished"


@pytest.mark.slow
def test_every_machine_has_a_store_of_its_own_and_all_are_read(checkpoint: Path, tmp_path: Path) -> None:
    questions = asked(checkpoint, tmp_path / "out")
    _, err = ended(command(2, *questions, MACHINES="2"))
    assert askers(err) == {0: 50, 1: 50}
    other = tmp_path / "out" / "machines" / "machine1"
    for folder in (tmp_path / "out", other):
        with Store.open(folder) as store:
            assert store._index.execute("SELECT count(*) FROM responses").fetchone() == (50,)
    _, err = ended(command(2, *questions, MACHINES="2"))
    assert askers(err) == {}
    second, first = list_runs(tmp_path / "out")
    compare(second, first)
    shutil.rmtree(other)
    _, err = ended(command(1, *questions))
    assert askers(err) == {0: 50}


@pytest.mark.slow
def test_layers_shared_by_two_processes_give_the_same(checkpoint: Path, tmp_path: Path) -> None:
    options = {"gen_kwargs": "max_gen_toks=6"}
    ended(command(1, *asked(checkpoint, tmp_path / "one", **options)))
    _, err = ended(command(2, *asked(checkpoint, tmp_path / "two", **options, tensor_parallel="2")))
    (expected,), (run,) = list_runs(tmp_path / "one"), list_runs(tmp_path / "two")
    compare(run, expected)
    assert askers(err) == {0: 100, 1: 100}, "both have a part of every layer"
    assert len(list((tmp_path / "two" / "responses").glob("*.zz"))) == 1


@pytest.mark.slow
def test_one_of_two_killed_and_the_run_resumed(checkpoint: Path, tmp_path: Path) -> None:
    ended(command(1, *asked(checkpoint, tmp_path / "one")))
    folder = tmp_path / "two"
    process = command(2, *asked(checkpoint, folder), slowly=0.15)
    while process.poll() is None and answers(folder) < 24:
        time.sleep(0.05)
    victims = children(process.pid)
    assert len(victims) == 2, "the run ended before it was killed"
    os.kill(victims[1], signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    process.communicate()
    with Store.open(folder) as store:
        (row,) = store.runs()
    count = answers(folder)
    assert row.status in ("interrupted", "failed") and 0 < count < 100 and list_runs(folder) == []
    _, err = ended(command(2, "resume", row.id, "--results", str(folder), "--json"))
    assert sum(askers(err).values()) <= 100 - count + 16, "no more than the units that were under way are asked again"
    (expected,), (resumed,) = list_runs(tmp_path / "one"), list_runs(folder)
    compare(resumed, expected)


def answers(folder: Path) -> int:
    if not (folder / "store.sqlite").exists():
        return 0
    with Store.open(folder) as store:
        return sum(store.response_counts().values())


def children(pid: int) -> list[int]:
    """The workers that torchrun started, in the order of their ranks."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ranks = {}
    for child in map(int, pids):
        environment = Path(f"/proc/{child}/environ").read_text().split("\0")
        ranks |= {int(line[5:]): child for line in environment if line.startswith("RANK=")}
    return [ranks[rank] for rank in sorted(ranks)]


class Pretended(Team):
    """A member whose team mates have nothing to add but what they are told here."""

    others: tuple[dict[Any, Any], ...] = ()

    def all_gather(self, own: Any) -> list[Any]:
        return [own, *self.others]


def test_members_share_the_units_out() -> None:
    questions = [("question", i) for i in range(10)]
    for rank, expected in ((0, [[0, 1, 2], [6, 7, 8]]), (1, [[3, 4, 5], [9]])):
        seen: list[list[int]] = []
        done: list[int] = []

        def ask(places: Any, seen: list[list[int]] = seen) -> list[Any]:
            seen.append(list(places))
            return [f"answer {i}" for i in places]

        team = Pretended(rank=rank, size=2)
        object.__setattr__(team, "others", ({i: f"answer {i}" for i in range(10)},))
        responses = ResponseCache(team=team).get_or_compute(questions, ask, unit=3, on_progress=done.append)
        assert seen == expected and responses == [f"answer {i}" for i in range(10)]
        assert sum(done) == 10, "progress is the team's"


def test_without_torchrun_there_is_one() -> None:
    assert join() is ALONE and ALONE.broadcast(lambda: 3) == 3 and ALONE.all_gather(4) == [4]
