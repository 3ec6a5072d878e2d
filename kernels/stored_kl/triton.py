"""Triton twin of `kernels.stored_kl.reference`: a program compares a few rows. Same letters.

Coefficients are multiplied one plane after the other in float32: no matrix unit that would round them to TF32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.stored_kl import Coefficients, Kept, Levels

_ROWS = 32  # of a program


def kl(student_MC: Tensor, teacher: Kept, temperature: float, row_V: Tensor | None) -> Tensor:
    """T^2 KL(teacher || student) of each row (V,)."""
    if row_V is None:
        row_V = torch.arange(len(student_MC), device=student_MC.device)
    kl_V: Tensor = _StoredKL.apply(student_MC, teacher, temperature, row_V)
    return kl_V


class _StoredKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_MC: Tensor, teacher: Kept, temperature: float, row_V: Tensor) -> Tensor:
        student_MC, row_V = student_MC.contiguous(), row_V.contiguous()
        ctx.save_for_backward(student_MC, row_V)
        ctx.teacher, ctx.temperature = teacher, temperature
        wide = torch.promote_types(student_MC.dtype, torch.float32)
        kl_V = torch.empty(len(row_V), dtype=wide, device=student_MC.device)
        _launch(_kl, kl_V, student_MC, row_V, teacher, temperature, kl_V)
        return kl_V

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None, None, None]:
        student_MC, row_V = ctx.saved_tensors
        grad_MC = torch.zeros_like(student_MC)
        _launch(_gradient, grad[0].contiguous(), student_MC, row_V, ctx.teacher, ctx.temperature, grad_MC)
        return grad_MC, None, None, None


def _launch(
    kernel: Any, grad_V: Tensor, student_MC: Tensor, row_V: Tensor, teacher: Kept, temperature: float, out: Tensor
) -> None:
    """Run a kernel on all rows; `grad_V` is of the type that it computes in."""
    by = grad_V.new_full((1,), temperature)  # a tensor, since Triton passes numbers as float32
    _in_blocks(kernel, len(row_V), student_MC.shape[1], teacher, student_MC, row_V, grad_V, by, out)


def likeliest(teacher: Kept) -> Tensor:
    """Class of each row, int64 (V,)."""
    count, channels, device = _size(teacher)
    classes_V = torch.empty(count, dtype=torch.int64, device=device)
    _in_blocks(_likeliest, count, channels, teacher, classes_V)
    return classes_V


def expected(teacher: Kept, values_CW: Tensor) -> Tensor:
    """Means (V, W)."""
    (count, channels, device), values_CW = _size(teacher), values_CW.contiguous()
    means_VW = torch.empty(count, values_CW.shape[1], dtype=values_CW.dtype, device=device)
    _in_blocks(_expected, count, channels, teacher, values_CW, means_VW, values_CW.shape[1])
    return means_VW


def _size(teacher: Kept) -> tuple[int, int, torch.device]:
    """Rows, classes, and where they are."""
    if isinstance(teacher, Tensor):
        return *teacher.shape, teacher.device
    channels = (teacher.codes_BNZC if isinstance(teacher, Levels) else teacher.mean_BZC).shape[-1]
    return len(teacher.index_V), channels, teacher.index_V.device


def _in_blocks(kernel: Any, count: int, channels: int, teacher: Kept, *more: Tensor | int) -> None:
    """Run a kernel on all rows of a teacher."""
    if count:
        read, parts = _read(teacher)
        blocks = triton.cdiv(count, _ROWS)
        kernel[(blocks,)](parts, *more, count, channels, read, _ROWS, triton.next_power_of_2(channels))


def _read(teacher: Kept) -> tuple[Any, tuple[Tensor | int, ...]]:
    """The function that reads a teacher's rows, and its first argument."""
    if isinstance(teacher, Levels):
        codes_BNZC, table_BL, index_V = teacher.codes_BNZC, teacher.table_BL, teacher.index_V
        layout = *codes_BNZC.stride()[:3], *codes_BNZC.shape[1:3], table_BL.shape[1]
        return _levels, (codes_BNZC, table_BL.contiguous(), index_V.contiguous(), *layout)
    if isinstance(teacher, Coefficients):
        parts = teacher.low_BkN, teacher.high_BhN, teacher.vectors_BkZC, teacher.mean_BZC, teacher.index_V
        layout = *teacher.low_BkN.shape[1:], teacher.high_BhN.shape[1], teacher.mean_BZC.shape[1]
        return _columns, (*(part.contiguous() for part in parts), *layout)
    return _values, (teacher.contiguous(),)


@triton.jit
def _kl(
    teacher,
    student,
    row,
    grad,
    temperature,
    out,
    count,
    channels,
    READ: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    v, there, c, mask = _block(count, channels, ROWS, BLOCK_C)
    s, t, p, q = _softened(teacher, student, row, grad, temperature, v, there, c, mask, channels, READ)
    total_p, total_q = tl.sum(p, axis=1), tl.sum(q, axis=1)
    kl = tl.sum(q * (t - s), axis=1) / total_q + tl.log(total_p) - tl.log(total_q)
    by = tl.load(temperature)
    tl.store(out + v, by * by * kl, mask=there)


@triton.jit
def _gradient(
    teacher,
    student,
    row,
    grad,
    temperature,
    out,
    count,
    channels,
    READ: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    v, there, c, mask = _block(count, channels, ROWS, BLOCK_C)
    _, _, p, q = _softened(teacher, student, row, grad, temperature, v, there, c, mask, channels, READ)
    share = tl.load(temperature) * tl.load(grad + v, mask=there, other=0)
    found = share[:, None] * (p / tl.sum(p, axis=1)[:, None] - q / tl.sum(q, axis=1)[:, None])
    at = tl.load(row + v, mask=there, other=0) * channels
    tl.store(out + at[:, None] + c[None, :], found.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _likeliest(teacher, out, count, channels, READ: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    v, there, c, mask = _block(count, channels, ROWS, BLOCK_C)
    t = READ(teacher, v, there, c, mask, channels)
    found = tl.argmax(tl.where(mask, t, float("-inf")), axis=1, tie_break_left=True)
    tl.store(out + v, found.to(tl.int64), mask=there)


@triton.jit
def _expected(
    teacher, values, out, wide, count, channels, READ: tl.constexpr, ROWS: tl.constexpr, BLOCK_C: tl.constexpr
):
    v, there, c, mask = _block(count, channels, ROWS, BLOCK_C)
    t = READ(teacher, v, there, c, mask, channels).to(out.dtype.element_ty)
    _, q = _exp(t, 1.0, mask)
    total = tl.sum(q, axis=1)
    for w in range(wide):
        value = tl.load(values + c * wide + w, mask=c < channels, other=0)
        mean = tl.sum(q * value[None, :], axis=1) / total
        tl.store(out + v.to(tl.int64) * wide + w, mean, mask=there)


@triton.jit
def _block(count, channels, ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Rows of a program and which of them there are, classes, and which of both."""
    v = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK_C)
    there = v < count
    return v, there, c, there[:, None] & (c < channels)[None, :]


@triton.jit
def _softened(teacher, student, row, grad, temperature, v, there, c, mask, channels, READ: tl.constexpr):
    """Of student and teacher, logits at a temperature less their largest, and what they are the logarithms of."""
    at = tl.load(row + v, mask=there, other=0) * channels
    s = tl.load(student + at[:, None] + c[None, :], mask=mask, other=0).to(grad.dtype.element_ty)
    t = READ(teacher, v, there, c, mask, channels).to(grad.dtype.element_ty)
    by = tl.load(temperature)
    s, p = _exp(s, by, mask)
    t, q = _exp(t, by, mask)
    return s, t, p, q


@triton.jit
def _exp(values, temperature, mask):
    largest = tl.max(tl.where(mask, values, float("-inf")), axis=1)
    values = tl.where(mask, (values - largest[:, None]) / temperature, 0)
    return values, tl.where(mask, tl.exp(values), 0)


@triton.jit
def _values(teacher, v, there, c, mask, channels):
    """Rows as they are."""
    return tl.load(teacher[0] + (v.to(tl.int64) * channels)[:, None] + c[None, :], mask=mask, other=0)


@triton.jit
def _levels(teacher, v, there, c, mask, channels):
    """Rows of codes, looked up."""
    codes, table, index, of_frame, of_column, of_layer, columns, height, levels = teacher
    i = tl.load(index + v, mask=there, other=0)
    frame, column, layer = i // (columns * height), i // height % columns, i % height
    at = frame * of_frame + column * of_column + layer * of_layer
    code = tl.load(codes + at[:, None] + c[None, :], mask=mask, other=0)
    return tl.load(table + (frame * levels)[:, None] + code.to(tl.int64), mask=mask, other=0)


@triton.jit
def _columns(teacher, v, there, c, mask, channels):
    """Rows of columns, of which a program makes what is asked for."""
    low, high, vectors, mean, index, planes, columns, wide, height = teacher
    numbers = height * channels
    i = tl.load(index + v, mask=there, other=0)
    frame, column, at = i // (columns * height), i // height % columns, (i % height * channels)[:, None] + c[None, :]
    total = tl.load(mean + (frame * numbers)[:, None] + at, mask=mask, other=0)
    for k in range(planes):
        coef = tl.load(low + (frame * planes + k) * columns + column, mask=there, other=0).to(tl.float32)
        more = tl.load(high + (frame * wide + k) * columns + column, mask=there & (k < wide), other=0).to(tl.float32)
        vector = tl.load(vectors + ((frame * planes + k) * numbers)[:, None] + at, mask=mask, other=0)
        total += (coef + 256 * more)[:, None] * vector
    return total
