"""CPU twin of `kernels.ray_cast.reference`, compiled: one walk for all volumes. Same letters, the same bits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from kernels.compiled import compiled
from kernels.ray_cast.borders import MOST_VOXELS, first_borders


def walk(occupied_SXYZ: Tensor, origins_R3: Tensor, ends_R3: Tensor) -> tuple[Tensor, Tensor]:
    """Voxel and distance where each ray ends, int32 and float32 (S, R)."""
    volumes, rays = len(occupied_SXYZ), len(origins_R3)
    shift_S111 = torch.arange(volumes, dtype=torch.uint8).view(-1, 1, 1, 1)
    bits_XYZ = (occupied_SXYZ.byte() << shift_S111).sum(0, dtype=torch.uint8)
    end_SR = torch.empty(volumes, rays, dtype=torch.int32)
    distance_SR = torch.empty(volumes, rays, dtype=torch.float32)
    bits, voxel, step, border, spacing, end, distance = (
        tensor.contiguous().numpy() for tensor in (bits_XYZ, *first_borders(origins_R3, ends_R3), end_SR, distance_SR)
    )

    def walk_some(first: int, beyond: int) -> None:
        _walk(bits, voxel, step, border, spacing, end, distance, first, beyond)

    threads = torch.get_num_threads()
    bounds = [rays * thread // threads for thread in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:  # numba's own threads do not survive a fork
        list(pool.map(walk_some, bounds[:-1], bounds[1:]))
    return end_SR, distance_SR


@compiled(nogil=True)
def _walk(bits_XYZ, voxel_R3, step_R3, border_R3, spacing_R3, end_SR, distance_SR, begin, end):  # type: ignore[no-untyped-def]
    """All volumes in one walk: bit s of `bits_XYZ` tells whether volume s is occupied."""
    volumes = len(end_SR)
    x_count, y_count, z_count = bits_XYZ.shape
    for r in range(begin, end):
        x, y, z = voxel_R3[r, 0], voxel_R3[r, 1], voxel_R3[r, 2]
        x_border, y_border, z_border = border_R3[r, 0], border_R3[r, 1], border_R3[r, 2]
        pending = (1 << volumes) - 1  # volumes in which this ray has hit nothing yet
        last, distance = 0, -1.0
        for _ in range(MOST_VOXELS):
            inside = 0 <= x < x_count and 0 <= y < y_count and 0 <= z < z_count
            if inside:
                last = (x * y_count + y) * z_count + z
                hit = bits_XYZ[x, y, z] & pending
                distance = min(x_border, y_border, z_border)
                if hit:
                    _write(hit, last, distance, end_SR[:, r], distance_SR[:, r])
                    pending &= ~hit
                    if not pending:
                        break
            elif (
                _beyond(x, step_R3[r, 0], x_count)
                or _beyond(y, step_R3[r, 1], y_count)
                or _beyond(z, step_R3[r, 2], z_count)
            ):
                break
            if x_border < y_border and x_border < z_border:
                x += step_R3[r, 0]
                x_border += spacing_R3[r, 0]
            elif y_border <= x_border and y_border < z_border:
                y += step_R3[r, 1]
                y_border += spacing_R3[r, 1]
            else:
                z += step_R3[r, 2]
                z_border += spacing_R3[r, 2]
        _write(pending, last, distance, end_SR[:, r], distance_SR[:, r])


@compiled(nogil=True, inline="always")
def _beyond(voxel, step, count):  # type: ignore[no-untyped-def]
    """Whether a ray is out of the grid along an axis for good."""
    return voxel < 0 if step < 0 else voxel >= count


@compiled(nogil=True, inline="always")
def _write(volumes, voxel, distance, end_S, distance_S):  # type: ignore[no-untyped-def]
    """The end of a ray in the volumes whose bits are set."""
    for s in range(len(end_S)):
        if volumes >> s & 1:
            end_S[s] = voxel
            distance_S[s] = distance
