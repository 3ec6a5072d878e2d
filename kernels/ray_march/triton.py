"""Triton twin of `kernels.ray_march.reference`: a program follows a few rays, sample by sample. Same letters.

There are no atomics: gradients are those at samples, which go to the voxels around them in a fixed order
(`reference.scatter`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.ray_march.reference import corners, reached, scatter

if TYPE_CHECKING:
    from kernels.ray_march import Rays

__all__ = ["gradients", "march", "reached"]

_RAYS = 16  # of a program


def march(
    density_V: Tensor, scores_VC: Tensor, place_BXYZ: Tensor, rays: Rays, step: float, samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (R, N), residual (R,) and scores (R, C)."""
    count, channels = len(rays.batch_R), scores_VC.shape[1]
    weights_RN, residual_R = density_V.new_empty(count, samples), density_V.new_empty(count)
    scores_RC = density_V.new_empty(count, channels)
    if count:
        _march[(triton.cdiv(count, _RAYS),)](
            density_V,
            scores_VC,
            *_walk(place_BXYZ, rays, step),
            weights_RN,
            residual_R,
            scores_RC,
            samples,
            channels,
            _RAYS,
            triton.next_power_of_2(max(1, channels)),
        )
    return weights_RN, residual_R, scores_RC


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
    (count, samples), channels = weights_RN.shape, scores_VC.shape[1]
    at_samples_RN = torch.empty_like(weights_RN)
    if count:
        _gradients[(triton.cdiv(count, _RAYS),)](
            *grads,
            scores_VC,
            *_walk(place_BXYZ, rays, step),
            weights_RN,
            residual_R,
            at_samples_RN,
            samples,
            channels,
            _RAYS,
            triton.next_power_of_2(max(1, channels)),
        )
    return scatter(at_samples_RN, grads[2], weights_RN, *corners(place_BXYZ, rays, step, samples), len(scores_VC))


def _walk(place_BXYZ: Tensor, rays: Rays, step: float) -> tuple[object, ...]:
    """What both kernels need to know; the step as a tensor, since Triton passes numbers as float32."""
    steps_R3 = rays.directions_R3 * step
    return (
        place_BXYZ.contiguous(),
        (rays.origins_R3 + 0.5 * steps_R3 - 0.5).contiguous(),
        steps_R3.contiguous(),
        rays.batch_R.contiguous(),
        len(rays.batch_R),
        *place_BXYZ.shape[1:],
        rays.origins_R3.new_full((1,), step),
    )


@triton.jit
def _march(
    density,
    scores,
    place,
    first,
    steps,
    batch,
    count,
    x_count,
    y_count,
    z_count,
    step,
    weights,
    residual,
    out,
    samples,
    channels,
    RAYS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    r = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    c = tl.arange(0, BLOCK_C)
    there = r < count
    frame = tl.load(batch + r, mask=there, other=0) * x_count
    x0, y0, z0 = _triple(first, r, there)
    dx, dy, dz = _triple(steps, r, there)
    length = tl.load(step).to(density.dtype.element_ty)
    passed = tl.zeros((RAYS,), density.dtype.element_ty)
    total = tl.zeros((RAYS, BLOCK_C), density.dtype.element_ty)
    for i in range(samples):
        x, y, z = x0 + i * dx, y0 + i * dy, z0 + i * dz
        thickness = tl.zeros((RAYS,), density.dtype.element_ty)
        for k in range(8):
            row, share = _around(place, frame, x, y, z, k, x_count, y_count, z_count, there)
            at = tl.load(density + row, mask=row >= 0, other=0.0)
            thickness += length * at * share.to(density.dtype.element_ty)
        weight = tl.exp(-passed) * (1 - tl.exp(-thickness))
        passed += thickness
        tl.store(weights + r.to(tl.int64) * samples + i, weight, mask=there)
        for k in range(8):
            row, share = _around(place, frame, x, y, z, k, x_count, y_count, z_count, there)
            mask = (row >= 0)[:, None] & (c < channels)[None, :]
            score = tl.load(scores + row[:, None] * channels + c[None, :], mask=mask, other=0.0)
            total += (weight * share.to(density.dtype.element_ty))[:, None] * score
    tl.store(residual + r, tl.exp(-passed), mask=there)
    mask = there[:, None] & (c < channels)[None, :]
    tl.store(out + r.to(tl.int64)[:, None] * channels + c[None, :], total, mask=mask)


@triton.jit
def _gradients(
    grad_weights,
    grad_residual,
    grad_scores,
    scores,
    place,
    first,
    steps,
    batch,
    count,
    x_count,
    y_count,
    z_count,
    step,
    weights,
    residual,
    out,
    samples,
    channels,
    RAYS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    r = tl.program_id(0) * RAYS + tl.arange(0, RAYS)
    c = tl.arange(0, BLOCK_C)
    there = r < count
    frame = tl.load(batch + r, mask=there, other=0) * x_count
    x0, y0, z0 = _triple(first, r, there)
    dx, dy, dz = _triple(steps, r, there)
    length = tl.load(step).to(scores.dtype.element_ty)
    mask = there[:, None] & (c < channels)[None, :]
    pull = tl.load(grad_scores + r.to(tl.int64)[:, None] * channels + c[None, :], mask=mask, other=0.0)
    onwards = tl.load(residual + r, mask=there, other=0.0)
    behind = onwards * tl.load(grad_residual + r, mask=there, other=0.0)
    for n in range(samples):
        i = samples - 1 - n
        x, y, z = x0 + i * dx, y0 + i * dy, z0 + i * dz
        here = r.to(tl.int64) * samples + i
        weight = tl.load(weights + here, mask=there, other=0.0)
        gradient = tl.load(grad_weights + here, mask=there, other=0.0)
        for k in range(8):
            row, share = _around(place, frame, x, y, z, k, x_count, y_count, z_count, there)
            mask = (row >= 0)[:, None] & (c < channels)[None, :]
            score = tl.load(scores + row[:, None] * channels + c[None, :], mask=mask, other=0.0)
            gradient += share.to(scores.dtype.element_ty) * tl.sum(score * pull, axis=1)
        tl.store(out + here, length * (gradient * onwards - behind), mask=there)
        onwards += weight
        behind += weight * gradient


@triton.jit
def _around(place, frame, x, y, z, k, x_count, y_count, z_count, there):
    """The listed voxel at one of the 8 corners around each place, -1 if there is none, and its share."""
    a, b, d = tl.floor(x) + (k // 4), tl.floor(y) + (k // 2) % 2, tl.floor(z) + k % 2
    inside = there & (a >= 0) & (a < x_count) & (b >= 0) & (b < y_count) & (d >= 0) & (d < z_count)
    index = ((frame + a.to(tl.int64)) * y_count + b.to(tl.int64)) * z_count + d.to(tl.int64)
    row = tl.load(place + index, mask=inside, other=-1).to(tl.int64)
    return row, (1 - tl.abs(x - a)) * (1 - tl.abs(y - b)) * (1 - tl.abs(z - d))


@triton.jit
def _triple(rows, i, mask):
    """The three columns of rows i."""
    at = rows + 3 * i.to(tl.int64)
    return tl.load(at, mask=mask, other=0), tl.load(at + 1, mask=mask, other=0), tl.load(at + 2, mask=mask, other=0)
