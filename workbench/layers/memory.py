"""Memory of a device: how much is free, and whether an error means that there was too little."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workbench.errors import WorkbenchError


def free_memory(device: torch.device) -> int:
    """Bytes free for new tensors on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8 << 30


def out_of_memory(error: Exception) -> bool:
    """Whether the error means that a device, or the machine, ran out of memory."""
    cpu_messages = ("not enough memory", "can't allocate memory")  # the CPU's allocator has no exception of its own
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in cpu_messages)


def too_little_memory(shape: Sequence[int], device: torch.device, advice: str) -> WorkbenchError:
    """The error for a run of tokens [batch, pos] for which memory did not suffice."""
    batch, length = shape
    return WorkbenchError(
        f"memory ran out on {device} in a run of {batch:,} x {length:,} tokens. "
        f"Shorten the text or the batch, use a smaller dtype or model, or {advice}."
    )
