"""What FlashOcc's weights take for granted and no shape tells (docs/formulas.md 9.2)."""

from __future__ import annotations

from typing import NamedTuple

from distill.errors import InputError
from distill.grids import VoxelGrid


class Convention(NamedTuple):
    """What a network's weights are used to.

    Attributes:
        key: the camera in whose ego frame, at the time of its exposure, the voxels lie; None: in the frame of the grid.
        bgr: whether images come as B, G, R, normalised by the numbers of R, G, B.
        truncates: whether cells are found by truncation towards zero instead of by floor: those of index 0 are twice as
            large, and the one slab in z reaches down to -7.4 m.
        corners: whether image cells lie on linspace(0, W - 1) instead of at their centres.
    """

    key: str | None
    bgr: bool
    truncates: bool
    corners: bool


_CONVENTIONS = {
    "own": Convention(key=None, bgr=False, truncates=False, corners=False),
    "upstream": Convention(key="CAM_FRONT_LEFT", bgr=True, truncates=True, corners=True),
}


def convention_named(name: str, grid: VoxelGrid) -> Convention:
    """The convention of this name.

    Raises:
        InputError: there is none, or its voxels lie in another frame than the grid.
    """
    if name not in _CONVENTIONS:
        raise InputError(f"student.network.convention={name}: choose one of {', '.join(_CONVENTIONS)}")
    convention = _CONVENTIONS[name]
    if convention.key is not None and grid.frame != "ego":
        raise InputError(
            f"the grid {grid.name} lies in the {grid.frame} frame, upstream's FlashOcc predicts in the ego frame: "
            "use grid=occ3d, or train with student.network.convention=own"
        )
    return convention
