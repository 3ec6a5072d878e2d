"""Log-probabilities on 256 levels.

A log-probability is rounded to the nearest of 256 levels, fine where a class is likely and coarse where it is not, like
the A-law of telephony (ITU-T G.711). The store holds the level itself, exact in float16, so that any zarr reader gets
log-probabilities; a loader carries its number, the uint8 *code*, and the device looks the level up.

Error bound. Let p be a distribution over C classes, T the temperature, s = p^(1/T), Z = sum_c s_c, and u_c = (error of
-ln p_c) / T. With phi(u) = exp u - 1 - u and ln y <= y - 1,

    KL_T(p || decoded) = ln sum_c (s_c / Z) exp u_c - sum_c (s_c / Z) u_c <= sum_c s_c phi(u_c) / Z.

If every class satisfies, for some mu,  s phi(u) <= b s - mu s^T + mu / C,  summing over classes (sum_c s_c^T = 1) gives
KL_T <= b: for every distribution and every combination of rounding errors. The levels below satisfy it with C = 18 and
the b of `MAX_KL`; tests/distill/store/test_codec.py checks that. Probabilities under exp(-20), exact zeros too, become
exp(-20); the bound counts them.

Letters: X Y Z voxel axes, C classes.
"""

from __future__ import annotations

import numpy as np

from kernels.compiled import compiled

# (step in nats, count): how the levels descend from 0; steps as wide as the bound permits, round where values abound.
_SEGMENTS = (
    (11 / 512, 12),
    (3 / 128, 135),
    (1 / 32, 42),
    (3 / 64, 15),
    (1 / 16, 15),
    (3 / 32, 8),
    (1 / 8, 11),
    (1 / 4, 6),
    (1 / 2, 6),
    (1, 3),
    (2, 2),
)
# T: the bound on KL_T(teacher || decoded) of a voxel, nats. Larger T would need levels below exp(-20).
MAX_KL = {1: 1e-4, 2: 1e-3}

# Significant bits of a stored BEV probability.
PROBABILITY_BITS = 7


def _levels() -> np.ndarray:
    steps = np.concatenate([np.full(count, step) for step, count in _SEGMENTS])
    return (0.0 - np.concatenate([[0.0], np.cumsum(steps)])).astype(np.float32)


# The log-probability of each code, float32 (256,), falling; every one is a float16 number.
LOG_PROBS = _levels()

# Finding the nearest level: cells of 1/64 nat, narrower than any step, hold at most one border between two levels.
_CELLS_PER_NAT = np.float32(64)
_DEEPEST = -LOG_PROBS[-1]
_BORDERS = np.append(-(LOG_PROBS[1:] + LOG_PROBS[:-1]) / 2, np.float32(np.inf))
_CELLS = np.arange(int(_DEEPEST * _CELLS_PER_NAT) + 1) / _CELLS_PER_NAT
_CODE_OF_CELL = np.searchsorted(_BORDERS, _CELLS).astype(np.uint8)
# A log-probability may exceed 0 by this much through the teacher's own arithmetic.
_ROUNDING = np.float32(1e-3)
# By how much the decoded probabilities of a voxel may miss 1: rounding explains less than half of it.
_SUM_TOLERANCE = np.float32(0.05)


def encode_voxels(log_probs_XYZC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round log-probabilities to the levels.

    Args:
        log_probs_XYZC: natural log-probabilities, float16 or float32; -inf is allowed.

    Returns:
        levels_XYZC: float16; in memory layer by layer.
        semantics_XYZ: uint8, argmax over classes of the input (the first of equals).

    Raises:
        ValueError: a value is NaN, or the classes of a voxel do not sum to one.
    """
    x, y, z, c = log_probs_XYZC.shape
    levels_ZXYC = np.empty((z, x, y, c), np.float16)
    semantics_XYZ = np.empty((x, y, z), np.uint8)
    wrong = _encode(
        np.ascontiguousarray(log_probs_XYZC, np.float32),
        _CODE_OF_CELL,
        _BORDERS,
        LOG_PROBS.astype(np.float16).view(np.uint16),
        np.exp(LOG_PROBS),
        levels_ZXYC.view(np.uint16),
        semantics_XYZ,
    )
    if wrong:
        raise ValueError(f"{wrong} of {x * y * z} voxels do not hold log-probabilities that sum to one")
    return levels_ZXYC.transpose(1, 2, 0, 3), semantics_XYZ


@compiled(nogil=True)
def _encode(log_probs_XYZC, code_of_cell, borders, levels, probs, bits_ZXYC, semantics_XYZ):  # type: ignore[no-untyped-def]
    """Fill the bits of the float16 levels and the argmax; return the number of voxels that are no distribution."""
    X, Y, Z, C = log_probs_XYZC.shape
    wrong = 0
    for x in range(X):
        for z in range(Z):
            for y in range(Y):
                total, best, highest = np.float32(0), 0, log_probs_XYZC[x, y, z, 0]
                numbers = True
                for c in range(C):
                    log_prob = log_probs_XYZC[x, y, z, c]
                    if log_prob > highest:
                        best, highest = c, log_prob
                    numbers &= log_prob <= _ROUNDING
                    depth = min(-log_prob, _DEEPEST) if log_prob < 0 else np.float32(0)  # NaN takes 0
                    code = code_of_cell[int(depth * _CELLS_PER_NAT)]
                    code += depth > borders[code]
                    bits_ZXYC[z, x, y, c] = levels[code]
                    total += probs[code]
                semantics_XYZ[x, y, z] = best
                wrong += not (numbers and abs(total - np.float32(1)) <= _SUM_TOLERANCE)
    return wrong


def round_probs(probs: np.ndarray) -> np.ndarray:
    """Round probabilities to `PROBABILITY_BITS`: float32 that compresses well, within `MAX_KL` of the teacher.

    The relative error is at most 1/128, so phi(u) < 4e-5 for every class; those under `LEAST_PROB` become it.

    Raises:
        ValueError: a value is NaN or negative, or the classes (last axis) do not sum to one.
    """
    if not (np.all(probs >= 0) and np.allclose(probs.sum(-1), 1, rtol=0, atol=float(_SUM_TOLERANCE))):
        raise ValueError("the BEV probabilities are no distributions over the classes")
    return round_bits(np.maximum(probs, LEAST_PROB, dtype=np.float32), PROBABILITY_BITS)


def round_bits(values: np.ndarray, count: int) -> np.ndarray:
    """Round finite numbers to `count` < 24 significant bits, float32; the relative error is at most 2^-count."""
    bits, dropped = np.ascontiguousarray(values, np.float32).view(np.uint32), 24 - count
    return ((bits + (1 << (dropped - 1))) >> dropped << dropped).view(np.float32)


# The smallest stored BEV probability: exp(-20), rounded.
LEAST_PROB = float(round_bits(np.exp(LOG_PROBS[-1:]), PROBABILITY_BITS)[0])


def code_table(log_probs: np.ndarray) -> np.ndarray:
    """The code of each float16 bit pattern, uint8 (65536,), for the levels `log_probs` (256,)."""
    table = np.zeros(1 << 16, np.uint8)
    table[log_probs.astype(np.float16).view(np.uint16)] = np.arange(len(log_probs))
    return table


def decode_codes(levels_XYZC: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Turn levels (float16, best laid out as `encode_voxels` does) into uint8 codes with a `code_table`."""
    codes_XYZC = np.empty(levels_XYZC.shape, np.uint8)
    _decode(levels_XYZC.view(np.uint16).transpose(2, 0, 1, 3), table, codes_XYZC)
    return codes_XYZC


@compiled(nogil=True)
def _decode(bits_ZXYC, table, codes_XYZC):  # type: ignore[no-untyped-def]
    Z, X, Y, C = bits_ZXYC.shape
    for x in range(X):
        for z in range(Z):
            for y in range(Y):
                for c in range(C):
                    codes_XYZC[x, y, z, c] = table[bits_ZXYC[z, x, y, c]]
