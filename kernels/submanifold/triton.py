"""Triton twin of `kernels.submanifold.reference`: an implicit GEMM without atomics. Same letters, same results."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS, _DEPTH = 64, 64, 32  # of the output tile, and of the products summed in one step


def gather_gemm(x_VI: Tensor, source_JN: Tensor, weight_JIO: Tensor) -> Tensor:
    """Sum over j of x[source[j, n]] @ weight[j], float32 (N, O); source -1 adds nothing."""
    taps, rows = source_JN.shape
    inputs, outputs = weight_JIO.shape[1:]
    out_NO = torch.empty(rows, outputs, device=x_VI.device)
    _gather_gemm[(triton.cdiv(rows, _ROWS), triton.cdiv(outputs, _COLUMNS))](
        x_VI.contiguous(),
        source_JN.contiguous(),
        weight_JIO.contiguous(),
        out_NO,
        rows,
        taps,
        inputs,
        outputs,
        _ROWS,
        _COLUMNS,
        _DEPTH,
        _precision(x_VI.device),
    )
    return out_NO


def _precision(device: torch.device) -> str:
    """Three TF32 products make one of float32 accuracy, on GPUs that have them."""
    tensor_cores = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "tf32x3" if tensor_cores else "ieee"


@triton.jit
def _gather_gemm(
    x,
    source,
    weight,
    out,
    rows,
    taps,
    inputs,
    outputs,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    steps = tl.cdiv(inputs, DEPTH)
    for step in range(taps * steps):
        tap = step // steps
        i = (step % steps) * DEPTH + tl.arange(0, DEPTH)
        row = tl.load(source + tap * rows + n, mask=n < rows, other=-1).to(tl.int64)
        mask = (row >= 0)[:, None] & (i < inputs)[None, :]
        feature = tl.load(x + row[:, None] * inputs + i[None, :], mask=mask, other=0.0)
        mask = (i < inputs)[:, None] & (o < outputs)[None, :]
        kernel = tl.load(weight + (tap * inputs + i)[:, None] * outputs + o[None, :], mask=mask, other=0.0)
        total = tl.dot(feature, kernel, total, input_precision=PRECISION)
    mask = (n < rows)[:, None] & (o < outputs)[None, :]
    tl.store(out + n[:, None].to(tl.int64) * outputs + o[None, :], total, mask=mask)
