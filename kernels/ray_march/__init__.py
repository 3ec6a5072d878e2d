"""Ray marching: volume rendering in metres of sparse voxels along rays (Mildenhall et al. 2020; docs/formulas.md 4.25).

A ray has N samples at t_i = (i + 1/2) far / N. Densities are interpolated between the centres of voxels; a sample stops
alpha_i = 1 - exp(-density_i far / N) of what arrives, so that w_i = alpha_i prod_(j<i) (1 - alpha_j) of the ray ends
there, and the residual behind the last one: their sum is 1. Scores per sample are never stored.

Letters: B batch, X Y Z voxel axes, V listed voxels, C scores per voxel, R rays, N samples, K = 8 voxels
around a sample.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.dispatch import twin


class Rays(NamedTuple):
    """Rays through the voxels of a batch.

    Attributes:
        origins_R3: voxel coordinates, in which voxel (i, j, k) spans [i, i + 1) x [j, j + 1) x [k, k + 1); float64.
        directions_R3: voxels per metre of the ray; float64.
        batch_R: whose voxels they cross, int64.
    """

    origins_R3: Tensor
    directions_R3: Tensor
    batch_R: Tensor


class Rendered(NamedTuple):
    """What rays meet.

    Attributes:
        weights_RN: how much of a ray ends at each of its samples.
        residual_R: how much of it ends at none.
        scores_RC: weighted sum of the scores at the samples; nothing is added for the residual.
    """

    weights_RN: Tensor
    residual_R: Tensor
    scores_RC: Tensor


def reached(shape: tuple[int, int, int, int], rays: Rays, far: float, samples: int) -> Tensor:
    """The voxels that rendering reads; twins may differ in voxels with no share but rounding.

    Args:
        shape: (B, X, Y, Z).
        rays: any number.
        far: metres from the origin of a ray to its end.
        samples: N.

    Returns:
        bool (B, X, Y, Z).
    """
    return twin(__name__, rays.origins_R3.device).reached(shape, rays, far, samples)


def march(density_V: Tensor, scores_VC: Tensor, place_BXYZ: Tensor, rays: Rays, far: float, samples: int) -> Rendered:
    """Render rays, in the dtype of the densities; differentiable with respect to densities and scores.

    Deterministic on every device, whatever the number of threads.

    Args:
        density_V: 0 or more, per metre.
        scores_VC: of the same dtype; C may be 0.
        place_BXYZ: int32, which of the V a voxel is; -1: it is not listed, empty as all that lies outside.
        rays: any number.
        far: metres from the origin of a ray to its end.
        samples: N.
    """
    return Rendered(*_March.apply(density_V, scores_VC, place_BXYZ, rays, far / samples, samples))


class _March(torch.autograd.Function):
    """Chooses the implementation by device; `step` is metres from one sample to the next."""

    @staticmethod
    def forward(
        ctx: Any, density_V: Tensor, scores_VC: Tensor, place_BXYZ: Tensor, rays: Rays, step: float, samples: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        density_V, scores_VC = density_V.contiguous(), scores_VC.contiguous()
        run = twin(__name__, density_V.device)
        weights_RN, residual_R, scores_RC = run.march(density_V, scores_VC, place_BXYZ, rays, step, samples)
        ctx.save_for_backward(scores_VC, place_BXYZ, *rays, weights_RN, residual_R)
        ctx.step = step
        return weights_RN, residual_R, scores_RC

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        scores_VC, place_BXYZ, *rays, weights_RN, residual_R = ctx.saved_tensors
        grads = tuple(each.contiguous() for each in grad)
        gradients = twin(__name__, scores_VC.device).gradients
        return *gradients(grads, scores_VC, place_BXYZ, Rays(*rays), ctx.step, weights_RN, residual_R), *[None] * 4
