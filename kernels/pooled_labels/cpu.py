"""CPU twin of `kernels.pooled_labels.reference`, compiled: one block after the other. Same letters, the same ids."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kernels.compiled import compiled
from kernels.pooled_labels import UNKNOWN


def pooled_labels(labels_BXYZ: Tensor, size: int, free: int) -> Tensor:
    """One label for each block, uint8 (..., X / size, Y / size, Z / size)."""
    *batch, x, y, z = labels_BXYZ.shape
    pooled_BXYZ = torch.empty((*batch, x // size, y // size, z // size), dtype=torch.uint8)
    _pool(labels_BXYZ.reshape(-1, x, y, z).numpy(), size, free, pooled_BXYZ.view(-1, *pooled_BXYZ.shape[-3:]).numpy())
    return pooled_BXYZ


@compiled(nogil=True)
def _pool(labels_BXYZ, size, free, pooled_BXYZ):  # type: ignore[no-untyped-def]
    batch, x_count, y_count, z_count = pooled_BXYZ.shape
    count = np.zeros(256, np.int64)
    for b in range(batch):
        for i in range(x_count):
            for j in range(y_count):
                for k in range(z_count):
                    x, y, z = i * size, j * size, k * size
                    empty, unknown = _nothing(labels_BXYZ[b], x, y, z, size, free)
                    if 20 * (empty + unknown) > 19 * size**3:
                        pooled_BXYZ[b, i, j, k] = free if empty > unknown else UNKNOWN
                    else:
                        pooled_BXYZ[b, i, j, k] = _most_frequent(labels_BXYZ[b], x, y, z, size, free, count)


@compiled(nogil=True, inline="always")
def _nothing(labels_XYZ, x_0, y_0, z_0, size, free):  # type: ignore[no-untyped-def]
    """How many voxels of a block are free, and of how many nothing is known."""
    empty, unknown = 0, 0
    for x in range(x_0, x_0 + size):
        for y in range(y_0, y_0 + size):
            for z in range(z_0, z_0 + size):
                empty += labels_XYZ[x, y, z] == free
                unknown += labels_XYZ[x, y, z] == UNKNOWN
    return empty, unknown


@compiled(nogil=True, inline="always")
def _most_frequent(labels_XYZ, x_0, y_0, z_0, size, free, count):  # type: ignore[no-untyped-def]
    """The most frequent occupied label of a block, of equals the lowest."""
    count[:] = 0
    most, frequent = 0, UNKNOWN
    for x in range(x_0, x_0 + size):
        for y in range(y_0, y_0 + size):
            for z in range(z_0, z_0 + size):
                label = labels_XYZ[x, y, z]
                if label not in (free, UNKNOWN):
                    count[label] += 1
                    if count[label] > most or (count[label] == most and label < frequent):
                        most, frequent = count[label], label
    return frequent
