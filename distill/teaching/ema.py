"""`Ema`: the student's own running average, which may be given LiDAR depth (docs/formulas.md 4.29).

UniOcc's depth-aware teacher (Pan et al. 2023): it sees better than the student does, and teaches it on frames that have
no labels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from distill.errors import InputError
from distill.frame import Frame, Told
from distill.networks.network import LiftsMeasuredDepth
from distill.networks.prediction import Occupancy
from distill.teaching import Provider, Pupil
from distill.teaching.predicted import Predictions
from distill.teaching.taught import Taught


class Ema(Provider):
    """The average of all weights that the student has had, batch-norm statistics included, none of them trained.

    It sees the very batch that the student sees, augmented alike, in evaluation mode.

    Args:
        name, weight: see `Provider`.
        frames: which training keyframes it teaches, "unlabelled": those without labels; "all".
        measured_depth: whether its lift is given what the LiDAR measured.
        momentum, warmup, milestones, decay: see `momentum_at`.
        interval: steps from one update to the next.
        ramp: steps over which its weight rises, see `ramped`.
        pupil: whom it averages and teaches.

    Raises:
        InputError: it is asked what no network says, or the student has no lift to give LiDAR depth to.
    """

    changes = True

    def __init__(
        self,
        name: str,
        weight: float,
        frames: Literal["unlabelled", "all"],
        measured_depth: bool,
        momentum: float,
        warmup: int,
        milestones: Sequence[int],
        decay: float,
        interval: int,
        ramp: int,
        pupil: Pupil,
    ) -> None:
        super().__init__(name, weight)
        if measured_depth and not isinstance(pupil.network, LiftsMeasuredDepth):
            raise InputError(
                f"teachers.{name}.measured_depth: {type(pupil.network).__name__} has no lift to give LiDAR depth to: "
                f"set teachers.{name}.measured_depth=false"
            )
        self.predictions = Predictions()
        self.predictions.check(name, {*pupil.asked, *pupil.asked_unlabelled})
        self.passes_labelled, self.needs_depth = frames == "unlabelled", measured_depth
        self.momentum, self.warmup, self.milestones, self.decay = momentum, warmup, tuple(milestones), decay
        self.interval, self.ramp, self.risen = interval, ramp, 0.0
        self.grid, self.free = pupil.grid, pupil.classes.free
        self.unlabelled = frozenset(pupil.unlabelled)
        self.network = copy.deepcopy(pupil.network).eval().requires_grad_(False)

    def holds(self, token: str) -> bool:
        """Whether it teaches the frame."""
        return not self.passes_labelled or token in self.unlabelled

    def told(self, token: str) -> Told:
        """Whether it teaches the frame; what it says is found on the device."""
        return Told(taught=np.array(self.holds(token)), signals={})

    @override
    def before_step(self, network: nn.Module, step: int) -> None:
        """Move the average towards the student; before step 0 it becomes the student."""
        self.risen = ramped(step, self.ramp)
        if step % self.interval == 0:
            momentum = momentum_at(step, self.momentum, self.warmup, self.milestones, self.decay)
            average(self.network, network, momentum)

    @torch.no_grad()
    def taught(self, frame: Frame, prediction: Occupancy | None = None) -> Taught:
        """Its answers about a batch."""
        told = frame.teachers[self.name]
        assert prediction is not None
        if told.taught.any():  # else nobody looks at what is said
            prediction = self._look(frame)
        told = replace(told, signals={self.predictions.name: [prediction.voxel_logits_BXYZC]})
        answers = dict.fromkeys(self.predictions.answers, self.predictions)
        return Taught(self.name, self.risen * self.weight, told, answers, frame, self.grid, self.free)

    def _look(self, frame: Frame) -> Occupancy:
        if not self.needs_depth:
            return self.network(frame)
        assert isinstance(self.network, LiftsMeasuredDepth)
        return self.network.with_measured_depth(frame)

    def check(self, digests: Mapping[str, np.ndarray]) -> None:
        """Raise InputError where there is no keyframe that it would teach."""
        if not any(self.holds(token) for token in digests):
            raise InputError(
                f"teachers.{self.name} teaches keyframes without labels, and all {len(digests)} training keyframes "
                f"have some: set teachers.{self.name}.frames=all, or withhold labels with trainer.withheld"
            )

    def speakers(self) -> str:
        """Who teaches, in a few words."""
        return f"EMA of the student{' with LiDAR depth' if self.needs_depth else ''}"


def momentum_at(step: int, largest: float, warmup: int, milestones: Sequence[int], decay: float) -> float:
    """What a mean teacher keeps of itself before a step (docs/formulas.md 4.29).

    Args:
        step: k, from 0.
        largest: m, in [0, 1).
        warmup: W, steps.
        milestones: steps, rising; with every step past any of them 1 - m shrinks, as published.
        decay: by this factor, for each milestone that is past.

    Returns:
        min(m_k, 1 - (1 + W) / (k + 1 + W)), 1 - m_k = (1 - m) decay^(sum over milestones M of max(0, k - M)).
    """
    passed = sum(max(0, step - milestone) for milestone in milestones)
    return min(1 - (1 - largest) * decay**passed, 1 - (1 + warmup) / (step + 1 + warmup))


def ramped(step: int, ramp: int) -> float:
    """How much of its weight a mean teacher has before a step, exp(-5 (1 - step / ramp)^2), in the end 1 (Tarvainen and
    Valpola 2017; docs/formulas.md 4.29); from the start if `ramp` is 0.
    """
    return math.exp(-5 * (1 - step / ramp) ** 2) if step < ramp else 1.0


@torch.no_grad()
def average(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """m teacher + (1 - m) student, for all that a state_dict holds, by name; counts are copied."""
    of_student = student.state_dict()
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            value.lerp_(of_student[name], 1 - momentum)
        else:
            value.copy_(of_student[name])
