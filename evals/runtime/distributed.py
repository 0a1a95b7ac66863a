"""The processes of one evaluation: which of them this is, and how they tell each other what they have.

`torchrun` starts them. Those that share a model's layers (tensor parallelism) are one team member and answer the same
questions; the members share the questions out. Without torchrun there is one process, and nothing here does anything.
Knows nothing of questions or models.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
# Members wait for the slowest, whose share of a long benchmark may take hours; the libraries' own limits are minutes.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Team:
    """This process's place: member `rank` of `size`. `first` is true in one process, which speaks and writes results;
    `keeps` in one process of each member, which writes down its answers; `reads` in one process of each machine;
    `away` on every machine but the first one's."""

    rank: int = 0
    size: int = 1
    is_main: bool = True
    writes_answers: bool = True
    reads_store: bool = True
    is_remote: bool = False
    group: Any = None

    def broadcast(self, make: Callable[[], T]) -> T:
        """What the first process makes, in every process."""
        if self.group is None:
            return make()
        import torch.distributed as dist

        told: list[Any] = [make() if self.is_main else None]
        dist.broadcast_object_list(told, src=0, group=self.group)
        made: T = told[0]
        return made

    def all_gather(self, own: T) -> list[T]:
        """What every process has, in every process."""
        if self.group is None:
            return [own]
        import torch.distributed as dist

        every: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(every, own, group=self.group)
        return every

    def close(self) -> None:
        """Part from the others at the end of a program."""
        if self.group is not None:
            from workbench.layers import tensor_parallel

            tensor_parallel.close()


ALONE = Team()


@cache
def join(tensor_parallel: int = 1) -> Team:
    """The team that torchrun started, each member `tensor_parallel` processes; one of one outside torchrun.

    Raises: ParallelError if the size does not divide the number of processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and tensor_parallel == 1:
        return ALONE
    import torch
    import torch.distributed as dist

    from workbench.layers import tensor_parallel as layers

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    layers.init(tensor_parallel)
    # Objects go by the processors, whatever the tensors take.
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    member, members = layers.data_parallel_rank()
    everyone = Team(group=group).all_gather(socket.gethostname())
    rank, own = dist.get_rank(), socket.gethostname()
    return Team(
        rank=member,
        size=members,
        is_main=rank == 0,
        writes_answers=layers.rank() == 0,
        reads_store=everyone.index(own) == rank,
        is_remote=own != everyone[0],
        group=group,
    )
