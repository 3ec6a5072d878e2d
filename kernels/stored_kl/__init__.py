"""What losses ask of a teacher's voxels as a store keeps them, above all KL(teacher || student) (docs/formulas.md 4.3).

On a GPU levels are looked up and coefficients multiplied where they are compared: nothing as large as the teacher's
distributions is made, nor is anything kept for the gradient, which works them out again. On the CPU that would save no
time: there the columns that several terms ask for are decoded once, and PyTorch's own softmax is as quick as can be.

Letters: M rows of the student, V of them that are taught, C classes, W values of a class; of the teacher B frames, N
columns of a frame, Z voxels of a column, L levels, k planes, of which the first h need two bytes. A voxel is named by
its flat position in (B, N, Z).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from kernels.dispatch import twin


@dataclass(frozen=True)
class Levels:
    """What a store keeps of voxels as the numbers of levels.

    Attributes:
        codes_BNZC: uint8; any strides, but the classes of a voxel lie side by side.
        table_BL: float32, the log-probability of each code; stores may differ from frame to frame.
        index_V: int64, which voxels.
    """

    codes_BNZC: Tensor
    table_BL: Tensor
    index_V: Tensor

    @cached_property
    def logits(self) -> Tensor:
        """Log-probabilities, rounded one by one, float32 (V, C)."""
        _, columns, height, _ = self.codes_BNZC.shape
        column_V, layer_V = self.index_V // height, self.index_V % height
        frame_V = column_V // columns
        codes_VC = self.codes_BNZC[frame_V, column_V % columns, layer_V].int()
        place_VC = codes_VC + (self.table_BL.shape[1] * frame_V).int().unsqueeze(1)
        return self.table_BL.flatten().index_select(0, place_VC.flatten()).view(place_VC.shape)


@dataclass(frozen=True)
class Coefficients:
    """What a store keeps of voxels as coefficients of columns (docs/formulas.md 13.1).

    Attributes:
        low_BkN: int8; a coefficient is low + 256 high.
        high_BhN: int8, of the first h planes; that of the others is 0.
        vectors_BkZC: float32, what a coefficient of 1 adds to a column.
        mean_BZC: float32, the column where all are 0.
        index_V: int64, which voxels.
        decode: the logits of these voxels, float32 (V, C), from whoever may have them already.
    """

    low_BkN: Tensor
    high_BhN: Tensor
    vectors_BkZC: Tensor
    mean_BZC: Tensor
    index_V: Tensor
    decode: Callable[[], Tensor]

    @cached_property
    def logits(self) -> Tensor:
        """Logits of the voxels, float32 (V, C)."""
        return self.decode()


# what a teacher says of V voxels or columns: as a store keeps it, or finite logits or log-probabilities (V, C)
Kept: TypeAlias = Levels | Coefficients | Tensor


def stored_kl(student_MC: Tensor, teacher: Kept, temperature: float, row_V: Tensor | None = None) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of each row, float32 at least (V,).

    Differentiable with respect to the student; deterministic on every device.

    Args:
        student_MC: logits or log-probabilities, of any floating-point type.
        teacher: gets no gradient.
        temperature: T.
        row_V: int64, which of the student's rows are compared, none of them twice; None: all in their order.
    """
    teacher = teacher.detach() if isinstance(teacher, Tensor) else teacher
    kl_V: Tensor = twin(__name__, student_MC.device).kl(student_MC, teacher, temperature, row_V)
    return kl_V


def likeliest(teacher: Kept) -> Tensor:
    """The class of each voxel, of equals the first, int64 (V,)."""
    classes_V: Tensor = twin(__name__, _device(teacher)).likeliest(teacher)
    return classes_V


def expected(teacher: Kept, values_CW: Tensor) -> Tensor:
    """The means over the teacher's distributions (T = 1) of values that classes have, in their type (V, W)."""
    means_VW: Tensor = twin(__name__, _device(teacher)).expected(teacher, values_CW)
    return means_VW


def _device(teacher: Kept) -> torch.device:
    return teacher.device if isinstance(teacher, Tensor) else teacher.index_V.device
