"""One of the processes of test_parallel.py, started by torchrun: each loads its own shard."""

import json
import sys
from pathlib import Path

import torch

import workbench as wb
from workbench.layers import tensor_parallel


def main(job: str, target: str) -> None:
    torch.set_num_threads(1)
    tensor_parallel.init(backend="gloo")
    tokens = torch.tensor([[5, 9, 3, 7, 8]])
    shards = {}
    for source in json.loads(Path(job).read_text()):
        with torch.no_grad():
            model = wb.load_model(source, device="cpu")
            parts = {name: list(weight.shape) for name, weight in model.named_parameters()}
            shards[source] = {"logits": model(tokens), "parts": parts}
    if tensor_parallel.rank() == 0:
        torch.save(shards, target)
    tensor_parallel.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
