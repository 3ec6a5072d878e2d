"""Who teaches: teachers by their stores (`stored`), the student's own average (`ema`), a branch of it (`branch`).

What a term is told stands in `taught`, of networks in `predicted`. A `Provider` is built once for a run: loader workers
ask it what a frame is to bring along (`told`), the learner what it says of a batch (`taught`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from distill.classes import ClassSet
from distill.frame import Frame, Told
from distill.grids import VoxelGrid
from distill.networks.prediction import Occupancy
from distill.teaching.taught import Taught


class Pupil(NamedTuple):
    """Whom a provider is to teach, and what about.

    Attributes:
        network: the student.
        grid: its voxels.
        classes: its classes.
        asked: the questions that terms are going to ask.
        asked_unlabelled: further ones that they are going to ask about keyframes without labels.
        hidden: whether it is asked about voxels that no camera shows: of frames with, and without labels.
        tokens: all keyframes of the dataroot.
        unlabelled: those that are trained on without labels.
    """

    network: nn.Module
    grid: VoxelGrid
    classes: ClassSet
    asked: Collection[str]
    asked_unlabelled: Collection[str]
    hidden: tuple[bool, bool]
    tokens: Sequence[str]
    unlabelled: Collection[str]


class Provider(nn.Module, ABC):
    """A teacher of a run: an entry of the configuration's `teachers`, built with the values of its node, `name` and
    `pupil`.

    It may own weights: they are distributed, saved and resumed with the network's, those that require gradients are
    optimised, too, and all are left out of exports.

    Args:
        name: its own.
        weight: what its part of a term is multiplied with.

    Attributes:
        needs_depth: LiDAR depth maps on the cells of the network's depth bins (`Frame.depth`).
        needs_points: LiDAR points (`Frame.points`).
        changes: whether it says other things from step to step, so that nothing can be measured of it beforehand.
        passes_labelled: whether it leaves keyframes with labels to their labels.
        remote: whether loader workers read an object store when it is `told`; see `distill.loader`.
    """

    needs_depth: bool = False
    needs_points: bool = False
    changes: bool = False
    passes_labelled: bool = False
    remote: bool = False

    def __init__(self, name: str, weight: float) -> None:
        super().__init__()
        self.name, self.weight = name, weight

    @abstractmethod
    def holds(self, token: str) -> bool:
        """Whether it teaches this keyframe."""

    @abstractmethod
    def told(self, token: str) -> Told:
        """What a loader worker adds to a frame; arrays of NumPy."""

    def before_step(self, network: nn.Module, step: int) -> None:
        """Called before every step of the training with the student as it is then; `step` counts from 0."""

    @abstractmethod
    def taught(self, frame: Frame, prediction: Occupancy | None = None) -> Taught:
        """Its answers about a batch, on the device of the batch.

        Args:
            frame: the batch.
            prediction: what the student says of it; None outside of training, where those that change are not asked.
        """

    @abstractmethod
    def check(self, digests: Mapping[str, np.ndarray]) -> None:
        """Raise InputError unless it can teach the training keyframes, token -> digests, see `Inventory`."""

    def remarks(self) -> list[str]:
        """What is to be said before the first step, lines."""
        return []

    def facts(self) -> dict[str, Any]:
        """Who teaches: what a checkpoint keeps, JSON-ready, and must agree when it goes on."""
        return {"weight": self.weight}

    @abstractmethod
    def speakers(self) -> str:
        """Who teaches, in a few words."""
