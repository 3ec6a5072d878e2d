"""Triton twin of `kernels.ray_cast.reference`; same letters, the same bits: it only adds and compares float64."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.ray_cast.borders import MOST_VOXELS, first_borders

_RAYS = 128  # rays of one program; they stop together


def walk(occupied_SXYZ: Tensor, origins_R3: Tensor, ends_R3: Tensor) -> tuple[Tensor, Tensor]:
    """Voxel and distance where each ray ends, int32 and float32 (S, R)."""
    (volumes, *shape), rays = occupied_SXYZ.shape, len(origins_R3)
    end_SR = torch.empty(volumes, rays, dtype=torch.int32, device=occupied_SXYZ.device)
    distance_SR = torch.empty(volumes, rays, dtype=torch.float32, device=occupied_SXYZ.device)
    _walk[(triton.cdiv(rays, _RAYS), volumes)](
        occupied_SXYZ.contiguous().view(torch.uint8),
        *(tensor.contiguous() for tensor in first_borders(origins_R3, ends_R3)),
        end_SR,
        distance_SR,
        rays,
        *shape,
        MOST_VOXELS,
        _RAYS,
    )
    return end_SR, distance_SR


@triton.jit
def _walk(
    occupied,
    voxel,
    step,
    border,
    spacing,
    end,
    distance,
    rays,
    x_count,
    y_count,
    z_count,
    MOST_VOXELS: tl.constexpr,
    RAYS: tl.constexpr,
):
    r = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    volume = tl.program_id(1)
    going = r < rays
    x = tl.load(voxel + 3 * r, mask=going, other=0)
    y = tl.load(voxel + 3 * r + 1, mask=going, other=0)
    z = tl.load(voxel + 3 * r + 2, mask=going, other=0)
    x_step = tl.load(step + 3 * r, mask=going, other=0)
    y_step = tl.load(step + 3 * r + 1, mask=going, other=0)
    z_step = tl.load(step + 3 * r + 2, mask=going, other=0)
    x_border = tl.load(border + 3 * r, mask=going, other=0.0)
    y_border = tl.load(border + 3 * r + 1, mask=going, other=0.0)
    z_border = tl.load(border + 3 * r + 2, mask=going, other=0.0)
    x_spacing = tl.load(spacing + 3 * r, mask=going, other=0.0)
    y_spacing = tl.load(spacing + 3 * r + 1, mask=going, other=0.0)
    z_spacing = tl.load(spacing + 3 * r + 2, mask=going, other=0.0)
    first = volume.to(tl.int64) * x_count * y_count * z_count
    last = tl.zeros((RAYS,), dtype=tl.int32)
    length = tl.full((RAYS,), -1.0, dtype=tl.float64)
    visited = 0
    while (visited < MOST_VOXELS) & (tl.max(going.to(tl.int32), axis=0) > 0):
        inside = (x >= 0) & (x < x_count) & (y >= 0) & (y < y_count) & (z >= 0) & (z < z_count)
        here = going & inside
        last = tl.where(here, (x * y_count + y) * z_count + z, last)
        length = tl.where(here, tl.minimum(tl.minimum(x_border, y_border), z_border), length)
        hit = tl.load(occupied + first + last, mask=here, other=0) != 0
        beyond = ((x_step < 0) & (x < 0)) | ((x_step > 0) & (x >= x_count))
        beyond = beyond | ((y_step < 0) & (y < 0)) | ((y_step > 0) & (y >= y_count))
        beyond = beyond | ((z_step < 0) & (z < 0)) | ((z_step > 0) & (z >= z_count))
        going = going & (hit == 0) & (beyond == 0)  # a ray that is beyond the grid does not come back
        along_x = (x_border < y_border) & (x_border < z_border)
        along_y = (y_border <= x_border) & (y_border < z_border)
        along_z = (along_x | along_y) == 0
        x = tl.where(along_x, x + x_step, x)
        y = tl.where(along_y, y + y_step, y)
        z = tl.where(along_z, z + z_step, z)
        x_border = tl.where(along_x, x_border + x_spacing, x_border)
        y_border = tl.where(along_y, y_border + y_spacing, y_border)
        z_border = tl.where(along_z, z_border + z_spacing, z_border)
        visited += 1
    row = volume.to(tl.int64) * rays
    tl.store(end + row + r, last, mask=r < rays)
    tl.store(distance + row + r, length.to(tl.float32), mask=r < rays)
