"""Torch reference of ray marching; runs on any device.

Letters as in `kernels.ray_march`, E pairs of sample and voxel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from kernels.ray_march import Rays


def reached(shape: tuple[int, int, int, int], rays: Rays, far: float, samples: int) -> Tensor:
    """The voxels that rendering reads, bool (B, X, Y, Z)."""
    index_RNK, share_RNK = _around(shape, rays, far / samples, samples)
    read = torch.zeros(shape, dtype=torch.bool, device=index_RNK.device)
    read.view(-1)[index_RNK[share_RNK > 0]] = True
    return read


def march(
    density_V: Tensor, scores_VC: Tensor, place_BXYZ: Tensor, rays: Rays, step: float, samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (R, N), residual (R,) and scores (R, C)."""
    row_RNK, share_RNK = corners(place_BXYZ, rays, step, samples)
    share_RNK = share_RNK.to(density_V.dtype)
    thickness_RN = step * (share_RNK * density_V[row_RNK]).sum(2)
    passed_RN = thickness_RN.cumsum(1)
    weights_RN = (thickness_RN - passed_RN).exp() * -torch.expm1(-thickness_RN)
    per_sample = (weights_RN.unsqueeze(2) * share_RNK).flatten(1)
    scores_RC = F.embedding_bag(row_RNK.flatten(1), scores_VC, mode="sum", per_sample_weights=per_sample)
    return weights_RN, (-thickness_RN.sum(1)).exp(), scores_RC


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
    grad_weights_RN, grad_residual_R, grad_scores_RC = grads
    row_RNK, share_RNK = corners(place_BXYZ, rays, step, weights_RN.shape[1])
    # what the scores around each sample add to the gradient of its weight: those of a ray with its own gradient
    of_voxels_RNK = torch.einsum("rnkc,rc->rnk", scores_VC[row_RNK], grad_scores_RC)
    grad_RN = grad_weights_RN + (share_RNK * of_voxels_RNK).sum(2).to(grad_weights_RN.dtype)
    behind_RN = (grad_RN * weights_RN).flip(1).cumsum(1).flip(1) + (grad_residual_R * residual_R).unsqueeze(1)
    onwards_RN = weights_RN.flip(1).cumsum(1).flip(1) + residual_R.unsqueeze(1)
    grad_density_RN = step * (grad_RN * onwards_RN - behind_RN)
    return scatter(grad_density_RN, grad_scores_RC, weights_RN, row_RNK, share_RNK, len(scores_VC))


def scatter(
    grad_density_RN: Tensor, grad_scores_RC: Tensor, weights_RN: Tensor, row_RNK: Tensor, share_RNK: Tensor, voxels: int
) -> tuple[Tensor, Tensor]:
    """Gradients at samples, and of rays' scores, as those of the V voxels around them; in the order of the rays.

    Args:
        grad_density_RN: of the densities at the samples.
        grad_scores_RC: of the scores of the rays.
        weights_RN: of the samples.
        row_RNK, share_RNK: see `corners`.
        voxels: V.
    """
    ray_E, sample_E, k_E = (share_RNK > 0).nonzero(as_tuple=True)
    row_E, order_E = row_RNK[ray_E, sample_E, k_E].sort(stable=True)
    ray_E, sample_E, k_E = ray_E[order_E], sample_E[order_E], k_E[order_E]
    share_E = share_RNK[ray_E, sample_E, k_E].to(weights_RN.dtype)
    begin_V = torch.searchsorted(row_E, torch.arange(voxels, device=row_E.device))
    flat_E = ray_E * weights_RN.shape[1] + sample_E

    def bags(index_E: Tensor, table: Tensor, weight_E: Tensor) -> Tensor:
        return F.embedding_bag(index_E, table, begin_V, mode="sum", per_sample_weights=weight_E)

    density_V = bags(flat_E, grad_density_RN.reshape(-1, 1), share_E).squeeze(1)
    return density_V, bags(ray_E, grad_scores_RC, share_E * weights_RN.flatten()[flat_E])


def corners(place_BXYZ: Tensor, rays: Rays, step: float, samples: int) -> tuple[Tensor, Tensor]:
    """The listed voxels around each sample, int64 (R, N, K), and their shares in it, float64; 0 of one not listed."""
    index_RNK, share_RNK = _around(place_BXYZ.shape, rays, step, samples)
    row_RNK = place_BXYZ.flatten()[index_RNK].long()
    return row_RNK.clamp_min(0), torch.where(row_RNK >= 0, share_RNK, 0)


def _around(shape: tuple[int, ...], rays: Rays, step: float, samples: int) -> tuple[Tensor, Tensor]:
    """Flat positions in (B, X, Y, Z) of the voxels around each sample, int64, and their shares; 0, 0 outside."""
    device = rays.origins_R3.device
    t_N = (torch.arange(samples, dtype=torch.float64, device=device) + 0.5) * step
    at_RN13 = (rays.origins_R3[:, None] + t_N[:, None] * rays.directions_R3[:, None] - 0.5).unsqueeze(2)
    offset_K3 = torch.cartesian_prod(*[torch.arange(2, device=device)] * 3)
    voxel_RNK3 = at_RN13.floor() + offset_K3
    share_RNK = (1 - (at_RN13 - voxel_RNK3).abs()).prod(3)
    inside_RNK = ((voxel_RNK3 >= 0) & (voxel_RNK3 < torch.tensor(shape[1:], device=device))).all(3)
    x, y, z = voxel_RNK3.long().unbind(3)
    index_RNK = ((rays.batch_R[:, None, None] * shape[1] + x) * shape[2] + y) * shape[3] + z
    return torch.where(inside_RNK, index_RNK, 0), torch.where(inside_RNK, share_RNK, 0)
