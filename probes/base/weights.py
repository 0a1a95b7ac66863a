"""Access to a model's weights, in the shapes that the formulas use. Knows nothing about captures."""

from torch import Tensor

from workbench.errors import HookError
from workbench.layers import tensor_parallel
from workbench.model import Transformer


def whole(model: Transformer) -> None:
    """Refuse a model that is split over several processes. Raises: HookError"""
    if tensor_parallel.size() > 1:
        raise HookError("this probe needs the complete weights; load the model in one process.")


def unembedding(model: Transformer) -> Tensor:
    """W_U; with tied weights, the embedding table. Shapes: -> [vocab, dim]; HookError for a split model"""
    whole(model)
    weight: Tensor = (model.tok_embeddings if model.output is None else model.output).weight  # type: ignore[assignment]
    return weight.detach()


def head_writer(model: Transformer, layer: int) -> Tensor:
    """W_O, split by head: it maps a head's output to the residual stream.

    Shapes: -> [dim, head, head_dim] float32; HookError for a split model
    """
    whole(model)
    weight: Tensor = model.layers[layer].attention.wo.weight
    return weight.detach().float().unflatten(1, (model.config.n_heads, -1))


def neuron_writer(model: Transformer, layer: int) -> Tensor:
    """w2: each column is the vector that a neuron writes. Shapes: -> [dim, ffn] float32; HookError for a split model"""
    whole(model)
    weight: Tensor = model.layers[layer].feed_forward.w2.weight
    return weight.detach().float()
