"""Which of the processes started by torchrun this one is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from distill.errors import InputError


def rank() -> int:
    """This process's number, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_enough(samples: int, what: str) -> None:
    """Raise InputError when some rank would have nothing to do.

    Raises:
        InputError: there are more ranks than samples.
    """
    if samples < world_size():
        raise InputError(
            f"{world_size()} ranks for {samples} {what}: start torchrun with --nproc-per-node {max(samples, 1)} or less"
        )


def device(name: str) -> torch.device:
    """The device of this rank.

    Args:
        name: "cpu", "cuda" (each rank takes the next GPU), "cuda:N" (GPU number N), or "auto" ("cuda" if there is any).

    Raises:
        InputError: there is no such GPU, or several ranks would share it.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    _, _, number = name.partition(":")
    if count == 0 or (number and int(number) >= count):
        raise InputError(
            f"device={name}, but torch sees {count or 'no'} GPU{'s' * (count > 1)}: use device=auto or cpu"
        )
    if number and world_size() > 1:
        raise InputError(f"device={name} with {world_size()} ranks: use device=cuda, each rank takes a GPU of its own")
    return torch.device("cuda", int(number or os.environ.get("LOCAL_RANK", "0")) % count)


def mean(counts: torch.Tensor) -> torch.Tensor:
    """The mean over all ranks, of equal shape on each: what sums are divided by to be those of the global batch.

    As the ranks' gradients are averaged, sum / mean(count) is the sum over all of them by the count over all of them.
    """
    if not dist.is_initialized():
        return counts
    counts = counts.clone()
    dist.all_reduce(counts)
    return counts / dist.get_world_size()


def highest(number: int) -> int:
    """The highest of the numbers of all ranks. No GPU waits for it."""
    if not dist.is_initialized():
        return number
    numbers = torch.tensor(number)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers)


@contextmanager
def process_group(on: torch.device) -> Iterator[None]:
    """Join the ranks for collective operations: NCCL for what is on GPUs, gloo for the rest; nothing if alone."""
    if world_size() == 1:
        yield
        return
    if on.type == "cuda":
        torch.cuda.set_device(on)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
