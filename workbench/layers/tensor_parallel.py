"""Tensor parallelism with fairscale; plain layers if there is one process. Only this module imports fairscale.

A layer is split as in Megatron and Meta's code: column-parallel wq, wk, wv, w1, w3 and output (rows of the weight),
row-parallel wo and w2 (columns of the weight), the embedding by vocabulary. One process needs no process group.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from workbench.errors import ParallelError
from workbench.layers.fast_linear import matmul_few_rows


def init(size: int | None = None, *, backend: str | None = None) -> None:
    """Join the processes that `torchrun` started into one tensor-parallel group.

    `size` is the tensor-parallel size (default: the world size). A second call does nothing.
    Raises: ParallelError outside `torchrun`, or when `size` does not divide the world.
    """
    from fairscale.nn.model_parallel import initialize as mpu

    if mpu.model_parallel_is_initialized():
        return
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            raise ParallelError("no process group; start the program with `torchrun --nproc-per-node N ...`.")
        dist.init_process_group(backend or ("nccl" if torch.cuda.is_available() else "gloo"))
    world = dist.get_world_size()
    size = world if size is None else size
    if size < 1 or world % size:
        raise ParallelError(f"tensor-parallel size {size} does not divide the {world} processes of this run.")
    with contextlib.redirect_stdout(sys.stderr):  # fairscale prints a line; stdout is for results
        mpu.initialize_model_parallel(size)


def close() -> None:
    """Leave the group at the end of a program; a process that exits without it may crash the others."""
    if dist.is_initialized():
        from fairscale.nn.model_parallel import initialize as mpu

        dist.barrier()
        mpu.destroy_model_parallel()
        dist.destroy_process_group()


def size() -> int:
    """Number of processes that share each layer; 1 without a process group."""
    if not dist.is_initialized():
        return 1
    from fairscale.nn.model_parallel import initialize as mpu

    return int(mpu.get_model_parallel_world_size()) if mpu.model_parallel_is_initialized() else 1


def rank() -> int:
    """Rank of this process in its tensor-parallel group."""
    if size() == 1:
        return 0
    from fairscale.nn.model_parallel import initialize as mpu

    return int(mpu.get_model_parallel_rank())


def data_parallel_rank() -> tuple[int, int]:
    """Index of this process's tensor-parallel group, and the number of groups."""
    from fairscale.nn.model_parallel import initialize as mpu

    return int(mpu.get_data_parallel_rank()), int(mpu.get_data_parallel_world_size())


def shard_size(count: int, what: str) -> int:
    """Number of items in one shard of `count` items. Raises: ParallelError if the shards would be unequal."""
    if count % size():
        raise ParallelError(f"{what} ({count}) cannot be split over {size()} processes; use a size that divides it.")
    return count // size()


def column(in_features: int, out_features: int, *, gather: bool = False) -> nn.Module:
    """A linear layer whose outputs are split over the processes; with `gather` each process gets all outputs."""
    if size() == 1:
        return _Linear(in_features, out_features, bias=False)
    from fairscale.nn.model_parallel.layers import ColumnParallelLinear

    return _on_default_device(
        lambda: ColumnParallelLinear(
            in_features, out_features, bias=False, gather_output=gather, init_method=_keep_weight
        )
    )


def row(in_features: int, out_features: int) -> nn.Module:
    """A linear layer whose inputs are split over the processes; its output is summed over them."""
    if size() == 1:
        return _Linear(in_features, out_features, bias=False)
    from fairscale.nn.model_parallel.layers import RowParallelLinear

    return _on_default_device(
        lambda: RowParallelLinear(
            in_features, out_features, bias=False, input_is_parallel=True, init_method=_keep_weight
        )
    )


def embedding(vocab_size: int, dim: int) -> nn.Module:
    """A token embedding split by vocabulary."""
    if size() == 1:
        return _Embedding(vocab_size, dim)
    from fairscale.nn.model_parallel.layers import VocabParallelEmbedding

    return _on_default_device(lambda: VocabParallelEmbedding(vocab_size, dim, init_method=_keep_weight))


def gather(x: Tensor, axis: int) -> Tensor:
    """The complete tensor from shards along `axis`, one per process.

    Shapes: [..., n / size, ...] -> [..., n, ...]
    """
    if size() == 1:
        return x
    from fairscale.nn.model_parallel.mappings import gather_from_model_parallel_region

    whole: Tensor = gather_from_model_parallel_region(x.movedim(axis, -1).contiguous())
    return whole.movedim(-1, axis)


def scatter(x: Tensor, axis: int) -> Tensor:
    """This process's shard of a complete tensor: the inverse of `gather`."""
    if size() == 1:
        return x
    return x.chunk(size(), dim=axis)[rank()]


def all_reduce(x: Tensor) -> Tensor:
    """The sum of x over the processes, on every process."""
    if size() == 1:
        return x
    from fairscale.nn.model_parallel.mappings import reduce_from_model_parallel_region

    summed: Tensor = reduce_from_model_parallel_region(x)
    return summed


def broadcast(x: Tensor) -> Tensor:
    """The first process's x on every process, for decisions that must agree although sums may differ by rounding."""
    if size() == 1:
        return x
    from fairscale.nn.model_parallel import initialize as mpu

    dist.broadcast(x, mpu.get_model_parallel_src_rank(), group=mpu.get_model_parallel_group())
    return x


def copy_to(x: Tensor) -> Tensor:
    """x itself; its gradient is summed over the processes (the input of a column-parallel layer)."""
    if size() == 1:
        return x
    from fairscale.nn.model_parallel.mappings import copy_to_model_parallel_region

    copied: Tensor = copy_to_model_parallel_region(x)
    return copied


def _on_default_device(make: Callable[[], nn.Module]) -> nn.Module:
    """Move weights to the default device, as nn.Linear does; fairscale always allocates them on the CPU."""
    device = torch.get_default_device()
    with torch.device("cpu"):
        layer = make()
    if device.type != "cpu":
        layer.weight = nn.Parameter(torch.empty_like(layer.weight, device=device))  # type: ignore[arg-type]
    return layer


class _Embedding(nn.Embedding):
    """An embedding without random initialisation on the meta device, for which torch would load its compiler."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class _Linear(nn.Linear):
    """A linear layer without random initialisation on the meta device, which is slower than mapping a file."""

    def forward(self, x: Tensor) -> Tensor:
        return matmul_few_rows(x, self.weight)

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


def _keep_weight(weight: Tensor) -> Tensor:
    """No initialisation: a checkpoint or the trainer fills the weight."""
    return weight
