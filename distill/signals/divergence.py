"""How far what a store keeps of voxels is from what the teacher said.

Letters: V voxels, C classes.
"""

from __future__ import annotations

import math

import numpy as np

from distill.signals.arrays import StoredArray, bit_planes
from kernels.compiled import compiled

TEMPERATURES = (1, 2, 4)
_LEAST = np.float32(-64)  # of log-probabilities: below, at T = 4 too, no float32 sum would change
_SUM_TOLERANCE = np.float32(0.05)  # by how much a teacher's probabilities may miss 1


def kl_array() -> StoredArray:
    """Keeps what `divergence` returns."""
    return StoredArray("voxel_kl", "float32", (2, len(TEMPERATURES)), (0, 1), bit_planes(4))


def divergence(teacher_VC: np.ndarray, decoded_VC: np.ndarray, covered_V: np.ndarray) -> np.ndarray:
    """KL_T(teacher || decoded) of the covered voxels at T = 1, 2 and 4: mean and maximum, nats, float32 (2, 3).

    Args:
        teacher_VC: natural log-probabilities, float32; -inf is allowed.
        decoded_VC: logits, float32.
        covered_V: bool; no other voxel is looked at. Without any all is 0.

    Raises:
        ValueError: the teacher's classes do not sum to one, or anything is NaN.
    """
    sums_3, largest_3, wrong = _divergence(teacher_VC, decoded_VC, covered_V)
    if wrong:
        raise ValueError(f"{wrong} of {len(covered_V)} voxels do not hold log-probabilities that sum to one")
    return np.stack([sums_3 / max(int(covered_V.sum()), 1), largest_3]).astype(np.float32)


@compiled(nogil=True)
def _divergence(teacher_VC, decoded_VC, covered_V):  # type: ignore[no-untyped-def]
    V, C = teacher_VC.shape
    sums_3, largest_3, wrong = np.zeros(3), np.zeros(3), 0
    for v in range(V):
        if not covered_V[v]:
            continue
        top = decoded_VC[v, 0]
        for c in range(1, C):
            top = max(top, decoded_VC[v, c])
        # of each temperature: sum of p, sum of q, sum of p (x - y), with p = exp(x / T), q = exp(y / T)
        p1, p2, p4 = np.float32(0), np.float32(0), np.float32(0)
        q1, q2, q4 = np.float32(0), np.float32(0), np.float32(0)
        d1, d2, d4 = np.float32(0), np.float32(0), np.float32(0)
        for c in range(C):
            x = max(teacher_VC[v, c], _LEAST)
            y = decoded_VC[v, c] - top
            p, q = np.float32(math.exp(x * np.float32(0.25))), np.float32(math.exp(y * np.float32(0.25)))
            difference = x - y
            p4 += p
            q4 += q
            d4 += p * difference
            p, q = p * p, q * q
            p2 += p
            q2 += q
            d2 += p * difference
            p, q = p * p, q * q
            p1 += p
            q1 += q
            d1 += p * difference
        if not abs(p1 - np.float32(1)) <= _SUM_TOLERANCE or not q1 >= np.float32(1):
            wrong += 1
            continue
        kl_1 = d1 / p1 + math.log(q1) - math.log(p1)
        kl_2 = d2 / p2 / 2 + math.log(q2) - math.log(p2)
        kl_4 = d4 / p4 / 4 + math.log(q4) - math.log(p4)
        sums_3[0] += kl_1
        sums_3[1] += kl_2
        sums_3[2] += kl_4
        largest_3[0] = max(largest_3[0], kl_1)
        largest_3[1] = max(largest_3[1], kl_2)
        largest_3[2] = max(largest_3[2], kl_4)
    return sums_3, largest_3, wrong
