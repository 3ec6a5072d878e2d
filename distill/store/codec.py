"""Log-probabilities on 256 levels.

A log-probability is rounded to the nearest of 256 levels, fine where a class is likely and coarse where it is not, like
the A-law of telephony (ITU-T G.711). The store holds the level itself, exact in float16, so that any zarr reader gets
log-probabilities; a loader carries its number, the uint8 *code*, and the device looks the level up.

Error bound. With x = -ln p, T the temperature, w = softmax(-x / T) and u = (rounding error of x) / T,

    KL(teacher || decoded) = ln E_w[exp u] - E_w[u] <= sum_c w_c phi(u_c),    phi(u) = exp u - 1 - u,

and |u| is at most half a step. Maximised over every distribution of 18 classes and every rounding, this stays below
`MAX_KL` (tests/distill/store/test_codec.py computes it). Probabilities under exp(-20), exact zeros too, read as exp(-20).

Letters: X Y Z voxel axes, C classes.
"""

from __future__ import annotations

import numba
import numpy as np

# (step, count): from 0 downwards, `count` levels `step` nats apart.
_SEGMENTS = (
    (3 / 128, 144),
)
# The bound on KL(teacher || decoded) in nats, per voxel, for T = 1 and T = 2.
MAX_KL = {1: 1e-4, 2: 1e-3}


def _levels() -> np.ndarray:
    steps = np.concatenate([np.full(count, step) for step, count in _SEGMENTS])
    return (0.0 - np.concatenate([[0.0], np.cumsum(steps)])).astype(np.float32)


# The log-probability of each code, float32 (256,), falling; every one is a float16 number.
LOG_PROBS = _levels()

# Finding the nearest level: cells of 1/64 nat, narrower than any step, hold at most one border between two levels.
_CELLS_PER_NAT = 64
_DEEPEST = -float(LOG_PROBS[-1])
_BORDERS = np.append(-(LOG_PROBS[1:] + LOG_PROBS[:-1]) / 2, np.float32(np.inf))
_CODE_OF_CELL = np.searchsorted(_BORDERS, np.arange(int(_DEEPEST * _CELLS_PER_NAT) + 1) / _CELLS_PER_NAT).astype(np.uint8)
# A log-probability may exceed 0 by this much through the teacher's own arithmetic.
_ROUNDING = 1e-3
# By how much the decoded probabilities of a voxel may miss 1: rounding explains less than half of it.
_SUM_TOLERANCE = 0.05


def encode_voxels(log_probs_XYZC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round log-probabilities to the levels.

    Args:
        log_probs_XYZC: natural log-probabilities, float16 or float32; -inf is allowed.

    Returns:
        levels_CZXY: float16, the storage order: neighbours of one class lie together.
        semantics_XYZ: uint8, argmax over classes of the input (the first of equals).

    Raises:
        ValueError: a value is NaN, or the classes of a voxel do not sum to one.
    """
    x, y, z, c = log_probs_XYZC.shape
    levels_CZXY = np.empty((c, z, x, y), np.float16)
    semantics_XYZ = np.empty((x, y, z), np.uint8)
    wrong = _encode(
        np.ascontiguousarray(log_probs_XYZC, np.float32),
        _CODE_OF_CELL,
        _BORDERS,
        LOG_PROBS.astype(np.float16).view(np.uint16),
        np.exp(LOG_PROBS),
        levels_CZXY.view(np.uint16),
        semantics_XYZ,
    )
    if wrong:
        raise ValueError(f"{wrong} of {x * y * z} voxels do not hold log-probabilities that sum to one")
    return levels_CZXY, semantics_XYZ


@numba.njit(cache=True, nogil=True)
def _encode(log_probs_XYZC, code_of_cell, borders, levels, probs, bits_CZXY, semantics_XYZ):  # type: ignore[no-untyped-def]
    """Fill the bits of the float16 levels and the argmax; return the number of voxels that are no distribution."""
    X, Y, Z, C = log_probs_XYZC.shape
    wrong = 0
    for z in range(Z):
        for x in range(X):
            for y in range(Y):
                total, best = np.float32(0), 0
                for c in range(C):
                    log_prob = log_probs_XYZC[x, y, z, c]
                    if log_prob > log_probs_XYZC[x, y, z, best]:
                        best = c
                    if not log_prob <= _ROUNDING:  # NaN too
                        total = np.float32(np.inf)
                        break
                    depth = max(min(-log_prob, _DEEPEST), np.float32(0))
                    code = code_of_cell[int(depth * _CELLS_PER_NAT)]
                    code += depth > borders[code]
                    bits_CZXY[c, z, x, y] = levels[code]
                    total += probs[code]
                semantics_XYZ[x, y, z] = best
                wrong += abs(total - 1) > _SUM_TOLERANCE
    return wrong


def round_probs(probs: np.ndarray) -> np.ndarray:
    """Round probabilities to 8 significant bits: float32 that compresses well, a relative error of at most 1/256.

    Raises:
        ValueError: a value is NaN or negative, or the classes (last axis) do not sum to one.
    """
    if not (np.all(probs >= 0) and np.allclose(probs.sum(-1), 1, rtol=0, atol=_SUM_TOLERANCE)):
        raise ValueError("the BEV probabilities are no distributions over the classes")
    bits = np.maximum(probs, np.exp(LOG_PROBS[-1]), dtype=np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).view(np.float32)


def code_table(log_probs: np.ndarray) -> np.ndarray:
    """The code of each float16 bit pattern, uint8 (65536,), for the levels `log_probs` (256,)."""
    table = np.zeros(1 << 16, np.uint8)
    table[log_probs.astype(np.float16).view(np.uint16)] = np.arange(len(log_probs))
    return table


def decode_codes(levels_CZXY: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Turn stored levels (float16) into codes, uint8 (X, Y, Z, C), with a `code_table`."""
    c, z, x, y = levels_CZXY.shape
    codes_XYZC = np.empty((x, y, z, c), np.uint8)
    _decode(levels_CZXY.view(np.uint16), table, codes_XYZC)
    return codes_XYZC


@numba.njit(cache=True, nogil=True)
def _decode(bits_CZXY, table, codes_XYZC):  # type: ignore[no-untyped-def]
    C, Z, X, Y = bits_CZXY.shape
    for x in range(X):
        for z in range(Z):
            for c in range(C):
                for y in range(Y):
                    codes_XYZC[x, y, z, c] = table[bits_CZXY[c, z, x, y]]
