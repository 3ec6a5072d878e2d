"""What a network's voxels look like along rays, against what LiDAR and cameras saw there (docs/formulas.md 4.26, 4.28).

No term needs a voxel label. Letters: B batch, R rays of the whole batch, N samples of a ray, V voxels that are read, C
classes but free.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.classes import ClassSet
from distill.grids import VoxelGrid
from distill.losses.objective import Lesson, Needs, Term
from distill.losses.regions import rows
from distill.losses.supervised import silog
from kernels.ray_march import Rays, Rendered, march, reached

EPSILON = 1e-6


class View(NamedTuple):
    """What the network shows along the rays of a batch, and what was seen.

    Attributes:
        rendered: weights, residual and class probabilities.
        distance_R: where the ray ends in the mean, metres; its residual ends at `far`.
        stretch_R: metres of a ray per metre of depth.
        depth_R: that was seen, along the optical axis, metres.
        class_R: that was seen, int64; 0: not known.
    """

    rendered: Rendered
    distance_R: Tensor
    stretch_R: Tensor
    depth_R: Tensor
    class_R: Tensor


class RayTerm(Term):
    """A term that renders.

    Args:
        weight: of the term.
        samples: N.
        far: length of a ray, metres.
        grid: of the network's voxels.
        classes: names, ids and weights of the classes.
    """

    needs = Needs(rays=True)

    def __init__(self, weight: float, samples: int, far: float, grid: VoxelGrid, classes: ClassSet) -> None:
        super().__init__(weight)
        self.samples, self.far, self.grid, self.classes = samples, far, grid, classes

    def view(self, lesson: Lesson) -> View:
        """The rays of a batch, rendered by the first term that asks."""
        return lesson.once(("rendered", self.samples, self.far), lambda: self._view(lesson))

    def _view(self, lesson: Lesson) -> View:
        rays, seen_R8, stretch_R = voxel_rays(lesson.frame.rays, self.grid)
        logits_BXYZC = lesson.prediction.voxel_logits_BXYZC
        b, x, y, z = logits_BXYZC.shape[:4]
        index_V = reached((b, x, y, z), rays, self.far, self.samples).flatten().nonzero().squeeze(1)
        logits_VC = rows(logits_BXYZC, index_V, axes=1)
        density_V = -logits_VC.log_softmax(1)[:, self.classes.free] / self.grid.voxel_size
        place = torch.full((b * x * y * z,), -1, dtype=torch.int32, device=index_V.device)
        place[index_V] = torch.arange(len(index_V), dtype=torch.int32, device=index_V.device)
        probs_VC = logits_VC[:, : self.classes.free].softmax(1)
        rendered = march(density_V, probs_VC, place.view(b, x, y, z), rays, self.far, self.samples)
        distance_R = expected_distance(rendered.weights_RN, rendered.residual_R, self.far)
        return View(rendered, distance_R, stretch_R.to(distance_R), seen_R8[:, 6].to(distance_R), seen_R8[:, 7].long())


class RayDepth(RayTerm):
    """Depth along rays.

    Args:
        form: "silog", scale-invariant, along the optical axis, or "l1", metres along the ray.
    """

    def __init__(self, form: str, **rendering: Any) -> None:
        super().__init__(**rendering)
        self.form = form

    def forward(self, lesson: Lesson) -> Tensor:
        """Of all rays."""
        view = self.view(lesson)
        if self.form == "silog":
            return silog(view.distance_R / view.stretch_R, view.depth_R)
        return l1(view.distance_R, view.depth_R * view.stretch_R)


class RaySemantics(RayTerm):
    """Classes along rays; what of a ray ends nowhere is of no class, which costs.

    Args:
        balance: how classes are weighed, see `ClassSet.weights`.
    """

    def __init__(self, balance: str | float, **rendering: Any) -> None:
        super().__init__(**rendering)
        self.register_buffer("weights_C", torch.as_tensor(self.classes.weights(balance)), persistent=False)

    weights_C: Tensor

    def forward(self, lesson: Lesson) -> Tensor:
        """Of the rays that end at something of a known class."""
        view = self.view(lesson)
        known_R = view.class_R > 0
        return nll_prob(view.rendered.scores_RC[known_R], view.class_R[known_R], self.weights_C)


class RayEntropy(RayTerm):
    """How unsure it is whether a ray ends."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Of all rays."""
        return entropy(self.view(lesson).rendered.residual_R)


class RayDistortion(RayTerm):
    """How far along its ray each ray's end is spread."""

    def forward(self, lesson: Lesson) -> Tensor:
        """Of all rays."""
        return distortion(self.view(lesson).rendered.weights_RN)


def voxel_rays(rays: list[Tensor], grid: VoxelGrid) -> tuple[Rays, Tensor, Tensor]:
    """The rays of a batch in voxel coordinates; all of them (R, 8); metres of each per metre of depth (R,).

    Args:
        rays: of each frame, see `distill.frame.Frame.rays`.
        grid: of the voxels.
    """
    seen_R8 = torch.cat(rays)
    origins_R3, directions_R3 = seen_R8[:, :3].double(), seen_R8[:, 3:6].double()
    stretch_R = directions_R3.norm(dim=1)
    to_voxels_44 = torch.from_numpy(grid.to_voxels()).to(origins_R3)
    origins_R3 = origins_R3 @ to_voxels_44[:3, :3].T + to_voxels_44[:3, 3]
    directions_R3 = directions_R3 @ to_voxels_44[:3, :3].T / stretch_R.unsqueeze(1)
    batch_R = torch.cat([torch.full((len(each),), b, device=each.device) for b, each in enumerate(rays)])
    return Rays(origins_R3, directions_R3, batch_R.long()), seen_R8, stretch_R


def expected_distance(weights_RN: Tensor, residual_R: Tensor, far: float) -> Tensor:
    """Where rays end in the mean, metres (R,); the residual ends at `far`."""
    samples = weights_RN.shape[1]
    t_N = (torch.arange(samples, dtype=weights_RN.dtype, device=weights_RN.device) + 0.5) * (far / samples)
    return weights_RN @ t_N + residual_R * far


def l1(distance_R: Tensor, truth_R: Tensor) -> Tensor:
    """Mean absolute difference, metres; 0 without rays."""
    return (distance_R - truth_R).abs().sum() / max(len(distance_R), 1)


def ce_logit(logits_RC: Tensor, labels_R: Tensor, weights_C: Tensor) -> Tensor:
    """Weighted mean of the cross-entropy of rendered logits, as published; 0 without rays.

    Args:
        logits_RC: weighted sums along rays.
        labels_R: int64 class ids.
        weights_C: of the classes.
    """
    nll_R = -logits_RC.log_softmax(1).gather(1, labels_R.unsqueeze(1)).squeeze(1)
    return _weighted_mean(nll_R, labels_R, weights_C)


def nll_prob(probs_RC: Tensor, labels_R: Tensor, weights_C: Tensor) -> Tensor:
    """Weighted mean of -ln(p_y + 1e-6) of rendered probabilities, which sum to 1 minus the residual; 0 without rays.

    Args:
        probs_RC: weighted sums along rays.
        labels_R: int64 class ids.
        weights_C: of the classes.
    """
    nll_R = -(probs_RC.gather(1, labels_R.unsqueeze(1)).squeeze(1) + EPSILON).log()
    return _weighted_mean(nll_R, labels_R, weights_C)


def _weighted_mean(values_R: Tensor, labels_R: Tensor, weights_C: Tensor) -> Tensor:
    weights_R = weights_C.to(values_R.dtype)[labels_R]
    return (weights_R * values_R).sum() / weights_R.sum().clamp_min(torch.finfo(weights_R.dtype).tiny)


def entropy(residual_R: Tensor) -> Tensor:
    """Mean of -T ln T - (1 - T) ln(1 - T), T the residual within [1e-6, 1 - 1e-6]; 0 without rays."""
    t_R = residual_R.clamp(EPSILON, 1 - EPSILON)
    return -(t_R * t_R.log() + (1 - t_R) * (1 - t_R).log()).sum() / max(len(residual_R), 1)


def distortion(weights_RN: Tensor) -> Tensor:
    """Mean over rays of sum_ij w_i w_j |i - j| / N + sum_i w_i^2 / (3 N) (Barron et al. 2022); 0 without rays."""
    samples = weights_RN.shape[1]
    place_N = torch.arange(samples, dtype=weights_RN.dtype, device=weights_RN.device)
    placed_RN = weights_RN * place_N
    # of all pairs twice those in which j is before i
    apart_RN = weights_RN * (place_N * weights_RN.cumsum(1) - placed_RN.cumsum(1))
    spread_R = 2 * apart_RN.sum(1) + weights_RN.square().sum(1) / 3
    return spread_R.sum() / (samples * max(len(weights_RN), 1))
