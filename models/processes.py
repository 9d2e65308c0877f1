"""The processes that torchrun started, or the only one there is."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor


class Processes:
    """This process among those that train together, by torch.distributed when it is running."""

    def __init__(self) -> None:
        together = _joined()
        self.count = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        self.is_first = self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes."""
        return self.sum(value) / self.count

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def first(self, value: float, device: torch.device) -> float:
        """The first process's number, so that clocks agree."""
        if self.count == 1:
            return value
        tensor = torch.tensor(value, device=device, dtype=torch.float64)
        dist.broadcast(tensor, 0)
        return float(tensor)

    def leave(self) -> None:
        """Wait for all processes, then part: nothing is shared any more."""
        if self.count > 1:
            dist.barrier()
        if _joined():
            dist.destroy_process_group()


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def join_processes(device: str) -> tuple[Processes, str]:
    """Join torchrun's processes if it started this one; returns them and this one's device."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if device.startswith("cuda"):
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Processes(), device
