"""What all torchmetrics share: exact counts over keyframes, under any number of processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from distill.metrics.counting import Array, volumes_of_keyframe


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
        """The volumes of one keyframe on this metric's device; see `volumes_of_keyframe`."""
        return volumes_of_keyframe(self.device, **volumes)
