"""`FusionBranch`: a branch of the student that sees LiDAR, learns beside it and teaches it (docs/formulas.md 4.30)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.errors import InputError
from distill.frame import Frame, Told
from distill.networks import fusion_branch
from distill.networks.prediction import Occupancy
from distill.teaching import Provider, Pupil
from distill.teaching.predicted import Predictions
from distill.teaching.taught import Taught


class FusionBranch(Provider):
    """Teaches what its heads say, the mean of their probabilities; it gets no gradient from whoever listens.

    It is trained by a term that asks for its "heads", such as `distill.losses.fusion.FusedSegmentation`.

    Args:
        name, weight: see `Provider`.
        pupil: whose BEV features are fused.
        network: the other arguments of `distill.networks.fusion_branch.FusionBranch`.

    Raises:
        InputError: it is asked what no network says, nothing trains it, or there are no such scales.
    """

    needs_points = True
    changes = True

    def __init__(self, name: str, weight: float, pupil: Pupil, **network: Any) -> None:
        super().__init__(name, weight)
        self.predictions = Predictions({"heads"})
        self.predictions.check(name, {*pupil.asked, *pupil.asked_unlabelled})
        if "heads" not in pupil.asked:
            raise InputError(
                f"teachers.{name} learns from nobody: give objective.terms.fused.weight, or choose other teachers"
            )
        self.grid, self.free = pupil.grid, pupil.classes.free
        self.network = fusion_branch.FusionBranch(**network, grid=pupil.grid, classes=pupil.classes)

    def holds(self, token: str) -> bool:
        """Every frame has a scan."""
        return True

    def told(self, token: str) -> Told:
        """That it teaches the frame; what it says is found on the device."""
        return Told(taught=np.array(True), signals={})

    def taught(self, frame: Frame, prediction: Occupancy | None = None) -> Taught:
        """Its answers about a batch; of a frame without points it says nothing.

        Raises:
            InputError: the student has no BEV features.
        """
        assert prediction is not None
        if "bev" not in prediction.features:
            raise InputError(f"teachers.{self.name} fuses the student's features bev, and it has none: choose another")
        heads: list[Tensor] = self.network(frame.points, prediction.features["bev"])
        told = frame.teachers[self.name]
        any_B = torch.tensor([len(points) > 0 for points in frame.points], device=told.taught.device)
        told = replace(told, taught=told.taught & any_B, signals={self.predictions.name: heads})
        answers = dict.fromkeys(self.predictions.answers, self.predictions)
        return Taught(self.name, self.weight, told, answers, frame, self.grid, self.free)

    def check(self, digests: Mapping[str, np.ndarray]) -> None:
        """Whoever trains it has seen to the scans."""

    def speakers(self) -> str:
        """Who teaches, in a few words."""
        return "a branch of the student with LiDAR"
