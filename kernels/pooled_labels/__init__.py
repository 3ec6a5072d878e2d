"""Voxel labels at a coarser resolution, by the rule of MonoOcc (docs/formulas.md 4.18).

Letters: B whatever comes before, X Y Z voxel axes.
"""

from __future__ import annotations

from torch import Tensor

from kernels.dispatch import twin

UNKNOWN = 255  # the label of voxels, and of blocks, of which nothing is known


def pooled_labels(labels_BXYZ: Tensor, size: int, free: int) -> Tensor:
    """One label for each block of `size` ^ 3 voxels; the twins return the same ids.

    Args:
        labels_BXYZ: uint8 class ids, `UNKNOWN` where nothing is known; of any number of leading axes.
        size: voxels along the edge of a block.
        free: id of the free class.

    Returns:
        uint8 (..., X / size, Y / size, Z / size).

    Raises:
        ValueError: the blocks do not fill the grid.
    """
    if any(count % size for count in labels_BXYZ.shape[-3:]):
        raise ValueError(f"blocks of {size} ^ 3 voxels do not fill {tuple(labels_BXYZ.shape[-3:])}")
    return twin(__name__, labels_BXYZ.device).pooled_labels(labels_BXYZ, size, free)
