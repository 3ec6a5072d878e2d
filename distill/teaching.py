"""What the teachers of a batch say about its voxels: decoded from stored codes, or rendered from stored Gaussians.

Letters: B batch, X Y Z voxel axes, C classes, V voxels and K columns of the whole batch, R rendered voxels. Voxels and
columns are named by their flat position in (B, X, Y, Z) and (B, X, Y).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from distill.bev import bev_log_probs
from distill.gaussians import Gaussians
from distill.grids import VoxelGrid
from distill.store.codec import LEAST_PROB


class Teaching(Protocol):
    """A teacher to whom a loss listens."""

    def covered(self, index: Tensor) -> Tensor:
        """Whether the teacher has modelled the voxels, bool in the shape of `index`."""
        ...

    def voxels(self, index_V: Tensor) -> Tensor:
        """Log-probabilities of voxels, float32 (V, C)."""
        ...

    def columns(self, index_K: Tensor) -> Tensor:
        """Log-probabilities of columns by the BEV rule, float32 (K, C)."""
        ...


def teaching(batch: dict[str, Any], needed_BXYZ: Tensor, grid: VoxelGrid, free: int) -> Teaching:
    """The teacher of a batch of `student.stream.TeacherStream`.

    Args:
        batch: `teacher_gaussians` and `lidar2ego`; or `teacher_voxel`, `teacher_table`, `teacher_covered` and
            `teacher_bev`.
        needed_BXYZ: bool, the voxels that will be asked for.
        grid: where they lie.
        free: id of the free class.
    """
    if "teacher_gaussians" in batch:
        return RenderedTeaching(batch, needed_BXYZ, grid, free)
    return StoredTeaching(batch)


class StoredTeaching:
    """Decodes the voxels that are asked for; see `Teaching`."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.codes_BXYZC: Tensor = batch["teacher_voxel"]
        self.table_B256: Tensor = batch["teacher_table"]
        self.covered_BXYZ: Tensor = batch["teacher_covered"]
        self.bev_BXYC: Tensor = batch["teacher_bev"]

    def covered(self, index: Tensor) -> Tensor:
        """See `Teaching`."""
        return self.covered_BXYZ.flatten()[index]

    def voxels(self, index_V: Tensor) -> Tensor:
        """See `Teaching`."""
        codes_VC = self.codes_BXYZC.flatten(0, -2).index_select(0, index_V).long()
        # stores may differ from frame to frame, and with them the tables
        frame_V = index_V // self.covered_BXYZ[0].numel()
        return self.table_B256.flatten()[codes_VC + 256 * frame_V.unsqueeze(1)]

    def columns(self, index_K: Tensor) -> Tensor:
        """See `Teaching`."""
        probs_KC = self.bev_BXYC.flatten(0, -2).index_select(0, index_K).float()
        return probs_KC.clamp_min(LEAST_PROB).log()  # frames that nobody teaches hold zeros


class RenderedTeaching:
    """Renders the needed voxels, once; see `Teaching`."""

    def __init__(self, batch: dict[str, Any], needed_BXYZ: Tensor, grid: VoxelGrid, free: int) -> None:
        self.free, self.height = free, grid.shape[2]
        rendered = [
            render(gaussians, grid, lidar2ego_44, needed_XYZ.flatten().nonzero().squeeze(1))
            for gaussians, lidar2ego_44, needed_XYZ in zip(
                batch["teacher_gaussians"], batch["lidar2ego"], needed_BXYZ, strict=True
            )
        ]
        self.log_probs_RC, self.covered_R = (torch.cat(parts) for parts in zip(*rendered, strict=True))
        # the row of each voxel; of no meaning for those not needed
        self.row_of = needed_BXYZ.flatten().cumsum(0) - 1

    def covered(self, index: Tensor) -> Tensor:
        """See `Teaching`."""
        return self.covered_R[self.row_of[index]]

    def voxels(self, index_V: Tensor) -> Tensor:
        """See `Teaching`."""
        return self.log_probs_RC[self.row_of[index_V]]

    def columns(self, index_K: Tensor) -> Tensor:
        """See `Teaching`."""
        index_KZ = voxels_of(index_K, self.height)
        log_probs_KZC = self.voxels(index_KZ.flatten()).view(*index_KZ.shape, -1)
        return bev_log_probs(log_probs_KZC, self.free, self.covered(index_KZ))


def voxels_of(index_K: Tensor, height: int) -> Tensor:
    """The voxels (K, Z) of columns."""
    return index_K.unsqueeze(1) * height + torch.arange(height, device=index_K.device)


def render(gaussians: Gaussians, grid: VoxelGrid, lidar2ego_44: Tensor, index_V: Tensor) -> tuple[Tensor, Tensor]:
    """What the Gaussians of one keyframe say about voxels of any grid.

    Args:
        gaussians: in the LIDAR_TOP frame.
        grid: the voxels.
        lidar2ego_44: LIDAR_TOP to the frame of the grid, mirrored if that is.
        index_V: int64, flat positions in (X, Y, Z).

    Returns:
        Log-probabilities, float32 (V, C), and whether the teacher has modelled the voxels, bool (V,); see
        `Gaussians.told`.
    """
    place_V3 = torch.stack(torch.unravel_index(index_V, grid.shape), 1).double() + 0.5
    points_V3 = place_V3 * grid.voxel_size + place_V3.new_tensor(grid.lower)
    ego2lidar_44 = torch.linalg.inv_ex(lidar2ego_44.double()).inverse
    points_V3 = (points_V3 @ ego2lidar_44[:3, :3].T + ego2lidar_44[:3, 3]).float()
    return gaussians.told(points_V3)
