"""CPU twin of `kernels.splat.reference`, compiled: loops over the points of a tile fill vector registers.

Letters as in `kernels.splat`, L the points of a tile.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from kernels.compiled import compiled
from kernels.splat.tiles import POINTS, Splats, Tiles

_LANES = 32  # floats per turn of a compiled loop
_SHARES = 8  # of the tiles, per thread; tiles differ in work
_HALF, _ONE, _LOG2_E = np.float32(0.5), np.float32(1), np.float32(np.log2(np.e))
# Powers are computed 2^25 times too large: those under 2^-126, denormal as float32, are normal numbers then, which no
# processor slows down for. Binary logarithms; from 2^-150.25 on all round to 0.
_SHIFT, _LEAST, _MOST = 25, np.float32(-150.25), np.float32(102)
_UNSHIFT, _NORMAL = np.float32(2.0**-_SHIFT), np.float32(2.0 ** (_SHIFT - 126))
# 2^x between -1/2 and 1/2 to 1e-8
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = (
    np.polynomial.Chebyshev.interpolate(np.exp2, 6, (-0.5, 0.5))
    .convert(kind=np.polynomial.Polynomial)
    .coef.astype(np.float32)
)


def splat(points_V3: Tensor, cells_V3: Tensor, splats: Splats, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """Sums (V, S) and emptiness (V,), on as many threads as torch uses."""
    sums_VS = np.empty((len(points_V3), splats.features_GS.shape[1]), np.float32)
    empty_V = np.empty(len(points_V3), np.float32)
    arrays = (
        points_V3.numpy(),
        cells_V3.numpy(),
        Splats._make(field.numpy() for field in splats),
        Tiles._make(field.numpy() for field in tiles),
        sums_VS,
        empty_V,
    )
    bounds = np.linspace(0, len(tiles.begin_T), _SHARES * torch.get_num_threads() + 1).astype(np.int64)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(lambda start, stop: _splat(start, stop, *arrays), bounds[:-1], bounds[1:]))
    return torch.from_numpy(sums_VS), torch.from_numpy(empty_V)


@compiled(nogil=True, error_model="numpy")
def _splat(start, stop, points_V3, cells_V3, splats, tiles, sums_VS, empty_V):
    x_3L, cell_3L = np.zeros((3, POINTS), np.float32), np.zeros((3, POINTS), np.int32)
    p_L, weighted_L = np.empty(POINTS, np.float32), np.empty(POINTS, np.float32)
    empty_L, sums_SL = np.empty(POINTS, np.float32), np.empty((sums_VS.shape[1], POINTS), np.float32)
    for t in range(start, stop):
        order = tiles.order_V[tiles.begin_T[t] : tiles.end_T[t]]
        for i, v in enumerate(order):
            for axis in range(3):
                x_3L[axis, i], cell_3L[axis, i] = points_V3[v, axis], cells_V3[v, axis]
        empty_L[:], sums_SL[:] = 1, 0
        # whole vector registers; what stands behind the last point is never read
        lanes = (len(order) + _LANES - 1) // _LANES * _LANES
        for g in tiles.gaussian_P[tiles.first_T[t] : tiles.last_T[t]]:
            _evaluate(splats, g, x_3L, cell_3L, lanes, p_L, weighted_L)
            for i in range(lanes):
                # 1 minus any less is 1
                empty_L[i] *= _ONE - max(p_L[i], _NORMAL) * _UNSHIFT
            for s in range(len(sums_SL)):
                feature = splats.features_GS[g, s]
                for i in range(lanes):
                    sums_SL[s, i] += feature * weighted_L[i]
        for i, v in enumerate(order):
            empty_V[v] = empty_L[i]
            for s in range(len(sums_SL)):
                sums_VS[v, s] = sums_SL[s, i] * _UNSHIFT


@compiled(nogil=True, error_model="numpy")
def _evaluate(splats, g, x_3L, cell_3L, count, p_L, weighted_L):
    """Write p and weight * p of Gaussian g for the first `count` points, both 2^_SHIFT times too large."""
    mean_x, mean_y, mean_z = splats.means_G3[g]
    xx, yy, zz, xy, xz, yz = splats.precisions_G6[g]
    cell_x, cell_y, cell_z = splats.cells_G3[g]
    radius, weight = splats.radius_G[g], splats.weights_G[g]
    bits_L = np.empty(POINTS, np.int32)
    power_L = bits_L.view(np.float32)
    for i in range(count):
        x, y, z = x_3L[0, i] - mean_x, x_3L[1, i] - mean_y, x_3L[2, i] - mean_z
        exponent = -_HALF * (xx * x * x + yy * y * y + zz * z * z) - (xy * x * y + xz * x * z + yz * y * z)
        exponent = min(max(exponent * _LOG2_E, _LEAST), _MOST)
        whole = np.floor(exponent + _HALF)
        near = (abs(cell_3L[0, i] - cell_x) <= radius) & (abs(cell_3L[1, i] - cell_y) <= radius)
        near &= abs(cell_3L[2, i] - cell_z) <= radius
        # the bits of the float32 2^(whole + _SHIFT), and of zero
        bits_L[i] = (np.int32(whole) + np.int32(127 + _SHIFT)) << np.int32(23) if near else np.int32(0)
        p_L[i] = exponent - whole
        weighted_L[i] = weight if near else np.float32(0)
    for i in range(count):
        rest = p_L[i]
        p_L[i] = _C0 + rest * (_C1 + rest * (_C2 + rest * (_C3 + rest * (_C4 + rest * (_C5 + rest * _C6)))))
        p_L[i] *= power_L[i]
    for i in range(count):
        # rounds denormal ones to the multiples of 2^-149 that they are: the sum holds no more digits
        p_L[i] = p_L[i] if p_L[i] >= _NORMAL else (p_L[i] + _NORMAL) - _NORMAL
        weighted_L[i] *= p_L[i]
