"""What a term is told by a teacher about a batch.

Letters: B batch, X Y Z voxel axes, C classes, V voxels and K columns of the whole batch. Voxels and columns are named
by their flat position in (B, X, Y, Z) and (B, X, Y).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from functools import cached_property
from typing import Any, Literal, Protocol

from torch import Tensor

from distill.frame import Frame, Told
from distill.grids import VoxelGrid
from distill.networks.prediction import FeatureMap
from kernels.stored_kl import Kept, likeliest


class Speaker(Protocol):
    """What answers from a record: a signal of a store (`distill.signals.Signal`), or a network."""

    @property
    def name(self) -> str:
        """Under which its records travel."""

    def listen(self, record: Any, frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]) -> Any:
        """Its answers about a batch: an object with a method for each question; see `Signal.listen`."""


class Taught:
    """A teacher's answers; each question is answered by one of those who speak for it, such as its signals.

    Args:
        name: of the teacher.
        weight: what its part of a term is multiplied with.
        told: of the batch.
        answers: question -> who answers it.
        frame: the batch.
        grid: of the student.
        free: id of the free class.
    """

    def __init__(
        self,
        name: str,
        weight: float,
        told: Told,
        answers: Mapping[str, Speaker],
        frame: Frame,
        grid: VoxelGrid,
        free: int,
    ) -> None:
        self.name, self.weight, self.told = name, weight, told
        self.answers, self.frame, self.grid, self.free = answers, frame, grid, free
        self._listeners: dict[str, Any] = {}

    @property
    def taught_B(self) -> Tensor:  # noqa: N802 - the shape suffix
        """Which frames it teaches, bool (B,)."""
        return self.told.taught

    def ask(self, question: str) -> Callable[..., Any]:
        """The answer to a question: a function of flat positions, but for maps of features."""
        return getattr(self._listener(question), question)

    def kept(self, question: Literal["voxels", "columns"], index: Tensor) -> Kept:
        """What it says of voxels or columns as its store keeps it, for `kernels.stored_kl`; else log-probabilities."""
        listener = self._listener(question)
        answer: Callable[[Tensor], Kept] = getattr(listener, f"kept_{question}", getattr(listener, question))
        return answer(index)

    def _listener(self, question: str) -> Any:
        speaker = self.answers[question]
        if speaker.name not in self._listeners:
            record = self.told.signals[speaker.name]
            self._listeners[speaker.name] = speaker.listen(
                record, self.frame, self.grid, self.free, frozenset(self.answers)
            )
        return self._listeners[speaker.name]

    def voxels(self, index_V: Tensor) -> Tensor:
        """Log-probabilities of voxels, float32 (V, C)."""
        return self.ask("voxels")(index_V)

    def called(self, index_V: Tensor) -> Tensor:
        """The likeliest classes of voxels, int64 (V,)."""
        return likeliest(self.kept("voxels", index_V))

    def columns(self, index_K: Tensor) -> Tensor:
        """Log-probabilities of columns by the BEV rule, float32 (K, C)."""
        return self.ask("columns")(index_K)

    def seen(self, index_V: Tensor) -> Tensor:
        """Whether cameras see voxels through what it finds (docs/formulas.md 4.9), bool (V,)."""
        return self.ask("seen")(index_V)

    def features(self) -> FeatureMap:
        """Its map of BEV features, float32 (B, C, X, Y) at its own stride; zeros of frames that it does not teach."""
        return self.ask("features")()

    def voxel_features(self) -> FeatureMap:
        """Its map of voxel features, float32 (B, C, X, Y, Z), alike."""
        return self.ask("voxel_features")()

    def covered(self, index: Tensor) -> Tensor:
        """Whether it says anything of voxels, bool in the shape of `index`."""
        if "covered" in self.answers:
            return self.ask("covered")(index)
        return self._covered[index]

    def in_columns(self, index: Tensor) -> Tensor:
        """Whether voxels have a part in what it says of their columns, bool in the shape of `index`."""
        found_BXYZ = self.told.in_columns
        return self.covered(index) if found_BXYZ is None else found_BXYZ.flatten()[index]

    @cached_property
    def _covered(self) -> Tensor:
        return self.told.covered.flatten()
