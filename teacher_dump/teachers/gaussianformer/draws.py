"""The random numbers of the lifter, made explicit: they depend on the seed and the keyframe, and on nothing else."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """Where a lifter takes its random numbers from; every call draws new ones."""

    def uniform(self, *shape: int) -> Tensor:
        """float32 in [0, 1)."""

    def normal(self, *shape: int) -> Tensor:
        """float32, mean 0, variance 1."""


class SeededDraws:
    """Draws of one keyframe, the same on every device and in every order of the keyframes.

    Args:
        seed: of the run.
        sample_token: of the keyframe.
    """

    def __init__(self, seed: int, sample_token: str) -> None:
        digest = hashlib.sha256(f"{seed} {sample_token}".encode()).digest()
        self.generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))

    def uniform(self, *shape: int) -> Tensor:
        """float32 in [0, 1), on the CPU."""
        return torch.rand(shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        """float32, mean 0, variance 1, on the CPU."""
        return torch.randn(shape, generator=self.generator)
