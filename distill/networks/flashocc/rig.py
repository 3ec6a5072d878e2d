"""The cameras of a frame as FlashOcc is told them: every step of the calibration by itself, in float32.

Points land in the cells of upstream only if they are rounded as there: poses are chained in float64 from float32
matrices, and everything behind them is float32 (docs/formulas.md 9.3).

Letters: B batch, N cameras.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from distill.errors import InputError
from distill.frame import Calibration, Frame


class Rig(NamedTuple):
    """Cameras at one time.

    Attributes:
        intrinsics_BN33: of the images as recorded.
        image_rotation_BN33: the linear part of pixels as recorded -> pixels of the input, 1 for the depth.
        image_shift_BN3: the rest of it, pixels; 0 for the depth.
        cam2common_BN44: float64, to a frame that all times have in common.
        cam2key_BN44: to the frame of the voxels as recorded.
        world_B33: what was done to that frame: mirrored or not.
    """

    intrinsics_BN33: Tensor
    image_rotation_BN33: Tensor
    image_shift_BN3: Tensor
    cam2common_BN44: Tensor
    cam2key_BN44: Tensor
    world_B33: Tensor


def rigs_of(frame: Frame, key: str | None) -> list[Rig]:
    """The rig of a batch, and behind it those of its past.

    Args:
        frame: a batch with its calibration.
        key: see `Convention`.

    Raises:
        InputError: it has no calibration, or no such camera.
    """
    calibration = _calibration(frame)
    times = [frame, *(frame.past or ())]
    if key is None:
        world_B44 = calibration.world.double()  # its own inverse
        poses = [world_B44.unsqueeze(1) @ _present(each) @ each.cam2ego.double() for each in times]
        return [_rig(_calibration(each), pose, pose) for each, pose in zip(times, poses, strict=True)]
    global2key_B144 = torch.linalg.inv(calibration.ego2global[:, [key_camera(frame, key)]].double())
    rigs = []
    for each in map(_calibration, times):
        own2global_BN44, cam2own_BN44 = each.ego2global.double(), each.cam2ego.double()
        rigs.append(_rig(each, own2global_BN44 @ cam2own_BN44, global2key_B144 @ own2global_BN44 @ cam2own_BN44))
    return rigs


def key_camera(frame: Frame, key: str | None) -> int:
    """The place of the camera among a batch's that `Convention.key` names; without one the first.

    Raises:
        InputError: there is none of this name.
    """
    channels = frame.channels[0]
    if key is None:
        return 0
    if key not in channels:
        raise InputError(
            f"the weights want voxels in the ego frame of {key}, and the cameras are {', '.join(channels)}: "
            "train on this rig with student.network.convention=own"
        )
    return int(channels.index(key))


def _present(frame: Frame) -> Tensor:
    """The frame's ego frame to the present one's, float64 (B, 1, 4, 4)."""
    if frame.ego2present is None:
        return torch.eye(4, dtype=torch.float64, device=frame.cam2ego.device).view(1, 1, 4, 4)
    return frame.ego2present.double().unsqueeze(1)


def _rig(calibration: Calibration, cam2common_BN44: Tensor, cam2key_BN44: Tensor) -> Rig:
    rotation_BN33 = calibration.source2image.clone()
    rotation_BN33[..., :2, 2] = 0
    shift_BN3 = calibration.source2image[..., 2].clone()
    shift_BN3[..., 2] = 0
    world_B33 = calibration.world[:, :3, :3]
    return Rig(calibration.intrinsics, rotation_BN33, shift_BN3, cam2common_BN44, cam2key_BN44.float(), world_B33)


def _calibration(frame: Frame) -> Calibration:
    if frame.calibration is None:
        raise InputError("FlashOcc is told its cameras part by part: its inputs want calibration=true")
    return frame.calibration
