"""Pooled labels in plain torch, on any device. Letters as in `kernels.pooled_labels`."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.pooled_labels import UNKNOWN


def pooled_labels(labels_BXYZ: Tensor, size: int, free: int) -> Tensor:
    """One label for each block, uint8 (..., X / size, Y / size, Z / size)."""
    block_BXYZV = labels_BXYZ
    for _ in "xyz":  # the axis that is cut goes to the end, and the next one is third from there
        block_BXYZV = block_BXYZV.unfold(-3, size, size)
    block_BXYZV = block_BXYZV.flatten(-3)

    def count(label: int) -> Tensor:
        return (block_BXYZV == label).sum(-1)

    empty_BXYZ, unknown_BXYZ = count(free), count(UNKNOWN)
    pooled_BXYZ = torch.where(empty_BXYZ > unknown_BXYZ, free, UNKNOWN)
    occupied_BXYZ = 20 * (empty_BXYZ + unknown_BXYZ) <= 19 * size**3
    most_BXYZ = torch.zeros_like(empty_BXYZ)
    for label in labels_BXYZ.unique().tolist():  # rising: of equals the first one stays
        if label not in (free, UNKNOWN):
            more_BXYZ = occupied_BXYZ & (count(label) > most_BXYZ)
            pooled_BXYZ = torch.where(more_BXYZ, label, pooled_BXYZ)
            most_BXYZ = torch.where(more_BXYZ, count(label), most_BXYZ)
    return pooled_BXYZ.to(torch.uint8)
