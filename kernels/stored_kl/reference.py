"""Torch reference of the KL from what a store keeps; runs on any device. Letters as in `kernels.stored_kl`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from kernels.stored_kl import Kept


def kl(student_MC: Tensor, teacher: Kept, temperature: float, row_V: Tensor | None) -> Tensor:
    """T^2 KL(teacher || student) of each row (V,), in the student's type, float32 at least."""
    student_VC = student_MC if row_V is None else student_MC.index_select(0, row_V)
    student_VC = student_VC.to(torch.promote_types(student_VC.dtype, torch.float32))
    teacher_VC = _logits(teacher).to(student_VC.dtype)
    student_VC, teacher_VC = ((values_VC / temperature).log_softmax(-1) for values_VC in (student_VC, teacher_VC))
    return temperature**2 * F.kl_div(student_VC, teacher_VC, reduction="none", log_target=True).sum(-1)


def likeliest(teacher: Kept) -> Tensor:
    """Class of each row, int64 (V,)."""
    return _logits(teacher).argmax(-1)


def expected(teacher: Kept, values_CW: Tensor) -> Tensor:
    """Means (V, W), in the type of the values."""
    return _logits(teacher).to(values_CW.dtype).softmax(-1) @ values_CW


def _logits(teacher: Kept) -> Tensor:
    return teacher if isinstance(teacher, Tensor) else teacher.logits
