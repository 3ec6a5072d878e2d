"""What all metrics share: exact counts over keyframes, under any number of processes.

Letters: X Y Z voxel axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from distill.errors import InputError

Array = Tensor | np.ndarray


class KeyframeMetric(Metric):
    """A `torchmetrics.Metric` of constant memory that counts in int64, keyframe by keyframe.

    A sum of integers depends neither on the order of the keyframes nor on the process that counted them, so several
    processes return what one returns, bit for bit, provided that each keyframe is given to exactly one of them (a
    sampler that repeats keyframes to fill up the ranks counts those twice). Everything runs on the metric's device;
    NCCL needs `metric.to("cuda")`. Inputs may be tensors on any device, or numpy arrays. They have the same names in
    all metrics, so that a `torchmetrics.MetricCollection` is updated with all of them at once, by keyword. Results are
    percentages.

    Attributes:
        keyframes: int64 (), how many keyframes were counted.
    """

    is_differentiable = False
    full_state_update = False
    keyframes: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._add_counts("keyframes")

    def _add_counts(self, name: str, *shape: int) -> None:
        """A state of int64 zeros that is added up over processes."""
        self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def _volumes(self, **volumes: Array) -> list[Tensor]:
        """The volumes of one keyframe on this metric's device; `mask_XYZ` becomes bool.

        Raises:
            InputError: they differ in shape, or class ids are not uint8.
        """
        tensors = {name: torch.as_tensor(volume, device=self.device) for name, volume in volumes.items()}
        if len({tensor.shape for tensor in tensors.values()}) > 1:
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
            raise InputError(f"volumes of one keyframe differ in shape: {shapes}; give all of them on one grid")
        for name in tensors.keys() & {"prediction_XYZ", "semantics_XYZ"}:
            if tensors[name].dtype != torch.uint8:
                raise InputError(f"{name} is {tensors[name].dtype}: give class ids as uint8 (of scores, the argmax)")
        return [tensor.bool() if name == "mask_XYZ" else tensor for name, tensor in tensors.items()]


def percent(part: Tensor, whole: Tensor) -> Tensor:
    """100 * part / whole in float64, NaN for 0 of 0."""
    return 100.0 * part.double() / whole.double()
