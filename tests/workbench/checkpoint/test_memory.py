"""Loading takes at most 1.2 times the memory of the weights, measured in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workbench.checkpoint import convert
from workbench.checkpoint.tensors import tensor_specs
from workbench.checkpoint.write import Entry, write_safetensors
from workbench.config import ModelConfig

CONFIG = ModelConfig(dim=1024, n_layers=8, n_heads=16, n_kv_heads=16, ffn_dim=2816, vocab_size=8192, tied_output=False)

# The peak is that of the kernel's own count, set back after the imports; mapped pages are part of it.
MEASURE = """
import sys
import workbench as wb
from pathlib import Path

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model = wb.load_model(sys.argv[1], device="cpu", dtype=sys.argv[2])
weights = sum(w.nbytes for w in model.parameters())
print(status("VmHWM") - before, weights)
"""


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 250 MB of bfloat16 in Hugging Face's layout, where the rows of every wq and wk must be moved."""
    path = tmp_path_factory.mktemp("large")
    generator = torch.Generator().manual_seed(0)
    entries = [
        Entry(
            spec.hf_name,
            torch.bfloat16,
            spec.shape,
            lambda s=spec: torch.rand(s.shape, generator=generator).bfloat16(),
        )
        for spec in tensor_specs(CONFIG)
    ]
    write_safetensors(path / "model.safetensors", entries)
    (path / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    return path


def peak_over_weights(path: Path, dtype: str, root: Path) -> float:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the kernel of this system has no resettable peak (/proc/self/clear_refs)")
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), dtype],
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak, weights = map(int, done.stdout.split())
    assert weights == CONFIG.n_params * (4 if dtype == "float32" else 2)
    print(f"{path.name} {dtype}: {peak / weights:.3f}")
    return peak / weights


@pytest.mark.parametrize("dtype", ["auto", "float16", "float32"])
def test_hugging_face_layout(hf: Path, project_root: Path, dtype: str) -> None:
    assert 0.9 < peak_over_weights(hf, dtype, project_root) <= 1.2


@pytest.mark.parametrize(("shards", "container"), [(1, "pth"), (2, "pth"), (2, "safetensors")])
def test_meta_layout(hf: Path, tmp_path: Path, project_root: Path, shards: int, container: str) -> None:
    meta = convert(hf, tmp_path / "meta", layout="meta", shards=shards, container=container)  # type: ignore[arg-type]
    assert 0.9 < peak_over_weights(meta, "auto", project_root) <= 1.2
