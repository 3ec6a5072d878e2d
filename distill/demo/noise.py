"""Hash noise: the texture of everything in the demo world, and its only source of randomness per pixel."""

from __future__ import annotations

import math

from kernels.compiled import compiled

kernel = compiled(fastmath=True)


_X, _Y, _Z = 73856093, 19349663, 83492791  # Teschner et al. 2003, optimized spatial hashing


@kernel
def _scramble(h: int) -> float:
    h &= 0xFFFFFFFF
    h = (((h >> 16) ^ h) * 0x45D9F3B) & 0xFFFFFFFF
    h = (((h >> 16) ^ h) * 0x45D9F3B) & 0xFFFFFFFF
    return ((h >> 16) ^ h) / 4294967296.0


@kernel
def hash_noise(x: int, y: int, z: int) -> float:
    """A number in [0, 1) for an integer lattice point; the same on every call."""
    return _scramble((x * _X) ^ (y * _Y) ^ (z * _Z))


@kernel
def _edge(x: int, yz: int, u: float) -> float:
    low = _scramble(x ^ yz)
    return low + u * (_scramble((x + _X) ^ yz) - low)


@kernel
def smooth_noise(x: float, y: float, z: float) -> float:
    """Trilinear value noise in [0, 1] on unit cells."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    u, v, w = x - fx, y - fy, z - fz
    u, v, w = u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v), w * w * (3.0 - 2.0 * w)
    ix, iy, iz = int(fx) * _X, int(fy) * _Y, int(fz) * _Z
    near = _edge(ix, iy ^ iz, u)
    near += v * (_edge(ix, (iy + _Y) ^ iz, u) - near)
    if w == 0.0:
        return near
    far = _edge(ix, iy ^ (iz + _Z), u)
    far += v * (_edge(ix, (iy + _Y) ^ (iz + _Z), u) - far)
    return near + w * (far - near)


@kernel
def cloud_noise(x: float, y: float) -> float:
    """Four octaves of value noise in the plane, in [0, 1]."""
    total, amplitude = 0.0, 0.5
    for octave in range(4):
        total += amplitude * smooth_noise(x, y, 7.0 * octave)
        x, y, amplitude = 2.03 * x, 2.03 * y, 0.5 * amplitude
    return total / 0.9375
