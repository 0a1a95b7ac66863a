"""Any number of stored shards load with any tensor-parallel size: two gloo processes give the logits of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.workbench.checkpoint.checkpoints import hf_model, make_config
from workbench.checkpoint import convert, load_model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_two_processes_load_their_parts(tmp_path: Path, project_root: Path, tied: bool) -> None:
    # Theta and context are those of the first Llama 3, because Meta's params.json has no key for the context.
    config = make_config(n_kv_heads=4, tied_output=tied, rope_theta=500_000.0, max_seq_len=8_192)
    hf_model(config).save_pretrained(tmp_path / "hf")
    sources = [tmp_path / "hf"]
    for shards, container in ((1, "pth"), (2, "safetensors"), (4, "pth")):
        sources.append(
            convert(sources[0], tmp_path / f"meta{shards}", layout="meta", shards=shards, container=container)
        )
    job, target = tmp_path / "job.json", tmp_path / "found.pt"
    job.write_text(json.dumps([str(source) for source in sources]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    worker = Path(__file__).with_name("parallel_worker.py")
    environment = {**os.environ, "PYTHONPATH": str(project_root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(worker), str(job), str(target)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = torch.load(target, weights_only=True)
    with torch.no_grad():
        expected = load_model(sources[0], device="cpu")(torch.tensor([[5, 9, 3, 7, 8]]))
    first = loaded[str(sources[0])]
    for source in sources:
        assert torch.allclose(loaded[str(source)]["logits"], expected, atol=1e-5), source.name
        assert torch.equal(loaded[str(source)]["logits"], first["logits"]), source.name
        assert loaded[str(source)]["parts"] == first["parts"]
    assert first["parts"]["tok_embeddings.weight"] == [64, 64]
    assert first["parts"]["layers.1.attention.wk.weight"] == [16, 64]
    assert first["parts"]["layers.1.attention.wo.weight"] == [64, 32]
    assert first["parts"]["layers.1.ffn_norm.weight"] == [64]
