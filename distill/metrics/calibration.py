"""Calibration: is a network that says 80 % right in 80 % of the cases? (Guo et al., ICML 2017.)

Letters: X Y Z voxel axes, C classes, B bins of confidence, V counted voxels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.classes import ClassSet
from distill.errors import InputError
from distill.metrics.base import KeyframeMetric
from distill.metrics.conventions import percent
from distill.metrics.counting import Array

_UNIT = 2**28  # confidences are added up as integers of this unit: exact for float32 of 1/32 and more
_TOLERANCE = 0.01  # of the sum of the probabilities of a voxel: stores keep 8 bits


class Calibration(KeyframeMetric):
    """Expected calibration error and reliability curve of the most probable class.

    Bin b of B holds the voxels whose highest probability is in (b / B, (b + 1) / B]. The error is the mean over voxels
    of
    |share of right voxels - mean confidence| of their bin. Four of five voxels are free and easily told, so it is also
    given for the voxels predicted as occupied, and by predicted class.

    Args:
        classes: the class set of labels and probabilities.
        bins: B, how many bins.
        options: of `torchmetrics.Metric`.

    Attributes:
        voxels_CB, right_CB: int64, counted voxels and those of them that are right, [predicted class, bin].
        confidence_CB: int64, sum of their confidences in units of 2**-28.
    """

    higher_is_better = False
    voxels_CB: Tensor
    right_CB: Tensor
    confidence_CB: Tensor

    def __init__(self, classes: ClassSet, bins: int, **options: Any) -> None:
        super().__init__(**options)
        self.classes, self.bins = classes, bins
        for name in ("voxels_CB", "right_CB", "confidence_CB"):
            self._add_counts(name, len(classes), bins)

    def update(self, probabilities_XYZC: Array, semantics_XYZ: Array, mask_XYZ: Array) -> None:
        """Count the voxels of one keyframe; voxels labelled `classes.ignored` are not counted.

        Args:
            probabilities_XYZC: of each class, floating point, 1 in sum.
            semantics_XYZ: label class ids, uint8.
            mask_XYZ: bool, the voxels to count: `mask_camera`.

        Raises:
            InputError: volumes of different shapes, or something else than probabilities at a counted voxel.
        """
        semantics_XYZ, mask_XYZ = self._volumes(semantics_XYZ=semantics_XYZ, mask_XYZ=mask_XYZ)
        probabilities_XYZC = torch.as_tensor(probabilities_XYZC)
        if probabilities_XYZC.shape != (*semantics_XYZ.shape, len(self.classes)):
            raise InputError(
                f"probabilities are {tuple(probabilities_XYZC.shape)}, the labels {tuple(semantics_XYZ.shape)} of "
                f"{len(self.classes)} classes: give probabilities (X, Y, Z, C) on the grid and classes of the labels"
            )
        known_XYZ = mask_XYZ & (semantics_XYZ < len(self.classes)) & (semantics_XYZ != self.classes.ignored)
        counted_VC = probabilities_XYZC[known_XYZ.to(probabilities_XYZC.device)].to(self.device).float()
        _check_probabilities(counted_VC)
        confidence_V, prediction_V = counted_VC.max(-1)
        unit_V = (confidence_V.double().clamp(max=1.0) * _UNIT).round().long()
        cell_V = prediction_V * self.bins + (unit_V * self.bins - 1) // _UNIT
        right_V = (prediction_V == semantics_XYZ[known_XYZ]).long()
        for counts_CB, value_V in (
            (self.voxels_CB, torch.ones_like(unit_V)),
            (self.right_CB, right_V),
            (self.confidence_CB, unit_V),
        ):
            counts_CB.view(-1).index_add_(0, cell_V, value_V)
        self.keyframes += 1

    def compute(self) -> dict[str, Tensor]:
        """In percent, float64, NaN where there is no voxel.

        Returns:
            "ECE" and "ECE occupied", of the voxels predicted as any class but free; "ECE per class" (C,) by predicted
            class; "reliability accuracy", "reliability confidence" and "reliability voxels" (B,), the curve over all
            voxels, and the same with " occupied" at the end.
        """
        counts = torch.stack([self.voxels_CB, self.right_CB, self.confidence_CB])
        occupied_C = torch.arange(len(self.classes), device=self.device) != self.classes.free
        result = {"ECE per class": _error(*counts)}
        for suffix, counts_3B in (("", counts.sum(1)), (" occupied", counts[:, occupied_C].sum(1))):
            voxels_B, right_B, confidence_B = counts_3B
            result[f"ECE{suffix}"] = _error(*counts_3B)
            result[f"reliability accuracy{suffix}"] = percent(right_B, voxels_B)
            result[f"reliability confidence{suffix}"] = percent(confidence_B, voxels_B) / _UNIT
            result[f"reliability voxels{suffix}"] = voxels_B
        return result


def _error(voxels_B: Tensor, right_B: Tensor, confidence_B: Tensor) -> Tensor:
    """ECE over the last axis: the sum over bins of |right - confidence| in voxels, by all voxels."""
    return percent((right_B - confidence_B.double() / _UNIT).abs().sum(-1), voxels_B.sum(-1))


def _check_probabilities(probabilities_VC: Tensor) -> None:
    sum_V = probabilities_VC.sum(-1)
    wrong_V = ~((sum_V - 1).abs() <= _TOLERANCE) | (probabilities_VC < 0).any(-1)
    if wrong_V.any():
        raise InputError(
            f"{int(wrong_V.sum())} of {len(wrong_V)} voxels hold no probabilities (the first ones sum to "
            f"{float(sum_V[wrong_V][0]):.3g}): give softmax(logits), or exp(log-probabilities)"
        )
