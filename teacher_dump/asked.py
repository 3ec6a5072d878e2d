"""Frames as a teacher is asked about them: with what it reads of a keyframe itself, if it reads anything.

It reads in the loader's workers, so that files are read beside the teacher's work and several at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch.utils.data import Dataset

from distill.frame import IN_SENSOR, Frame, declared
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.index import Keyframes


@dataclass(frozen=True)
class AskedFrame(Frame):
    """A frame with what its teacher has read.

    Attributes:
        given: what `Teacher.read` returned; of a batch, a list.
    """

    given: Any = declared(IN_SENSOR)


class AskedFrames(Dataset[AskedFrame]):
    """Frames of keyframes with what a teacher reads of them.

    Args:
        frames: without it.
        keyframes: of the frames.
        read: see `teacher_dump.teachers.Teacher`.
    """

    def __init__(self, frames: FrameDataset, keyframes: Keyframes, read: Callable[[Keyframes, int], Any]) -> None:
        self.frames, self.keyframes, self.read = frames, keyframes, read

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> AskedFrame:
        frame = self.frames[index]
        known = {each.name: getattr(frame, each.name) for each in fields(frame)}
        return AskedFrame(**known, given=self.read(self.keyframes, index))
