"""The processes of one evaluation: ranks and collective operations.

`torchrun` starts them. Processes that share a model's layers (tensor parallelism) are one team member and answer the
same questions; the questions are distributed over the members. Without torchrun there is one process, and all
operations return at once. Knows nothing of questions or models.
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
# Members wait for the slowest, which may need hours for its part of a long benchmark; the default limits are minutes.
COLLECTIVE_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Team:
    """This process's place: member `rank` of `size`.

    `is_main` is true in one process, which prints and writes results; `writes_answers` in one process of each member;
    `reads_store` in one process of each machine; `is_remote` on every machine except the first.
    """

    rank: int = 0
    size: int = 1
    is_main: bool = True
    writes_answers: bool = True
    reads_store: bool = True
    is_remote: bool = False
    group: Any = None

    def broadcast(self, make: Callable[[], T]) -> T:
        """The value that `make` returns in the main process, in every process."""
        if self.group is None:
            return make()
        import torch.distributed as dist

        objects: list[Any] = [make() if self.is_main else None]
        dist.broadcast_object_list(objects, src=0, group=self.group)
        value: T = objects[0]
        return value

    def all_gather(self, value: T) -> list[T]:
        """The values of all processes, in every process."""
        if self.group is None:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values

    def close(self) -> None:
        """Leave the process group at the end of a program."""
        if self.group is not None:
            from workbench.layers import tensor_parallel

            tensor_parallel.close()


ALONE = Team()


@cache
def join(tensor_parallel: int = 1) -> Team:
    """The team that torchrun started, with `tensor_parallel` processes per member; a team of one without torchrun.

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
    # Objects are sent with gloo on the CPU, whatever backend the tensors use.
    group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
    member, members = layers.data_parallel_rank()
    hosts = Team(group=group).all_gather(socket.gethostname())
    rank, host = dist.get_rank(), socket.gethostname()
    return Team(
        rank=member,
        size=members,
        is_main=rank == 0,
        writes_answers=layers.rank() == 0,
        reads_store=hosts.index(host) == rank,
        is_remote=host != hosts[0],
        group=group,
    )
