"""Two gloo processes, started by torchrun, give the results of one: logits, captures, interventions, gradients."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import workbench as wb
from tests.workbench.layers.parallel_worker import PROMPTS
from workbench.errors import ParallelError
from workbench.layers import tensor_parallel


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_two_processes_give_the_numbers_of_one(tiny_config, tmp_path: Path, project_root: Path, tied: bool) -> None:
    torch.manual_seed(0)
    model = wb.Transformer(replace(tiny_config, tied_output=tied))
    tokens = torch.randint(0, 96, (2, 12))
    source, target = tmp_path / "model.pt", tmp_path / "results.pt"
    torch.save({"config": model.config, "weights": model.state_dict(), "tokens": tokens}, source)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    worker = Path(__file__).with_name("parallel_worker.py")
    process = subprocess.run(
        [*command, str(worker), str(source), str(target)],
        env={**os.environ, "PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    results = torch.load(target, weights_only=False)

    with torch.no_grad():
        logits, capture = model.run_with_capture(tokens, "*")
        assert torch.allclose(results["logits"], logits, atol=1e-5)
        for name in capture.names:  # head and neuron numbers are global
            assert results["capture"][name].shape == capture[name].shape, name
            assert torch.allclose(results["capture"][name], capture[name], atol=1e-5), name
        with model.intervene(wb.Ablate("L1H3"), wb.Scale("blocks.0.mlp.hook_post", 0.5)):
            expected = model(tokens)
        assert torch.allclose(results["ablated"], expected, atol=1e-5)
        assert not torch.allclose(expected, logits, atol=1e-3)
        with model.intervene(wb.Ablate("L1H3")):
            assert torch.allclose(results["ablated result"], model(tokens), atol=1e-5)
    assert results["generated"] == wb.generate(model, [[5, 9, 3]], max_new_tokens=8)[0].tokens
    together = wb.generate(model, PROMPTS, batch_size=2, temperature=1.0, max_new_tokens=6)
    assert results["batch"] == [generation.tokens for generation in together]
    assert results["scored"][0][0] == pytest.approx(wb.score(model, [([5, 9, 3], [7, 8])])[0][0], abs=1e-5)
    torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    assert torch.allclose(results["norm gradient"], model.layers[0].attention_norm.weight.grad, atol=1e-6)


def test_one_process_needs_no_group(tiny_model) -> None:
    assert tensor_parallel.size() == 1 and tensor_parallel.rank() == 0
    assert isinstance(tiny_model.layers[0].attention.wq, torch.nn.Linear)
    with pytest.raises(ParallelError, match="torchrun"):
        tensor_parallel.init()
