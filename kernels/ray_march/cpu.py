"""CPU twin of `kernels.ray_march.reference`, compiled: one ray after the other. Same letters.

The frames of a batch share no voxel, so each has a thread. A ray is followed until less of it is left than rounding
would show (`least`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kernels.compiled import compiled

if TYPE_CHECKING:
    from kernels.ray_march import Rays


def reached(shape: tuple[int, int, int, int], rays: Rays, far: float, samples: int) -> Tensor:
    """The voxels that rendering reads, bool (B, X, Y, Z)."""
    read_BXYZ = np.zeros(shape, bool)
    _per_frame(lambda of_frame, b: _reach(of_frame, read_BXYZ[b], far / samples, samples), rays, shape[0])
    return torch.from_numpy(read_BXYZ)


def march(
    density_V: Tensor, scores_VC: Tensor, place_BXYZ: Tensor, rays: Rays, step: float, samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (R, N), residual (R,) and scores (R, C)."""
    count = len(rays.batch_R)
    found = (
        density_V.new_zeros(count, samples),
        density_V.new_ones(count),
        density_V.new_zeros(count, scores_VC.shape[1]),
    )
    place, arrays = place_BXYZ.numpy(), [each.detach().numpy() for each in (density_V, scores_VC, *found)]
    _per_frame(lambda of_frame, b: _march(of_frame, place[b], step, *arrays), rays, len(place))
    return found


def gradients(
    grads: tuple[Tensor, Tensor, Tensor],
    scores_VC: Tensor,
    place_BXYZ: Tensor,
    rays: Rays,
    step: float,
    weights_RN: Tensor,
    residual_R: Tensor,
) -> tuple[Tensor, Tensor]:
    """With respect to densities (V,) and scores (V, C)."""
    found = scores_VC.new_zeros(len(scores_VC)), torch.zeros_like(scores_VC)
    place = place_BXYZ.numpy()
    arrays = [each.detach().numpy() for each in (*grads, scores_VC, weights_RN, residual_R, *found)]
    _per_frame(lambda of_frame, b: _gradients(of_frame, place[b], step, *arrays), rays, len(place))
    return found


_OfFrame = tuple[np.ndarray, np.ndarray, np.ndarray]  # numbers of its rays, and all origins and directions


def _per_frame(work: Callable[[_OfFrame, int], object], rays: Rays, batch: int) -> None:
    origins_R3, directions_R3, batch_R = (each.contiguous().numpy() for each in rays)

    def of_frame(b: int) -> None:
        work((np.flatnonzero(batch_R == b), origins_R3, directions_R3), b)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numba's own threads do not survive a fork
        list(pool.map(of_frame, range(batch)))


@compiled(nogil=True)
def _reach(of_frame, read_XYZ, step, samples):  # type: ignore[no-untyped-def]
    numbers, origins_R3, directions_R3 = of_frame
    shape, read = read_XYZ.shape, read_XYZ.ravel()
    index, share = np.empty(8, np.int64), np.empty(8)
    for r in numbers:
        for i in range(samples):
            for k in range(_around(origins_R3[r], directions_R3[r], (i + 0.5) * step, shape, index, share)):
                read[index[k]] = True


@compiled(nogil=True, error_model="numpy")
def _march(of_frame, place_XYZ, step, density_V, scores_VC, weights_RN, residual_R, scores_RC):  # type: ignore[no-untyped-def]
    numbers, origins_R3, directions_R3 = of_frame
    shape, place, least = place_XYZ.shape, place_XYZ.ravel(), np.finfo(density_V.dtype).eps
    index, share = np.empty(8, np.int64), np.empty(8)
    for r in numbers:
        passed, before = 0.0, 1.0
        for i in range(weights_RN.shape[1]):
            if before < least:
                break
            count = _around(origins_R3[r], directions_R3[r], (i + 0.5) * step, shape, index, share)
            density = 0.0
            for k in range(count):
                row = place[index[k]]
                if row >= 0:
                    density += share[k] * density_V[row]
            if density == 0.0:
                continue
            passed += step * density
            weight = before * -math.expm1(-step * density)
            before = math.exp(-passed)
            weights_RN[r, i] = weight
            for k in range(count):
                row = place[index[k]]
                if row >= 0:
                    _add(weight * share[k], scores_VC[row], scores_RC[r])
        residual_R[r] = before


@compiled(nogil=True, error_model="numpy")
def _gradients(  # type: ignore[no-untyped-def]
    of_frame,
    place_XYZ,
    step,
    grad_weights_RN,
    grad_residual_R,
    grad_scores_RC,
    scores_VC,
    weights_RN,
    residual_R,
    density_V,
    found_VC,
):
    numbers, origins_R3, directions_R3 = of_frame
    shape, place, least = place_XYZ.shape, place_XYZ.ravel(), np.finfo(scores_VC.dtype).eps
    index, share = np.empty(8, np.int64), np.empty(8)
    for r in numbers:
        # of all that is behind a sample: what arrives there, and what it adds to the gradient
        onwards, behind = residual_R[r], grad_residual_R[r] * residual_R[r]
        for i in range(weights_RN.shape[1] - 1, -1, -1):
            weight, gradient = weights_RN[r, i], grad_weights_RN[r, i]
            if onwards + weight < least:
                continue
            count = _around(origins_R3[r], directions_R3[r], (i + 0.5) * step, shape, index, share)
            for k in range(count):
                row = place[index[k]]
                if row >= 0:
                    gradient += share[k] * _pull(scores_VC[row], grad_scores_RC[r], weight * share[k], found_VC[row])
            at_sample = step * (gradient * onwards - behind)
            for k in range(count):
                row = place[index[k]]
                if row >= 0:
                    density_V[row] += share[k] * at_sample
            onwards += weight
            behind += weight * gradient


@compiled(nogil=True, inline="always", fastmath={"contract"})
def _add(part, scores_C, found_C):  # type: ignore[no-untyped-def]
    """Add a part of a voxel's scores to those of a ray."""
    part = scores_C.dtype.type(part)
    for c in range(len(scores_C)):
        found_C[c] += part * scores_C[c]


@compiled(nogil=True, inline="always", fastmath={"reassoc", "contract"})
def _pull(scores_C, grad_C, part, found_C):  # type: ignore[no-untyped-def]
    """Add a part of a ray's gradient to that of a voxel's scores; returns their product."""
    part, product = scores_C.dtype.type(part), scores_C.dtype.type(0)
    for c in range(len(scores_C)):
        product += scores_C[c] * grad_C[c]
        found_C[c] += part * grad_C[c]
    return product


@compiled(nogil=True, inline="always")
def _around(origin_3, direction_3, t, shape, index, share):  # type: ignore[no-untyped-def]
    """Write down the voxels around a sample, and their shares in it; returns how many there are."""
    x, y, z = (
        origin_3[0] + t * direction_3[0] - 0.5,
        origin_3[1] + t * direction_3[1] - 0.5,
        origin_3[2] + t * direction_3[2] - 0.5,
    )
    if not (-1 < x < shape[0] and -1 < y < shape[1] and -1 < z < shape[2]):
        return 0
    i, j, k = math.floor(x), math.floor(y), math.floor(z)
    count = 0
    for n in range(8):
        a, b, c = i + (n >> 2), j + (n >> 1 & 1), k + (n & 1)
        if 0 <= a < shape[0] and 0 <= b < shape[1] and 0 <= c < shape[2]:
            index[count] = (a * shape[1] + b) * shape[2] + c
            share[count] = (1 - abs(x - a)) * (1 - abs(y - b)) * (1 - abs(z - c))
            count += share[count] > 0
    return count
