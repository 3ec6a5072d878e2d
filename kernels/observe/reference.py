"""Rays of cameras in plain torch, all rays of a camera at a time, on any device. Letters as in `kernels.observe`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def observe(occupied_XYZ: Tensor, origins_N3: Tensor, cell2ray_N33: Tensor, columns: int, rows: int) -> Tensor:
    """The voxels that are seen, bool (X, Y, Z).

    Args:
        occupied_XYZ: bool.
        origins_N3: where the cameras are, float64, voxels.
        cell2ray_N33: (column, row, 1) on a camera's grid of rays to a direction in voxels, float64.
        columns, rows: of this grid.
    """
    seen_XYZ = torch.zeros(occupied_XYZ.shape, dtype=torch.bool, device=occupied_XYZ.device)
    for origin_A, direction_RA in _directions(origins_N3, cell2ray_N33, columns, rows):
        meets_R = torch.zeros(len(direction_RA), dtype=torch.bool, device=direction_RA.device)
        for going_K, index_K in _steps(occupied_XYZ, origin_A, direction_RA):
            meets_R[going_K] = occupied_XYZ.flatten()[index_K]
        for _, index_K in _steps(occupied_XYZ, origin_A, direction_RA[meets_R]):
            seen_XYZ.view(-1)[index_K] = True
    return seen_XYZ


def follow(
    within_XYZ: Tensor, origins_N3: Tensor, cell2ray_N33: Tensor, columns: int, rows: int
) -> tuple[Tensor, Tensor]:
    """The voxels on each ray, int64 (E,), and how many it has (N * R,).

    Args:
        within_XYZ: bool, those that are looked for.
        origins_N3, cell2ray_N33, columns, rows: see `observe`.
    """
    none = torch.empty(0, dtype=torch.int64, device=within_XYZ.device)
    rays, voxels = [none], [none]
    for camera, (origin_A, direction_RA) in enumerate(_directions(origins_N3, cell2ray_N33, columns, rows)):
        for going_K, index_K in _steps(torch.zeros_like(within_XYZ), origin_A, direction_RA):
            wanted_K = within_XYZ.flatten()[index_K]
            rays.append(going_K[wanted_K] + camera * len(direction_RA))
            voxels.append(index_K[wanted_K])
    ray_E, order_E = torch.cat(rays).sort(stable=True)
    return torch.cat(voxels)[order_E], ray_E.bincount(minlength=len(origins_N3) * rows * columns)


def _directions(origins_N3: Tensor, cell2ray_N33: Tensor, columns: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Where each camera is (A,), and the directions of its rays (R, A)."""
    cell_R = torch.arange(rows * columns, device=origins_N3.device)
    column_R1, row_R1 = (cell_R % columns + 0.5).double()[:, None], (cell_R // columns + 0.5).double()[:, None]
    for origin_A, (of_column_A, of_row_A, of_one_A) in zip(origins_N3, cell2ray_N33.mT, strict=True):
        yield origin_A, of_column_A * column_R1 + of_row_A * row_R1 + of_one_A


def _steps(occupied_XYZ: Tensor, origin_A: Tensor, direction_RA: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Step by step up to the first surface, which rays are on their way and in which voxel (i * Y + j) * Z + k."""
    shape_A = torch.tensor(occupied_XYZ.shape, device=occupied_XYZ.device)
    first_RA, last_RA = -origin_A / direction_RA, (shape_A - origin_A) / direction_RA
    still_RA, inside_A = direction_RA == 0, (origin_A >= 0) & (origin_A < shape_A)
    enter_R = torch.minimum(first_RA, last_RA).masked_fill(still_RA, -torch.inf).amax(1).clamp_min(0)
    leave_R = torch.maximum(first_RA, last_RA).masked_fill(still_RA, torch.inf)
    leave_R = leave_R.masked_fill(still_RA & ~inside_A, -torch.inf).amin(1)
    going_K = (enter_R < leave_R).nonzero().squeeze(1)

    direction_KA = direction_RA[going_K]
    entry_KA = origin_A + enter_R[going_K, None] * direction_KA
    voxel_KA = entry_KA.floor().long().clamp_min(0).minimum(shape_A - 1)
    border_KA = ((voxel_KA + (direction_KA > 0)) - origin_A) / direction_KA
    border_KA = border_KA.masked_fill(direction_KA == 0, torch.inf)
    while len(going_K):
        x_K, y_K, z_K = voxel_KA.unbind(1)
        index_K = (x_K * shape_A[1] + y_K) * shape_A[2] + z_K
        yield going_K, index_K
        x_K, y_K, z_K = border_KA.unbind(1)
        along_x_K = (x_K < y_K) & (x_K < z_K)
        along_y_K = ~along_x_K & (y_K < z_K)
        along_KA = torch.stack([along_x_K, along_y_K, ~(along_x_K | along_y_K)], 1)
        voxel_KA = voxel_KA + torch.where(direction_KA > 0, 1, -1) * along_KA
        border_KA = torch.where(along_KA, border_KA + 1 / direction_KA.abs(), border_KA)
        on_K = ~occupied_XYZ.flatten()[index_K] & ((voxel_KA >= 0) & (voxel_KA < shape_A)).all(1)
        going_K, direction_KA, voxel_KA, border_KA = (v[on_K] for v in (going_K, direction_KA, voxel_KA, border_KA))
