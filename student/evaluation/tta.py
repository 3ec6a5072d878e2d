"""Test-time augmentation: the mean of a network's answers to mirrored views of a keyframe (docs/formulas.md 5.4).

Mirrored images show the same world through mirrored intrinsics. In a mirrored world the sensors stay as they are and
the frame they are placed in is mirrored left to right, and with it the answer, which is mirrored back. Both are what
`distill.augment` does in training, on a batch of tensors.

Letters: B batch, X Y Z voxel axes, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill.augment import IN_EGO, ImageTransform, Transform, mirrored
from distill.errors import InputError
from distill.grids import VoxelGrid

# the axis from left to right
_SIDEWAYS = {"ego": 1, "lidar": 0}


@dataclass(frozen=True)
class View:
    """One way to look at a keyframe.

    Attributes:
        images: whether every image is mirrored left to right.
        world: whether the frame of the grid is.
    """

    images: bool
    world: bool

    def of(self, batch: dict[str, Any], grid: VoxelGrid) -> dict[str, Any]:
        """The batch as the network sees it in this view: all that it may read of it, no labels."""
        seen = {"images": batch["images"], "intrinsics": batch["intrinsics"]}
        if self.images:
            seen = _mirrored_images(batch["images"], batch["intrinsics"])
        in_ego = {key: batch[key] for key in IN_EGO if key in batch}
        if self.world:
            sideways = _SIDEWAYS[grid.frame]
            transform = Transform(images=(), flip_x=sideways == 0, flip_y=sideways == 1)
            signs_4 = torch.tensor(transform.signs, dtype=torch.float32, device=batch["images"].device)
            in_ego = {key: _each(key, value, signs_4) for key, value in in_ego.items()}
        return seen | in_ego

    def undone(self, voxels_BXYZC: Tensor, grid: VoxelGrid) -> Tensor:
        """The answer to this view in the world as it is."""
        return voxels_BXYZC.flip(1 + _SIDEWAYS[grid.frame]) if self.world else voxels_BXYZC


def average_views(network: nn.Module, batch: dict[str, Any], views: Sequence[View], grid: VoxelGrid) -> Tensor:
    """The mean over the views of the network's probabilities.

    Args:
        network: maps a batch to an `Occupancy`.
        batch: collated, on the network's device: `images`, `intrinsics`, `cam2ego` and, as far as the network reads
            them, `lidar2ego` and `points`.
        views: one or more.
        grid: of the answer.

    Returns:
        log-probabilities, float32 (B, X, Y, Z, C).

    Raises:
        InputError: the grid does not reach equally far to the left and to the right, so that its voxels cannot be
            mirrored.
    """
    _check(grid, views)
    total_BXYZC: Tensor | None = None
    for view in views:
        log_probs_BXYZC = network(view.of(batch, grid)).voxel_logits_BXYZC.float().log_softmax(-1)
        log_probs_BXYZC = view.undone(log_probs_BXYZC, grid)
        total_BXYZC = log_probs_BXYZC if total_BXYZC is None else torch.logaddexp(total_BXYZC, log_probs_BXYZC)
    assert total_BXYZC is not None
    return total_BXYZC - math.log(len(views))


def _mirrored_images(images: Tensor, intrinsics: Tensor) -> dict[str, Tensor]:
    """Images (..., 3, H, W) mirrored left to right, and the intrinsics (..., 3, 3) that fit them."""
    width = images.shape[-1]
    mirror_33 = torch.from_numpy(ImageTransform(1.0, (0.0, 0.0), flip=True).matrix(width)).to(intrinsics)
    return {"images": images.flip(-1), "intrinsics": mirror_33 @ intrinsics}


def _each(key: str, value: Any, signs_4: Tensor) -> Any:
    # scans differ in length: a batch holds them in a list
    return (
        [mirrored(key, item, signs_4) for item in value] if isinstance(value, list) else mirrored(key, value, signs_4)
    )


def _check(grid: VoxelGrid, views: Sequence[View]) -> None:
    sideways = _SIDEWAYS[grid.frame]
    if any(view.world for view in views) and abs(grid.lower[sideways] + grid.upper[sideways]) > 1e-6 * grid.voxel_size:
        raise InputError(
            f"tta: the grid {grid.name} reaches from {grid.lower[sideways]:g} to {grid.upper[sideways]:g} m sideways, "
            "so its voxels cannot be mirrored: use views with world=false, or tta=none"
        )
