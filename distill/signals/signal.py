"""What a signal is: one kind of teacher knowledge, from the teacher's answer to what a loss term is told.

A signal says what it takes from a teacher (`say`), which arrays of a store keep it (`arrays`, `encode`, `decode`), how
it travels to a student (a `Record`, whose fields declare their geometry), and what it answers there (`listen`). Writer,
reader, stream and evaluation go through the signals of a store and know none of them.

Letters: B batch, X Y Z voxel axes, C classes, V voxels and K columns of the whole batch. Voxels and columns are named
by their flat position in (B, X, Y, Z) and (B, X, Y).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import Field, dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from distill.errors import InputError
from distill.frame import Frame, Record
from distill.gaussians import Gaussians
from distill.grids import VoxelGrid
from distill.signals.arrays import StoredArray

# the metadata of a field that is an array, alike for all keyframes: a store keeps it once, under that name
CONSTANT: Mapping[str, Any] = MappingProxyType({"constant": True})
NOTHING_MORE: Mapping[str, Any] = MappingProxyType({})


class Reading(Protocol):
    """The arrays of a store as they stand for one keyframe."""

    def __call__(self, name: str) -> np.ndarray:
        """What an array holds of it."""

    def slices(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The same without slices of zeros, see `StoredArray.unpack_slices`."""


class TeacherPrediction(NamedTuple):
    """What a teacher says about a batch.

    Attributes:
        voxel_log_probs_BXYZC: natural log-probabilities, normalised over the classes, of any floating-point type; not
            looked at where the teacher covers nothing.
        covered_BXYZ: bool, the voxels that the teacher has modelled; None: all.
        gaussians: one per sample, from which the voxels follow; None for a teacher without.
        more: what else it knows, by the name of the signal that keeps it, one item per sample.
        kept_BXYZ: bool, of which voxels a store keeps what is said; None: all.
    """

    voxel_log_probs_BXYZC: Tensor
    covered_BXYZ: Tensor | None = None
    gaussians: list[Gaussians] | None = None
    more: Mapping[str, Any] = NOTHING_MORE
    kept_BXYZ: Tensor | None = None

    def said(self) -> Tensor | None:
        """Of which voxels a store keeps anything, bool (B, X, Y, Z); None: all."""
        if self.kept_BXYZ is None or self.covered_BXYZ is None:
            return self.covered_BXYZ if self.kept_BXYZ is None else self.kept_BXYZ
        return self.kept_BXYZ & self.covered_BXYZ

    def semantics(self, free: int) -> Tensor:
        """The likeliest class of each voxel, uint8 (B, X, Y, Z); `free` where nothing is covered, so nothing found."""
        semantics_BXYZ = self.voxel_log_probs_BXYZC.argmax(-1).to(torch.uint8)
        return semantics_BXYZ if self.covered_BXYZ is None else semantics_BXYZ.masked_fill(~self.covered_BXYZ, free)


@dataclass(frozen=True)
class Signal(ABC):
    """One kind of teacher knowledge in a store; a frozen dataclass whose further fields are JSON-ready, or described,
    or `CONSTANT`.

    Attributes:
        name: its own, in stores, configurations and `TeacherPrediction.more`.
        answers: the questions that a term may ask. Of "voxels" and "columns" the answers are log-probabilities, of
            "covered" whether the teacher has modelled voxels; a store knows the latter of every teacher. Of "features"
            and "voxel_features" it is a `FeatureMap`.
        class_ids: whose names a student must share, beside the grid.
        comparable: whether it means the same of whatever teacher; if not, nobody listens to several at once.
        grid: where the teacher's voxels lie.
        classes: class names, id order.
    """

    name: ClassVar[str]
    answers: ClassVar[frozenset[str]]
    class_ids: ClassVar[slice] = slice(None)
    comparable: ClassVar[bool] = True

    grid: VoxelGrid
    classes: tuple[str, ...]

    @classmethod
    def of(cls, teacher: Any, grid: VoxelGrid, classes: tuple[str, ...]) -> Self:
        """The signal in a store of this teacher.

        Raises:
            InputError: the teacher does not have it; what is said continues "teacher NAME ...".
        """
        return cls(grid, classes)

    def describe(self) -> dict[str, Any]:
        """Its fields, beside grid and classes, and whatever a reader of the store should know; JSON-ready."""
        return {each.name: getattr(self, each.name) for each in self._own() if each.metadata != CONSTANT}

    def constants(self) -> dict[str, np.ndarray]:
        """What a store keeps of it once, by the names of its fields, which are those of the arrays."""
        return {each.name: getattr(self, each.name) for each in self._own() if each.metadata == CONSTANT}

    @classmethod
    def from_description(
        cls,
        description: Mapping[str, Any],
        grid: VoxelGrid,
        classes: tuple[str, ...],
        read_constant: Callable[[str], np.ndarray],
    ) -> Self:
        """The inverse of `describe` and `constants`; lists become tuples.

        Args:
            description: of `describe`.
            grid, classes: its own.
            read_constant: name -> what the store keeps once.

        Raises:
            KeyError: a field is not described.
        """
        values = {
            each.name: read_constant(each.name) if each.metadata == CONSTANT else description[each.name]
            for each in cls._own()
        }
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(grid, classes, **values | lists)

    @classmethod
    def _own(cls) -> list[Field[Any]]:
        return [each for each in fields(cls) if each.name not in ("grid", "classes")]

    @abstractmethod
    def arrays(self) -> Sequence[StoredArray]:
        """What keeps it in a store."""

    def say(self, prediction: TeacherPrediction, frame: Frame, free: int) -> list[Any]:
        """What is to be kept of a batch, one item per keyframe, computed on the teacher's device, moved to the CPU.

        Unless overridden, that is `prediction.more[name]`.

        Args:
            prediction: float32, without gradients; uniform where nothing is covered.
            frame: the batch that it is about, on the teacher's device.
            free: id of the free class.

        Raises:
            InputError: the prediction does not have it.
        """
        said, count = prediction.more.get(self.name), len(prediction.voxel_log_probs_BXYZC)
        if said is None or len(said) != count:
            found = "nothing" if said is None else f"{len(said)} items"
            raise InputError(
                f"signal {self.name}: the teacher's prediction has {found} in more[{self.name!r}] for {count} "
                "keyframes: give one item per keyframe, or leave it out of dump.signals"
            )
        return [_array(item) if isinstance(item, Tensor) else item for item in said]

    def check(self, said: Any, frame: Frame, voxel_log_probs_XYZC: Tensor, covered_XYZ: Tensor | None) -> None:
        """Whether a student will hear what the teacher says; asked about the first keyframe of a dump.

        Unless overridden, whatever can be kept is right.

        Args:
            said: item 0 of `say`.
            frame: the batch.
            voxel_log_probs_XYZC: what the teacher says of the first keyframe.
            covered_XYZ: bool, where it says anything; None: everywhere.

        Raises:
            InputError: it will not.
            ValueError: `encode` refuses it.
        """
        self.encode(said)

    def encode(self, said: Any) -> dict[str, np.ndarray]:
        """An item of `say` as it lies in the arrays, by their names. Called in the threads of a writer.

        Unless overridden, the item is what lies in an array of the signal's own name.

        Raises:
            ValueError: it cannot be kept.
        """
        return {self.name: said}

    @abstractmethod
    def decode(self, read: Reading) -> Record:
        """What travels to a student. Called in loader workers.

        Args:
            read: name of an array -> what it holds of the keyframe.
        """

    def absent(self) -> Record:
        """What travels instead, of a frame that the store does not teach; unless overridden, of arrays of zeros."""
        return self.decode(_Zeros({array.name: array for array in self.arrays()}))

    def fits(self, grid: VoxelGrid) -> bool:
        """Whether it can answer on a student's grid."""
        return grid == self.grid

    @abstractmethod
    def listen(self, record: Any, frame: Frame, grid: VoxelGrid, free: int, asked: Set[str]) -> Any:
        """Its answers about a batch: an object with a method for each of `answers`.

        Beside "voxels" and "columns", `kept_voxels` and `kept_columns` may give the same as the store keeps it, for
        `kernels.stored_kl`; where there are none, that is given log-probabilities.

        Args:
            record: what has travelled, as a batch on the device of the frame.
            frame: the batch.
            grid: of the student.
            free: id of the free class.
            asked: the questions that are going to be asked of the teacher.
        """


class _Zeros:
    """Reads zeros from arrays."""

    def __init__(self, arrays: Mapping[str, StoredArray]) -> None:
        self.arrays = arrays

    def __call__(self, name: str) -> np.ndarray:
        return np.zeros(self.arrays[name].shape, self.arrays[name].dtype)

    def slices(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        array = self.arrays[name]
        return np.empty(0, np.intp), np.empty((0, *array.stored_shape[1:]), array.dtype)


def _array(values: Tensor) -> np.ndarray:
    """On the CPU; bfloat16, which NumPy lacks, as float32."""
    return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()
