"""Labels that are there and not learnt from: what a teacher is worth where labels are few."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from distill.errors import InputError
from distill.grids import VoxelGrid
from distill.nuscenes.keyframe import Keyframe
from distill.nuscenes.labels import LabelSource


class Withheld:
    """`labels` without those of some whole scenes, a `LabelSource`: as if their files were not there.

    Scenes are withheld in the order of the SHA-256 of seed and name, so that which ones depends on nothing but names,
    share and seed, and a larger share withholds those of a smaller one and more.

    Args:
        labels: all of them.
        scenes: names of the scenes that are shared out; in any order, a name may come more than once.
        share: how much of them is withheld, rounded to whole scenes.
        seed: another one, other scenes.

    Attributes:
        scenes: names of those that are withheld.

    Raises:
        InputError: these would be all, or none.
    """

    def __init__(self, labels: LabelSource, scenes: Iterable[str], share: float, seed: int) -> None:
        names = sorted(set(scenes), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        count = int(share * len(names) + 0.5)
        if not 0 < count < len(names):
            raise InputError(
                f"trainer.withheld: share={share} withholds {count} of {len(names)} training scenes: choose one that "
                "withholds at least one and leaves at least one, or set trainer.withheld=null"
            )
        self.labels = labels
        self.scenes = frozenset(names[:count])

    @property
    def grid(self) -> VoxelGrid:
        """Where the labels lie."""
        return self.labels.grid

    def path(self, keyframe: Keyframe) -> Path | None:
        """The file with the labels of a keyframe; None for one of a withheld scene."""
        return None if keyframe.scene in self.scenes else self.labels.path(keyframe)

    def read(self, keyframe: Keyframe) -> dict[str, np.ndarray] | None:
        """The labels of a keyframe, None if it has none or they are withheld."""
        return None if keyframe.scene in self.scenes else self.labels.read(keyframe)

    def unlabelled(self) -> dict[str, np.ndarray]:
        """What stands for labels that are not there, withheld or not."""
        return self.labels.unlabelled()
