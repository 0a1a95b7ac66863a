"""lm-eval's own models through the same store: answered once, never for another checkpoint."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm_eval is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import transformers
from lm_eval.api.instance import Instance

from evals.models.lm_eval_backend import Backend, pretrained
from evals.results.runs import Run
from evals.run.evaluate import evaluate, resume
from evals.run.settings import Settings
from evals.store.store import Store
from workbench.cli import main
from workbench.errors import DataError

TASKS = ("demo_mmlu", "demo_gsm8k")


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A random Llama with a tokenizer of letters, as transformers writes them."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers

    vocab = {chr(i): i for i in range(128)} | {"<unk>": 128, "<s>": 129, "</s>": 130}
    fast = Fast(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=2048
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=131, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=2048, bos_token_id=129, eos_token_id=130,
    )  # fmt: skip
    folder = tmp_path / "hub"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests reached lm-eval's model, one entry a call."""
    from lm_eval.models.huggingface import HFLM

    counts: list[int] = []
    score, write = HFLM.loglikelihood, HFLM.generate_until

    def scoring(self: Any, requests: Any, *given: Any, **options: Any) -> Any:
        counts.append(len(requests))
        return score(self, requests, *given, **options)

    def writing(self: Any, requests: Any, *given: Any, **options: Any) -> Any:
        counts.append(len(requests))
        return write(self, requests, *given, **options)

    monkeypatch.setattr(HFLM, "loglikelihood", scoring)
    monkeypatch.setattr(HFLM, "generate_until", writing)
    return counts


class Failing:
    """A model of lm-eval's whose every answer is an error."""

    max_length, eot_token_id, tokenizer_name = 512, 0, ""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def generate_until(self, *given: Any, **options: Any) -> list[str]:
        raise self.error

    loglikelihood = loglikelihood_rolling = generate_until


@pytest.mark.parametrize(
    "error", [AssertionError("too long\nsecond"), RuntimeError("CUDA error"), KeyError("x"), ImportError("y")]
)
@pytest.mark.parametrize("method", ["generate_until", "loglikelihood", "loglikelihood_rolling"])
def test_an_error_of_a_model_is_one_line(error: Exception, method: str) -> None:
    request = Instance("generate_until", {}, ("text", {"until": []}), 0, task_name="t", doc_id=0)
    backend = Backend(Failing(error), "nosuch", {}, seed=0)
    with pytest.raises(DataError) as raised:
        getattr(backend, method)([request])
    expected = str(error).splitlines()[0]
    assert str(raised.value) == f"lm-eval's model 'nosuch' failed ({type(error).__name__}): {expected}"


@pytest.mark.parametrize("backend", ["vllm", "sglang", "mamba_ssm", "nemo_lm", "ipex", "neuronx", "winml"])
def test_a_backend_that_cannot_be_made_is_one_line(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--backend", backend, "--model", "demo", "--tasks", "demo_mmlu", "--output", str(tmp_path / "out")]
    assert main(["eval", "run", *arguments]) == 2
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("workbench: ")]
    assert out == "" and f"'{backend}'" in line and "Traceback" not in err


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "lm_eval.models.vllm_causallms", raising=False)
    with pytest.raises(DataError, match="'vllm' needs the package vllm, which is not installed: pip install vllm"):
        Backend.of("vllm", "demo", {})


def test_without_cuda_the_processor_is_used(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(Backend.of("hf", hub_folder, {}).device) == "cpu"


@pytest.mark.filterwarnings("ignore")  # transformers' and accelerate's own
def test_a_local_checkpoint_is_asked_once(hub_folder: Path, tmp_path: Path, asked: list[int]) -> None:
    settings = Settings(
        tasks=TASKS, output=tmp_path / "out", limit=2, batch_size=4, backend="hf", gen_kwargs={"max_gen_toks": 3}
    )

    def again(**changes: Any) -> Run:
        asked.clear()
        return evaluate(hub_folder, replace(settings, **changes), device="cpu", dtype="float32")

    first = again()
    assert asked == [8, 2]
    # The same numbers as lm-eval gives without us, on its own requests.
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    alone = HFLM(pretrained=str(hub_folder), device="cpu", dtype="float32", batch_size=4)
    row = first.samples("demo_mmlu").iloc[0]
    requests = [Instance("loglikelihood", {}, (row.prompt, choice), i) for i, choice in enumerate(row.choices)]
    assert row.logprobs == pytest.approx([value for value, _ in alone.loglikelihood(requests)], abs=1e-4)
    (response,) = alone.generate_until([Instance("generate_until", {}, _generation(first), 0)])
    assert first.samples("demo_gsm8k").response[0] == response

    second = again()
    assert asked == [] and second.scores == first.scores
    assert second.provenance["checkpoint_sha256"] and second.data["config"]["model"] == "hf"
    again(gen_kwargs={"max_gen_toks": 4})
    assert asked == [2]
    again(num_fewshot=1)
    assert asked == [8, 2]
    model = transformers.LlamaForCausalLM.from_pretrained(hub_folder)
    with torch.no_grad():
        model.lm_head.weight *= 1.01
    model.save_pretrained(hub_folder)
    again()
    assert asked == [8, 2]


@pytest.mark.filterwarnings("ignore")  # transformers' and accelerate's own
def test_a_resumed_run_draws_what_one_left_alone_draws(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    from evals.models import units

    monkeypatch.setattr(units, "_FEWEST_GENERATIONS", 2)
    monkeypatch.setattr(units, "_MOST_GENERATIONS", 2)
    warm = {"max_gen_toks": 4, "do_sample": True, "temperature": 5.0}
    settings = Settings(tasks=("demo_gsm8k",), output=tmp_path / "a", limit=6, backend="hf", gen_kwargs=warm)
    whole = evaluate(hub_folder, settings, device="cpu", dtype="float32")
    write, calls = HFLM.generate_until, []

    def breaking(self: Any, requests: Any, *given: Any, **options: Any) -> Any:
        calls.append(len(requests))
        if len(calls) == 2:
            raise ConnectionError("gone")
        return write(self, requests, *given, **options)

    monkeypatch.setattr(HFLM, "generate_until", breaking)
    settings = replace(settings, output=tmp_path / "b")
    with pytest.raises(DataError, match=r"'hf' failed \(ConnectionError\): gone"):
        evaluate(hub_folder, settings, device="cpu", dtype="float32")
    with Store.open(tmp_path / "b") as store:
        (row,) = store.runs()
    resumed = resume(tmp_path / "b", row.id, backend="hf")
    texts = [list(run.samples("demo_gsm8k").response) for run in (whole, resumed)]
    assert calls == [2, 2, 2, 2] and texts[0] == texts[1] and len(set(texts[0])) == 6


def _generation(found: Run) -> tuple[str, dict[str, Any]]:
    line = found.path.with_name(f"samples_demo_gsm8k_{found.stamp}.jsonl").read_text().splitlines()[0]
    arguments = json.loads(line)["arguments"]["gen_args_0"]
    return arguments["arg_0"], arguments["arg_1"]


def test_a_model_without_files_is_asked_anew_by_every_run_but_not_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.dummy import DummyLM

    counts: list[int] = []
    score, write = DummyLM.loglikelihood, DummyLM.generate_until

    def scoring(self: Any, requests: Any, disable_tqdm: bool = False) -> Any:
        counts.append(len(requests))
        return score(self, requests, disable_tqdm=True)

    def broken(self: Any, requests: Any, disable_tqdm: bool = False) -> Any:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(DummyLM, "loglikelihood", scoring)
    monkeypatch.setattr(DummyLM, "generate_until", broken)
    settings = Settings(tasks=TASKS, output=tmp_path, limit=3, backend="dummy", model_args={"write_out": False})
    with pytest.raises(DataError, match="the server is gone"):
        evaluate("", settings)
    monkeypatch.setattr(DummyLM, "generate_until", write)
    with Store.open(tmp_path) as store:
        (row,) = store.runs()
    finished = resume(tmp_path, row.id, backend="dummy", model_args={"write_out": False})
    assert counts == [12] and list(finished.samples("demo_gsm8k").response[:3]) == ["lol"] * 3
    evaluate("", settings)
    assert counts == [12, 12]


def test_what_only_our_model_can_do_is_refused(tmp_path: Path, speaking_model: Any) -> None:
    import workbench as wb

    with pytest.raises(DataError, match="interventions"):
        Settings(tasks=TASKS, output=tmp_path, backend="hf", interventions=(wb.Ablate("L0H0"),))
    with pytest.raises(DataError, match="loads its own model"):
        evaluate(speaking_model, Settings(tasks=TASKS, output=tmp_path, backend="dummy"))
    assert (
        main(["eval", "run", "--tasks", "demo_mmlu", "--backend", "dummy", "--limit", "1", "--output", str(tmp_path)])
        == 0
    )


def test_our_own_name_of_a_fetched_model_is_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "smollm2").mkdir(parents=True)
    assert pretrained("smollm2") == str(tmp_path / "models" / "smollm2")
    assert pretrained("org/name") == "org/name"
