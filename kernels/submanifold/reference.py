"""Torch reference of the gather-GEMM; runs on any device. Letters as in `kernels.submanifold`."""

from __future__ import annotations

from torch import Tensor


def gather_gemm(x_VI: Tensor, source_JN: Tensor, weight_JIO: Tensor) -> Tensor:
    """Sum over j of x[source[j, n]] @ weight[j], float32 (N, O); source -1 adds nothing."""
    out_NO = x_VI.new_zeros(source_JN.shape[1], weight_JIO.shape[2])
    for source_N, weight_IO in zip(source_JN, weight_JIO, strict=True):
        receiver_P = (source_N >= 0).nonzero().squeeze(1)
        gathered_PI = x_VI.index_select(0, source_N.index_select(0, receiver_P))
        out_NO.index_add_(0, receiver_P, gathered_PI @ weight_IO)
    return out_NO
