"""Deformable aggregation (Lin et al. 2023, Sparse4D): each query gathers samples from all cameras and levels at once.

A query g projects P key points into N cameras and samples L feature levels there, bilinearly; every group of C / A
channels has its own weight for every sample, and all is summed. Few of the P * N projections fall into an image, and
only those cost anything.

Letters: G queries, P key points, N cameras, L levels, A groups of channels, C channels, H W rows and columns of a
level, M projections within an image.
"""

from __future__ import annotations

from torch import Tensor

from kernels.dispatch import twin


def deformable_aggregation(maps: list[Tensor], uv_GPN2: Tensor, weights_GPNLA: Tensor) -> Tensor:
    """Sum weighted bilinear samples per query, in float32; deterministic on every device, differentiable in all three.

    Args:
        maps: float32 (N, C, H, W) of each level.
        uv_GPN2: float32 column and row as fractions of the image: 0 is its left or upper edge, 1 its right or lower
            edge. Outside of the pixel centres the samples fade to 0 within a pixel, as grid_sample with
            align_corners=False has it; whatever is not finite counts as outside.
        weights_GPNLA: float32, finite; any strides.

    Returns:
        float32 (G, C).
    """
    return twin(__name__, uv_GPN2.device).aggregate(maps, uv_GPN2, weights_GPNLA)
