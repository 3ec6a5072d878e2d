"""Hash noise: the texture of everything in the demo world, and its only source of randomness per pixel."""

from __future__ import annotations

import math

import numba

kernel = numba.njit(cache=True, fastmath=True)


@kernel
def hash_noise(x: int, y: int, z: int) -> float:
    """A number in [0, 1) for an integer lattice point; the same on every call."""
    h = ((x * 73856093) ^ (y * 19349663) ^ (z * 83492791)) & 0xFFFFFFFF
    h = (((h >> 16) ^ h) * 0x45D9F3B) & 0xFFFFFFFF
    h = (((h >> 16) ^ h) * 0x45D9F3B) & 0xFFFFFFFF
    return ((h >> 16) ^ h) / 4294967296.0


@kernel
def smooth_noise(x: float, y: float, z: float) -> float:
    """Trilinear value noise in [0, 1] with period-free unit cells."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    ix, iy, iz = int(fx), int(fy), int(fz)
    u, v, w = x - fx, y - fy, z - fz
    u, v, w = u * u * (3.0 - 2.0 * u), v * v * (3.0 - 2.0 * v), w * w * (3.0 - 2.0 * w)
    total = 0.0
    for corner in range(8):
        a, b, c = corner & 1, (corner >> 1) & 1, corner >> 2
        weight = (u if a else 1.0 - u) * (v if b else 1.0 - v) * (w if c else 1.0 - w)
        total += weight * hash_noise(ix + a, iy + b, iz + c)
    return total


@kernel
def cloud_noise(x: float, y: float) -> float:
    """Four octaves of value noise in the plane, in [0, 1]."""
    total, amplitude = 0.0, 0.5
    for octave in range(4):
        total += amplitude * smooth_noise(x, y, 7.0 * octave + 0.5)
        x, y, amplitude = 2.03 * x, 2.03 * y, 0.5 * amplitude
    return total / 0.9375
