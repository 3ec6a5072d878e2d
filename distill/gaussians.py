"""Semantic Gaussians: what a GaussianFormer teacher knows about one keyframe, defined at every point of space.

Letters: G Gaussians, V query points, S = 18 semantic channels (0 noise, 1..16 classes, 17 empty).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from distill.grids import VoxelGrid
from kernels.splat import splat

EMPTY = 17
FLOOR = 2.0**-24  # of every probability before the logarithm
_LEAST_WEIGHT = 1e-9  # of the mixture; below it the teacher says "any class" (docs/formulas.md 7.2)


@dataclass(frozen=True)
class Gaussians:
    """The Gaussians of one keyframe in its LIDAR_TOP frame; p_g(x) = exp(-(x - mean)^T covariance^-1 (x - mean) / 2).

    Attributes:
        means_G3: float32, metres.
        scales_G3: float32, metres, > 0, along the local axes.
        rotations_G4: float32 unit quaternions (w, x, y, z) of R; covariance = R^T diag(scales^2) R, transposed from
            what 3D Gaussian splatting does (docs/formulas.md 7.1).
        opacities_G: float32 in [0, 1]; ones for a model without opacity.
        semantics_GS: float32, what is mixed: 17 probabilities and 0 for channel 17 ("probabilistic"), or scores that
            sum to anything ("additive").
        form: "probabilistic" (GaussianFormer-2) or "additive" (GaussianFormer).
        reach: a Gaussian ends `reach` times its largest scale, rounded up to whole cells of `space`, from its own cell.
        det: "upstream" inverts the covariance in float32, which breaks down for very flat Gaussians (NaN, hence "any
            class", docs/formulas.md 7.4); "stable" takes inverse and determinant from the scales.
        space: what the teacher was trained to model, in the LIDAR_TOP frame.
    """

    means_G3: Tensor
    scales_G3: Tensor
    rotations_G4: Tensor
    opacities_G: Tensor
    semantics_GS: Tensor
    form: Literal["probabilistic", "additive"]
    reach: float
    det: Literal["upstream", "stable"]
    space: VoxelGrid

    def to(self, device: torch.device | str) -> Gaussians:
        """The same Gaussians on another device."""
        return replace(
            self,
            means_G3=self.means_G3.to(device),
            scales_G3=self.scales_G3.to(device),
            rotations_G4=self.rotations_G4.to(device),
            opacities_G=self.opacities_G.to(device),
            semantics_GS=self.semantics_GS.to(device),
        )

    def occupancy(self, points_V3: Tensor) -> Tensor:
        """What upstream's head says about points in the LIDAR_TOP frame, metres; float32 (V, 18).

        Probabilities for the probabilistic form: 1 - prod_g(1 - p_g), shared out as the classes are mixed, and channel
        17 the rest (docs/formulas.md 7.2). Scores, to be softmaxed, for the additive form (7.3). The tensors of
        Gaussians and points must be on one device.
        """
        return self._mixed(points_V3)[0]

    def log_probs(self, points_V3: Tensor) -> Tensor:
        """What `told` says of the points, without their coverage; float32 (V, 18)."""
        return self.told(points_V3)[0]

    def told(self, points_V3: Tensor) -> tuple[Tensor, Tensor]:
        """What a dump says about points in the LIDAR_TOP frame, metres.

        Returns:
            Finite natural log-probabilities, float32 (V, 18). Channel 0, noise, was never supervised: what it holds of
            the occupied mass goes to channels 1..16 in proportion, and p(empty) stays. Every probability is at least
            2^-24 before the logarithm, and the sum is 1.
            Which points the teacher has modelled, bool (V,): those in its `space` where a Gaussian says something.
            Without one the probabilistic form says that nothing is there, the additive form nothing at all: its scores
            leave the softmax uniform wherever 1 - prod_g(1 - p_g), in float32, is 0.
        """
        values_VS, empty_V = self._mixed(points_V3)
        lower_3, upper_3 = points_V3.new_tensor(self.space.lower), points_V3.new_tensor(self.space.upper)
        covered_V = ((points_V3 >= lower_3) & (points_V3 < upper_3)).all(1)
        if self.form == "additive":
            values_VS = values_VS.softmax(1)
            covered_V &= empty_V < 1
        floored_VS = _fold_noise(values_VS).clamp_(min=FLOOR)
        return floored_VS.div_(floored_VS.sum(1, keepdim=True)).log_(), covered_V

    def _mixed(self, points_V3: Tensor) -> tuple[Tensor, Tensor]:
        """`occupancy`, and prod_g(1 - p_g) (V,)."""
        precisions_G33, root_det_G = self._precisions()
        radius_G = torch.ceil(self.scales_G3.amax(1) * self.reach / self.space.voxel_size).int()
        geometry = (points_V3, self.means_G3, precisions_G33, radius_G)
        cells = (self.space.lower, self.space.voxel_size)
        if self.form == "additive":
            return splat(*geometry, self.opacities_G, self.semantics_GS, *cells)
        weights_G = (2 * math.pi) ** -1.5 * root_det_G * self.opacities_G
        features_GS = self.semantics_GS.clone()
        features_GS[:, EMPTY] = 1.0  # nothing is mixed there: the place for the sum of the weights
        sums_VS, empty_V = splat(*geometry, weights_G, features_GS, *cells)
        return _probabilities(sums_VS, empty_V), empty_V

    def _precisions(self) -> tuple[Tensor, Tensor]:
        """Inverse covariances (G, 3, 3) and the square roots of their determinants (G,)."""
        rotations_G33 = rotation_matrices(self.rotations_G4)
        if self.det == "stable":
            whitening_G33 = rotations_G33 / self.scales_G3.unsqueeze(2)
            return whitening_G33.mT @ whitening_G33, 1 / self.scales_G3.prod(1)
        scaled_G33 = rotations_G33 * self.scales_G3.unsqueeze(2)
        # on the CPU like upstream: other libraries round otherwise, and the determinant magnifies it
        precisions_G33 = torch.linalg.inv_ex((scaled_G33.mT @ scaled_G33).cpu())[0].to(scaled_G33.device)
        return precisions_G33, _determinants(precisions_G33).sqrt()


def rotation_matrices(quaternions_G4: Tensor) -> Tensor:
    """Rotation matrices (G, 3, 3) of unit quaternions (w, x, y, z)."""
    w, x, y, z = quaternions_G4.unbind(-1)
    rows = (
        (w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _determinants(matrices_G33: Tensor) -> Tensor:
    """Six-term determinants of symmetric matrices (G,)."""
    (a, d, e), (_, b, f), (_, _, c) = (row.unbind(-1) for row in matrices_G33.unbind(-2))
    return a * b * c + 2 * d * e * f - e * e * b - f * f * a - d * d * c


def _probabilities(sums_VS: Tensor, empty_V: Tensor) -> Tensor:
    """Turn mixed semantics, whose channel 17 holds the sum of the weights, into probabilities (V, 18), in place."""
    weight_V1 = sums_VS[:, EMPTY:].clone()
    # not `<=`: a NaN weight must not pass
    sums_VS.div_(weight_V1).masked_fill_(~(weight_V1 > _LEAST_WEIGHT), 1 / EMPTY).mul_(1 - empty_V.unsqueeze(1))
    sums_VS[:, EMPTY] = empty_V
    return sums_VS


def _fold_noise(probs_VS: Tensor) -> Tensor:
    """Share channel 0 out over channels 1..16 in proportion, evenly where they are all 0, in place."""
    noise_V1, classes_VC = probs_VS[:, :1], probs_VS[:, 1:EMPTY]
    total_V1 = classes_VC.sum(1, keepdim=True)
    classes_VC.div_(total_V1).masked_fill_(total_V1 < FLOOR**2, 1 / (EMPTY - 1)).mul_(total_V1 + noise_V1)
    noise_V1.zero_()
    return probs_VS
