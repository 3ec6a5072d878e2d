"""Test-time augmentation: the mean of a network's answers to mirrored views of a keyframe (docs/formulas.md 5.4).

Mirrored images show the same world through mirrored intrinsics. In a mirrored world the sensors stay as they are and
the frame they are placed in is mirrored left to right, and with it the answer, which is mirrored back. Both are what
training does by chance (`distill.augment`).

Letters: B batch, X Y Z voxel axes, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from distill.augment import ImageTransform
from distill.errors import InputError
from distill.frame import Frame, Mirror
from distill.grids import VoxelGrid
from distill.networks.prediction import Occupancy

# the axis from left to right
_SIDEWAYS = {"ego": 1, "lidar": 0}
# what no network may read of a frame
_UNSEEN: dict[str, Any] = dict.fromkeys(
    ("token", "scene", "semantics", "mask_camera", "mask_lidar", "labelled", "depth", "teachers")
)


@dataclass(frozen=True)
class View:
    """One way to look at a keyframe.

    Attributes:
        images: whether every image is mirrored left to right.
        world: whether the frame of the grid is.
    """

    images: bool
    world: bool

    def of(self, frame: Frame, grid: VoxelGrid) -> Frame:
        """The batch as the network sees it in this view: all that it may read of it, no labels."""
        seen = replace(frame, **_UNSEEN)
        seen = _with_mirrored_images(seen) if self.images else seen
        sideways = _SIDEWAYS[grid.frame]
        return seen.mirrored(Mirror(x=sideways == 0, y=sideways == 1)) if self.world else seen

    def undone(self, voxels_BXYZC: Tensor, grid: VoxelGrid) -> Tensor:
        """The answer to this view in the world as it is."""
        return voxels_BXYZC.flip(1 + _SIDEWAYS[grid.frame]) if self.world else voxels_BXYZC


def average_views(
    network: Callable[[Frame], Occupancy], frame: Frame, views: Sequence[View], grid: VoxelGrid
) -> Tensor:
    """The mean over the views of the network's probabilities.

    Args:
        network: maps a frame to an `Occupancy`.
        frame: a batch on the network's device.
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
        log_probs_BXYZC = network(view.of(frame, grid)).voxel_logits_BXYZC.float().log_softmax(-1)
        log_probs_BXYZC = view.undone(log_probs_BXYZC, grid)
        total_BXYZC = log_probs_BXYZC if total_BXYZC is None else torch.logaddexp(total_BXYZC, log_probs_BXYZC)
    assert total_BXYZC is not None
    return total_BXYZC - math.log(len(views))


def _with_mirrored_images(frame: Frame) -> Frame:
    """With every image mirrored left to right, and the intrinsics that fit them; the past, too."""
    mirror_33 = torch.from_numpy(ImageTransform(1.0, (0.0, 0.0), flip=True).upright(frame.images.shape[-1]))
    return replace(
        frame.seen_through(mirror_33.to(frame.intrinsics)),
        images=frame.images.flip(-1),
        past=frame.past and tuple(map(_with_mirrored_images, frame.past)),
    )


def _check(grid: VoxelGrid, views: Sequence[View]) -> None:
    sideways = _SIDEWAYS[grid.frame]
    if any(view.world for view in views) and abs(grid.lower[sideways] + grid.upper[sideways]) > 1e-6 * grid.voxel_size:
        raise InputError(
            f"tta: the grid {grid.name} reaches from {grid.lower[sideways]:g} to {grid.upper[sideways]:g} m sideways, "
            "so its voxels cannot be mirrored: use views with world=false, or tta=none"
        )
