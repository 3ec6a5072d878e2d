"""Frames joined with what teachers say about them, by sample token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.utils.data import Dataset

from distill.frame import Frame
from distill.nuscenes.frames import Draw, FrameDataset
from distill.teaching import Provider


class TeacherStream(Dataset[Frame]):
    """`frames` with their teachers, mirrored together.

    Args:
        frames: what to join.
        teachers: without any, frames pass as they are.
    """

    def __init__(self, frames: FrameDataset, teachers: Sequence[Provider]) -> None:
        self.frames = frames
        self.teachers = teachers
        self.remote = any(teacher.remote for teacher in teachers)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, drawn: int | Draw) -> Frame:
        frame, mirror = self.frames.load(drawn)
        if self.teachers:
            frame = replace(frame, teachers={teacher.name: teacher.told(frame.token) for teacher in self.teachers})
        return frame.mirrored(mirror)
