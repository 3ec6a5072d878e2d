"""Who teaches: providers of what teachers say about a frame (`stored`), and what a term is told by them (`taught`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from distill.frame import Frame, Told
from distill.teaching.taught import Taught


class Provider(Protocol):
    """A teacher of a run: an entry of the configuration's `teachers`.

    It is built with the values of its node and with `name`, `grid`, `classes` (of the student) and `asked`, the
    questions that terms are going to ask it, `tokens`, all keyframes of the dataroot, `unlabelled`, those that are
    trained on without labels, and `asked_unlabelled`, what terms are going to ask about these beside.

    Attributes:
        name: its own.
        weight: what its part of a term is multiplied with.
    """

    name: str
    weight: float

    def holds(self, token: str) -> bool:
        """Whether it teaches this keyframe."""
        ...

    def told(self, token: str) -> Told:
        """What a loader worker adds to a frame; arrays of NumPy."""
        ...

    def taught(self, frame: Frame) -> Taught:
        """Its answers about a batch, on the device of the batch."""
        ...

    def check(self, digests: Mapping[str, np.ndarray]) -> None:
        """Raise InputError unless it can teach the keyframes with these digests, token -> see `Inventory`."""
        ...

    def remarks(self) -> list[str]:
        """What is to be said before the first step, lines."""
        ...

    def facts(self) -> dict[str, Any]:
        """Who teaches: what a checkpoint keeps, JSON-ready, and must agree when it goes on."""
        ...

    def speakers(self) -> str:
        """Who teaches, in a few words."""
        ...
