"""Stereo in time: at which depth an image and its predecessor look alike (docs/formulas.md 9.4).

Letters: B batch, N cameras, C channels, D depth bins, H W image cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.networks.flashocc.lift import turned, unprojected
from distill.networks.flashocc.rig import Rig

_GROUP = 4  # channels that are compared at once
_UNSEEN_COST = 5.0
_NEAR = 1e-3  # metres; nearer to the camera nothing is seen
_OUTSIDE = -2.0  # of the image, which spans [-1, 1]


@torch.no_grad()
def cost_volume(
    present_BNCHW: Tensor, past_BNCHW: Tensor, rig: Rig, past: Rig, pixels_DHW3: Tensor, image_size: tuple[int, int]
) -> Tensor:
    """How alike two images of each camera are at each depth, as probabilities over depths (B, N, D, H, W).

    Args:
        present_BNCHW, past_BNCHW: features of both.
        rig, past: cameras of both.
        pixels_DHW3: where depths are tried, see `lift.frustum`.
        image_size: (H, W) of the images, pixels.
    """
    with torch.autocast(present_BNCHW.device.type, enabled=False):
        grid_BNDHW2 = _places_in_past(rig, past, pixels_DHW3, image_size)
        # camera by camera: a warped group of channels is 88 times as large as an image
        told = (each.flatten(0, 1).float() for each in (present_BNCHW, past_BNCHW, grid_BNDHW2))
        found = [_compared(*camera) for camera in zip(*told, strict=True)]
        return torch.stack(found).unflatten(0, present_BNCHW.shape[:2])


def _places_in_past(rig: Rig, past: Rig, pixels_DHW3: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Where the past image shows the points, in [-1, 1] (B, N, D, H, W, 2)."""
    to_past_BN44 = (torch.linalg.inv(past.cam2common_BN44) @ rig.cam2common_BN44).float()
    points = unprojected(pixels_DHW3, rig, to_past_BN44)
    behind = points[..., 2:] < _NEAR
    points = turned(rig.intrinsics_BN33, points)
    places = points[..., :2] / points[..., 2:]
    places = (rig.image_rotation_BN33[:, :, None, None, None, :2, :2] @ places.unsqueeze(-1)).squeeze(-1)
    places = places + rig.image_shift_BN3[:, :, None, None, None, :2]
    height, width = image_size
    places = places / places.new_tensor([width - 1, height - 1]) * 2 - 1
    return places.masked_fill(behind, _OUTSIDE)


def _compared(present_CHW: Tensor, past_CHW: Tensor, grid_DHW2: Tensor) -> Tensor:
    """The cost volume of one camera (D, H, W)."""
    bins, height, width, _ = grid_DHW2.shape
    grid = grid_DHW2.reshape(1, bins * height, width, 2)
    cost_DHW = present_CHW.new_zeros(bins, height, width)
    for present_GHW, past_GHW in zip(present_CHW.split(_GROUP), past_CHW.split(_GROUP), strict=True):
        warped = F.grid_sample(past_GHW[None], grid, align_corners=True).view(len(past_GHW), bins, height, width)
        cost_DHW += (present_GHW.unsqueeze(1) - warped).abs().sum(0)
    # upstream's sign of a point that the past did not see: zero in the first channel of the last group
    cost_DHW += _UNSEEN_COST * (warped[0] == 0)
    return (-cost_DHW).softmax(0)
