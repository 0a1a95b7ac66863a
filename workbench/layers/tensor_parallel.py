"""Tensor parallelism: every import of fairscale, and plain layers when the world is one process.

A layer is split as Megatron and Meta split it: column-parallel wq, wk, wv, w1, w3 and output (rows of the weight),
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

    `size` is the tensor-parallel size (default: the whole world). Does nothing when it has been done.
    Raises: ParallelError outside `torchrun`, or when `size` does not divide the world.
    """
    from fairscale.nn.model_parallel import initialize as mpu

    if mpu.model_parallel_is_initialized():
        return
    if not dist.is_initialized():
        if "RANK" not in os.environ:
            raise ParallelError("no process group: start with `torchrun --nproc-per-node N ...`.")
        dist.init_process_group(backend or ("nccl" if torch.cuda.is_available() else "gloo"))
    world = dist.get_world_size()
    size = world if size is None else size
    if size < 1 or world % size:
        raise ParallelError(f"tensor-parallel size {size} does not divide the {world} processes of this run.")
    with contextlib.redirect_stdout(sys.stderr):  # where it says so, as progress does; stdout is for results
        mpu.initialize_model_parallel(size)


def close() -> None:
    """Leave the group at the end of a program: a process that only exits may take the others down with it."""
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
    """This process's place in its tensor-parallel group."""
    if size() == 1:
        return 0
    from fairscale.nn.model_parallel import initialize as mpu

    return int(mpu.get_model_parallel_rank())


def data_parallel_rank() -> tuple[int, int]:
    """Which of the tensor-parallel groups this process is in, and how many groups there are."""
    from fairscale.nn.model_parallel import initialize as mpu

    return int(mpu.get_data_parallel_rank()), int(mpu.get_data_parallel_world_size())


def shard_size(count: int, what: str) -> int:
    """This process's part of `count` equal things. Raises: ParallelError if they cannot be shared out equally."""
    if count % size():
        raise ParallelError(f"{what} ({count}) cannot be split over {size()} processes; use a size that divides it.")
    return count // size()


def column(in_features: int, out_features: int, *, gather: bool = False) -> nn.Module:
    """A linear layer whose outputs are split over the processes; with `gather` every process gets all of them."""
    if size() == 1:
        return _Linear(in_features, out_features, bias=False)
    from fairscale.nn.model_parallel.layers import ColumnParallelLinear

    return _on_default_device(
        lambda: ColumnParallelLinear(in_features, out_features, bias=False, gather_output=gather, init_method=_leave)
    )


def row(in_features: int, out_features: int) -> nn.Module:
    """A linear layer whose inputs are split over the processes; its output is summed over them."""
    if size() == 1:
        return _Linear(in_features, out_features, bias=False)
    from fairscale.nn.model_parallel.layers import RowParallelLinear

    return _on_default_device(
        lambda: RowParallelLinear(in_features, out_features, bias=False, input_is_parallel=True, init_method=_leave)
    )


def embedding(vocab_size: int, dim: int) -> nn.Module:
    """A token embedding split by vocabulary."""
    if size() == 1:
        return _Embedding(vocab_size, dim)
    from fairscale.nn.model_parallel.layers import VocabParallelEmbedding

    return _on_default_device(lambda: VocabParallelEmbedding(vocab_size, dim, init_method=_leave))


def gather(x: Tensor, axis: int) -> Tensor:
    """The whole of a tensor whose `axis` is split over the processes.

    Shapes: [..., n / size, ...] -> [..., n, ...]
    """
    if size() == 1:
        return x
    from fairscale.nn.model_parallel.mappings import gather_from_model_parallel_region

    whole: Tensor = gather_from_model_parallel_region(x.movedim(axis, -1).contiguous())
    return whole.movedim(-1, axis)


def scatter(x: Tensor, axis: int) -> Tensor:
    """This process's slice of a whole tensor: the inverse of `gather`."""
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
    """The first process's x, on every process: what they must decide alike, whatever the last bit of a sum was."""
    if size() == 1:
        return x
    from fairscale.nn.model_parallel import initialize as mpu

    dist.broadcast(x, mpu.get_model_parallel_src_rank(), group=mpu.get_model_parallel_group())
    return x


def copy_to(x: Tensor) -> Tensor:
    """x itself; its gradient is summed over the processes (the entry of a column-parallel product)."""
    if size() == 1:
        return x
    from fairscale.nn.model_parallel.mappings import copy_to_model_parallel_region

    copied: Tensor = copy_to_model_parallel_region(x)
    return copied


def _on_default_device(make: Callable[[], nn.Module]) -> nn.Module:
    """fairscale allocates its weights on the CPU whatever the default device is: put them where nn.Linear would."""
    device = torch.get_default_device()
    with torch.device("cpu"):
        layer = make()
    if device.type != "cpu":
        layer.weight = nn.Parameter(torch.empty_like(layer.weight, device=device))  # type: ignore[arg-type]
    return layer


class _Embedding(nn.Embedding):
    """An embedding that draws no random weights without memory: torch loads its compiler (seconds) to do so."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class _Linear(nn.Linear):
    """A linear layer that draws no random weights without memory, which takes torch longer than to map a file."""

    def forward(self, x: Tensor) -> Tensor:
        return matmul_few_rows(x, self.weight)

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


def _leave(weight: Tensor) -> Tensor:
    """Leave the weight as it was allocated: a checkpoint or the trainer fills it."""
    return weight
