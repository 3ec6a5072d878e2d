"""The order in which frames are trained on, resumable at any step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch.utils.data import Sampler

from distill.errors import InputError
from distill.nuscenes.frames import Draw


class ResumableSampler(Sampler[list[Draw]]):
    """Batches of one rank: a permutation that depends on (seed, epoch) alone, from a given step on.

    Every rank gets the same number of batches; the frames that do not fill a last global batch are left out of
    that epoch.

    Args:
        count: number of frames.
        batch_size: frames per step over all ranks; a multiple of `world_size`.
        seed: of the permutation.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_step = 0

    def start_at(self, epoch: int, step: int) -> None:
        """Let the next iteration be `epoch` from its `step`-th batch on."""
        self.epoch = epoch
        self.first_step = step

    @property
    def steps_per_epoch(self) -> int:
        """Batches in a whole epoch."""
        return self.count // self.batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch - self.first_step

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in range(self.first_step, self.steps_per_epoch):
            yield self._batch(step)[self.rank :: self.world_size]

    def _batch(self, step: int) -> list[Draw]:
        """The global batch of a step of this epoch."""
        order = permutation(self.count, self.seed, self.epoch)
        return [Draw(frame, self.epoch) for frame in order[step * self.batch_size : (step + 1) * self.batch_size]]


class MixedSampler(ResumableSampler):
    """Batches that hold a share of labelled frames, and in the rest frames without labels.

    An epoch has as many steps as that of a `ResumableSampler`. Each kind of frames is gone through in permutations of
    its own, one after another, that do not end with epochs: the smaller kind comes more often, newly augmented.

    Args:
        labelled: of each frame, whether it has labels.
        share: of labelled frames in a global batch, rounded to whole frames.
        batch_size, seed, rank, world_size: see `ResumableSampler`.

    Raises:
        InputError: a kind that batches should hold has no frame, or batches have no room for it.
    """

    def __init__(
        self, labelled: Sequence[bool], share: float, batch_size: int, seed: int, rank: int, world_size: int
    ) -> None:
        super().__init__(len(labelled), batch_size, seed, rank, world_size)
        count = int(share * batch_size + 0.5)
        said = f"trainer.labelled_share={share} puts {count} labelled keyframes into a batch of {batch_size}"
        if not count or (count == batch_size and share < 1):
            raise InputError(f"{said}: set another share, larger batches, or null for keyframes as they come")
        self.kinds = []
        for kind, drawn, name in ((True, count, "has labels"), (False, batch_size - count, "is without labels")):
            frames = [frame for frame, given in enumerate(labelled) if given == kind]
            if drawn and not frames:
                raise InputError(f"{said}, but no training keyframe {name}: set trainer.labelled_share=null")
            if drawn:
                self.kinds.append((frames, drawn))

    def _batch(self, step: int) -> list[Draw]:
        number = self.epoch * self.steps_per_epoch + step
        return [self._at(frames, number * drawn + place) for frames, drawn in self.kinds for place in range(drawn)]

    def _at(self, frames: list[int], position: int) -> Draw:
        """What stands at a position of the endless sequence of permutations."""
        turn, place = divmod(position, len(frames))
        return Draw(frames[permutation(len(frames), self.seed, turn)[place]], turn)


@lru_cache(maxsize=8)
def permutation(count: int, seed: int, number: int) -> list[int]:
    """A random order of so many frames that depends on its arguments alone."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + number)).tolist()
