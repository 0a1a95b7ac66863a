"""One of the processes of test_tensor_parallel.py, started by torchrun: rank 0 writes the split model's results."""

import sys

import torch

import workbench as wb
from workbench.layers import tensor_parallel

PROMPTS = [[5, 9, 3, 7, 1], [5, 9, 3, 8], [5, 9, 3], [2]]
SPLIT_ROWS = ("wq", "wk", "wv", "w1", "w3", "output", "tok_embeddings")
SPLIT_COLUMNS = ("wo", "w2")


def main(source: str, target: str) -> None:
    torch.set_num_threads(1)
    tensor_parallel.init(backend="gloo")
    stored = torch.load(source, weights_only=False)
    model = wb.Transformer(stored["config"])
    weights = {}
    for name, weight in stored["weights"].items():
        part = name.split(".")[-2]
        axis = 0 if part in SPLIT_ROWS else 1 if part in SPLIT_COLUMNS else None
        weights[name] = weight if axis is None else tensor_parallel.scatter(weight, axis).clone()
    model.load_state_dict(weights)
    assert (
        model.layers[0].attention.wq.weight.shape[0] * 2 == stored["weights"]["layers.0.attention.wq.weight"].shape[0]
    )
    tokens, results = stored["tokens"], {}
    with torch.no_grad():
        results["logits"], capture = model.run_with_capture(tokens, "*")
        results["capture"] = {name: capture[name] for name in capture.names}
        with model.intervene(wb.Ablate("L1H3"), wb.Scale("blocks.0.mlp.hook_post", 0.5)):
            results["ablated"] = model(tokens)
        with model.intervene(wb.Ablate("blocks.1.attn.hook_result", heads=[3])):
            results["ablated result"] = model(tokens)
        results["generated"] = wb.generate(model, [[5, 9, 3]], max_new_tokens=8)[0].tokens
        generations = wb.generate(model, PROMPTS, batch_size=2, temperature=1.0, max_new_tokens=6)
        results["batch"] = [generation.tokens for generation in generations]
        results["scored"] = wb.score(model, [([5, 9, 3], [7, 8])])
    loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    results["norm gradient"] = model.layers[0].attention_norm.weight.grad
    if tensor_parallel.rank() == 0:
        torch.save(results, target)
    tensor_parallel.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
