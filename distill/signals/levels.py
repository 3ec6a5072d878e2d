"""Tables of levels: a log-probability is rounded to the nearest of a falling table, and its number there is its *code*.

Coarse tables have steps that grow with depth (docs/formulas.md 13.3): a class that is surely not there needs no digits.
Their bounds on KL_T(teacher || decoded) hold for every distribution and every combination of errors: the argument
stands in `distill.signals.voxels`, and tests/distill/signals/test_levels.py checks the numbers.

Letters: X Y Z voxel axes, C classes.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from kernels.compiled import compiled

GROWTH = 1 / 8  # of the steps of coarse tables, per nat
DEEPEST = 24.0  # nats, about: less likely classes become this unlikely
VOXEL_STEP, BEV_STEP = 0.25, 0.1  # nats, the finest: a product of 16 voxels needs more digits than they do
# {T: bound on KL_T(teacher || decoded), nats}; that at T = 4 is the cut at about 24 nats
MAX_VOXEL_KL, MAX_BEV_KL = {1: 1.8e-2, 2: 5.4e-3, 4: 6.7e-2}, {1: 2.7e-3, 2: 8.4e-4, 4: 4.3e-2}

_CELLS_PER_NAT = np.float32(64)  # cells narrower than any step hold at most one border between two levels
_ROUNDING = np.float32(1e-3)  # a log-probability may exceed 0 by this much through the teacher's own arithmetic


def coarse_levels(finest: float) -> np.ndarray:
    """Log-probabilities of a table whose steps grow from `finest` nats, falling, float32."""
    count = round(-np.expm1(-DEEPEST * GROWTH) / (GROWTH * finest))
    return (np.log1p(-GROWTH * finest * np.arange(count + 1)) / GROWTH).astype(np.float32)


class LevelTable:
    """Finds the nearest levels.

    Args:
        log_probs: falling from 0, float32 (L,), L <= 256; no two closer than 1/64 nat.
    """

    def __init__(self, log_probs: np.ndarray) -> None:
        self.log_probs = log_probs

    @cached_property
    def _borders(self) -> np.ndarray:
        return np.append(-(self.log_probs[1:] + self.log_probs[:-1]) / 2, np.float32(np.inf))

    @cached_property
    def _code_of_cell(self) -> np.ndarray:
        cells = np.arange(int(-self.log_probs[-1] * _CELLS_PER_NAT) + 1) / _CELLS_PER_NAT
        return np.searchsorted(self._borders, cells).astype(np.uint8)

    def encode(self, log_probs_XYZC: np.ndarray, stored: np.ndarray, tolerance: float) -> np.ndarray:
        """Round log-probabilities.

        Args:
            log_probs_XYZC: natural log-probabilities, float16 or float32; -inf is allowed.
            stored: what stands for each level, (L,).
            tolerance: by how much the decoded probabilities of a voxel may miss 1.

        Returns:
            (X, Y, Z, C) in the type of `stored`; in memory layer by layer.

        Raises:
            ValueError: a value is NaN, or the classes of a voxel do not sum to one.
        """
        x, y, z, c = log_probs_XYZC.shape
        stored_ZXYC = np.empty((z, x, y, c), stored.dtype)
        wrong = _encode(
            np.ascontiguousarray(log_probs_XYZC, np.float32),
            self._code_of_cell,
            self._borders,
            -self.log_probs[-1],
            stored,
            np.exp(self.log_probs),
            np.float32(tolerance),
            stored_ZXYC,
        )
        if wrong:
            raise ValueError(f"{wrong} of {x * y * z} voxels do not hold log-probabilities that sum to one")
        return stored_ZXYC.transpose(1, 2, 0, 3)


@compiled(nogil=True)
def _encode(log_probs_XYZC, code_of_cell, borders, deepest, stored, probs, tolerance, stored_ZXYC):  # type: ignore[no-untyped-def]
    """Fill what stands for the nearest levels; return the number of voxels that are no distribution."""
    X, Y, Z, C = log_probs_XYZC.shape
    wrong = 0
    for x in range(X):
        for z in range(Z):
            for y in range(Y):
                total, numbers = np.float32(0), True
                for c in range(C):
                    log_prob = log_probs_XYZC[x, y, z, c]
                    numbers &= log_prob <= _ROUNDING
                    depth = min(-log_prob, deepest) if log_prob < 0 else np.float32(0)  # NaN takes 0
                    code = code_of_cell[int(depth * _CELLS_PER_NAT)]
                    code += depth > borders[code]
                    stored_ZXYC[z, x, y, c] = stored[code]
                    total += probs[code]
                wrong += not (numbers and abs(total - np.float32(1)) <= tolerance)
    return wrong
