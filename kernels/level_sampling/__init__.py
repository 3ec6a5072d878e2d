"""Level sampling (Liu et al. 2023, SparseBEV): samples of one image each, summed over its feature levels by weights.

Every group of channels has samples of its own. A sample is interpolated bilinearly on all levels of its image.

Letters: I images, H W rows and columns of a level, L levels, A groups, C channels of a group, M samples of a group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import twin


def sample_levels(maps: list[Tensor], image_AM: Tensor, uv_AM2: Tensor, weights_AML: Tensor) -> Tensor:
    """Sample, in the dtype of the maps; differentiable with respect to maps, positions and weights.

    Deterministic on every device.

    Args:
        maps: (I, H, W, A * C) of each level.
        image_AM: int64, which image is sampled.
        uv_AM2: column and row as fractions of the way from the centre of the first pixel (0) to that of the last (1),
            as grid_sample with align_corners=True has it. Beyond them samples fade to 0 within a pixel.
        weights_AML: of the levels.

    Returns:
        (A, M, C).
    """
    return _SampleLevels.apply(image_AM, uv_AM2, weights_AML, *maps)


class _SampleLevels(torch.autograd.Function):
    """Chooses the implementation by device; samples are worked out again for their gradients, not kept."""

    @staticmethod
    def forward(ctx: Any, image_AM: Tensor, uv_AM2: Tensor, weights_AML: Tensor, *maps: Tensor) -> Tensor:
        ctx.save_for_backward(image_AM, uv_AM2, weights_AML, *maps)
        return twin(__name__, uv_AM2.device).sample([*maps], image_AM, uv_AM2, weights_AML)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        image_AM, uv_AM2, weights_AML, *maps = ctx.saved_tensors
        gradients = twin(__name__, uv_AM2.device).gradients
        return None, *gradients(grad[0], maps, image_AM, uv_AM2, weights_AML)
