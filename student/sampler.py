"""The order in which frames are trained on, resumable at any step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class ResumableSampler(Sampler[list[int]]):
    """Batches of one rank: a permutation that depends on (seed, epoch) alone, from a given step on.

    Every rank gets the same number of batches; the frames that do not fill a last global batch are left out of
    that epoch.

    Args:
        count: number of frames.
        batch_size: frames per step over all ranks; a multiple of `world_size`.
        seed: of the permutation.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_step = 0

    def start_at(self, epoch: int, step: int) -> None:
        """Let the next iteration be `epoch` from its `step`-th batch on."""
        self.epoch = epoch
        self.first_step = step

    @property
    def steps_per_epoch(self) -> int:
        """Batches in a whole epoch."""
        return self.count // self.batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        for step in range(self.first_step, self.steps_per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield batch[self.rank :: self.world_size]
