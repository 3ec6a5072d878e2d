"""RenderOcc's rendering as published, in a contracted world: to reproduce its numbers (docs/formulas.md 4.25).

Students are trained in metres by `rendering`: the depth here is none. Its sampling, cut-offs and constants are kept.

Letters: R rays, N samples of a ray, X Y Z voxel axes, C scores.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RADIUS = 39.0  # metres around `CENTRE` that are not contracted
CENTRE = (0.0, 0.0, 2.2)
RIM = 1 / RADIUS  # of the ball into which all that is farther away is contracted
HALF_EXTENT = (1 + RIM, 1 + RIM, 0.08)  # of the voxel centres; in height 3.12 m, where the grid has 3
INNER, OUTER = 391, 26  # samples
DEPTH_BIAS = 1e-7


class ContractedView(NamedTuple):
    """What rays meet.

    Attributes:
        weights_RN: how much of a ray ends at each sample; 0 at those that are left out.
        places_N: of the samples, 1 - 1 / (1 + t), t the distance in radii.
        residual_R: how much of a ray is left where it was given up.
        depth_R: 39 times the mean place: no metres (19.5 m appear as 13).
        scores_RC: weighted sums.
    """

    weights_RN: Tensor
    places_N: Tensor
    residual_R: Tensor
    depth_R: Tensor
    scores_RC: Tensor


def render(
    density_XYZ: Tensor, scores_XYZC: Tensor, origins_R3: Tensor, units_R3: Tensor, augmentation_33: Tensor
) -> ContractedView:
    """Render rays through raw densities, of which 14.9 is half opaque, over Occ3D's range.

    Args:
        density_XYZ: raw; softplus with shift makes densities of it.
        scores_XYZC: logits.
        origins_R3: ego frame, metres.
        units_R3: directions of length 1.
        augmentation_33: of the voxels, which is applied to the samples, after the contraction.
    """
    distances_N = sample_distances().to(origins_R3)
    points_RN3, inner_RN = contracted_points(origins_R3, units_R3, distances_N)
    points_RN3 = points_RN3 @ augmentation_33.T
    kept_RN = kept_samples(points_RN3, inner_RN)
    volume = torch.cat([density_XYZ[..., None], scores_XYZC], -1).permute(3, 2, 1, 0)[None]
    at_RN3 = points_RN3 / points_RN3.new_tensor(HALF_EXTENT)
    found_CRN = F.grid_sample(volume, at_RN3[None, None], align_corners=True)[0, :, 0]
    alpha_RN = opacity(found_CRN[0])
    alpha_RN = alpha_RN * (kept_RN & (alpha_RN > 1e-7))
    left_RN = torch.cat([torch.ones_like(alpha_RN[:, :1]), (1 - alpha_RN).cumprod(1)], 1)
    followed_RN = left_RN[:, :-1] >= 1e-3  # a ray is given up behind the sample that leaves less
    weights_RN = left_RN[:, :-1] * alpha_RN * followed_RN
    weights_RN = weights_RN * (weights_RN > 1e-7)
    residual_R = left_RN.gather(1, followed_RN.sum(1, keepdim=True)).squeeze(1)
    places_N = 1 - 1 / (1 + distances_N)
    depth_R = RADIUS * (weights_RN @ places_N + DEPTH_BIAS)
    return ContractedView(
        weights_RN, places_N, residual_R, depth_R, torch.einsum("rn,crn->rc", weights_RN, found_CRN[1:])
    )


def sample_distances() -> Tensor:
    """Distances of the samples in radii, float64 (N,): evenly up to 2, then evenly in inverse distance up to 128."""
    inner = torch.linspace(0, 2, INNER + 1, dtype=torch.float64)
    outer = 2 / torch.linspace(1, 1 / 64, OUTER + 1, dtype=torch.float64)
    return torch.cat([(inner[1:] + inner[:-1]) / 2, (outer[1:] + outer[:-1]) / 2])


def contracted_points(origins_R3: Tensor, units_R3: Tensor, distances_N: Tensor) -> tuple[Tensor, Tensor]:
    """Where samples lie, in radii from `CENTRE` (R, N, 3), and which are not contracted, bool (R, N)."""
    start_R3 = (origins_R3 - origins_R3.new_tensor(CENTRE)) / RADIUS
    straight_RN3 = start_R3[:, None] + distances_N[:, None] * units_R3[:, None]
    norm_RN1 = straight_RN3.norm(dim=2, keepdim=True)
    contracted_RN3 = straight_RN3 / norm_RN1 * (1 + RIM - RIM / norm_RN1)
    inner_RN1 = norm_RN1 <= 1
    return torch.where(inner_RN1, straight_RN3, contracted_RN3), inner_RN1.squeeze(2)


def kept_samples(points_RN3: Tensor, inner_RN: Tensor) -> Tensor:
    """Which samples are rendered, bool (R, N): all inner ones, and others as soon as the way since is long enough."""
    least = 0.95 * 0.5 * (2 + 2 * RIM) / 200
    steps_RN = (points_RN3[:, 1:] - points_RN3[:, :-1]).norm(dim=2)
    kept_RN, way_R = inner_RN.clone(), torch.zeros_like(steps_RN[:, 0])
    for i in range(steps_RN.shape[1]):
        way_R = way_R + steps_RN[:, i]
        far_R = way_R > least
        kept_RN[:, i + 1] |= far_R
        way_R = way_R * ~far_R
    return kept_RN


def opacity(density: Tensor) -> Tensor:
    """1 - (1 + exp(density + b))^(-1/2), b = ln(1 / (1 - 1e-6) - 1), whatever the way from one sample to the next."""
    shift = torch.log(1 / (1 - density.new_tensor(1e-6, dtype=torch.float64)) - 1).float().item()
    return 1 - (1 + torch.exp(density + shift)) ** -0.5


def distortion(view: ContractedView) -> Tensor:
    """Mean over rays of sum_ij w_i w_j |s_i - s_j| + sum_i w_i^2 / (3 n), n the samples of all rays with a weight."""
    weights_RN, places_N = view.weights_RN, view.places_N
    placed_RN = weights_RN * places_N
    apart_RN = weights_RN * (places_N * weights_RN.cumsum(1) - placed_RN.cumsum(1))
    met = (weights_RN > 0).sum().clamp_min(1)
    return (2 * apart_RN.sum() + weights_RN.square().sum() / (3 * met)) / max(len(weights_RN), 1)
