"""Shading: sky, sun with cast shadows, light from above, mirrored sky, haze, and the camera's development.

Deferred: the z-buffer says which shape a pixel shows; colours are then computed once per pixel, fine textures with
four sub-pixel rays.
"""

from __future__ import annotations

import math

import numpy as np

from distill.demo import materials as m
from distill.demo.ground import enter_ground, near_border
from distill.demo.noise import cloud_noise, hash_noise, kernel, smooth_noise
from distill.demo.shapes import BOX, ELLIPSOID, FAR, KIND, MATERIAL, enter, unit_frame
from distill.demo.streets import street_material
from distill.demo.textures import ground_texture, shape_texture
from distill.demo.visibility import GROUND, SKY, View, at_pixel

# Columns of `Weather.row`.
_SUN_AT, _SUN, _LIGHT, _HORIZON, _ZENITH, _CLOUDS, _HAZE, _WET, _DARK = 0, 3, 6, 9, 12, 15, 16, 17, 18

ABOVE_SCALE = 3.0  # texels per metre of the map of what lies above
_TAPS = ABOVE_SCALE * np.array([[(0.3 + 0.22 * k) * f(2.4 * k) for f in (math.cos, math.sin)] for k in range(8)])

_GAMMA = np.linspace(0.0, 1.0, 4096) ** (1.0 / 2.2)


def map_matrix(view: View) -> np.ndarray:
    """World to (column, row, depth) of a parallel view, float64 (3, 4)."""
    matrix = view.to_view[:3].copy()
    matrix[:2] *= view.scale
    matrix[:2, 3] += view.principal
    return matrix


@kernel
def _clear_sky(dx, dy, dz, w):  # type: ignore[no-untyped-def]
    """Colour of the sky without its clouds in a unit direction."""
    k = 1.0 - math.exp(-3.0 * max(dz, 0.0))
    towards = max(0.0, dx * w[0] + dy * w[1] + dz * w[2])
    clear = 1.0 - 0.9 * w[_CLOUDS] * w[_CLOUDS]
    near = towards * towards
    near = near * near
    near = near * near
    close = near**8
    glow = 0.22 * near + clear * (0.5 * close + 8.0 * close**40)
    r = w[_HORIZON] + (w[_ZENITH] - w[_HORIZON]) * k + glow * w[_SUN]
    g = w[_HORIZON + 1] + (w[_ZENITH + 1] - w[_HORIZON + 1]) * k + glow * w[_SUN + 1]
    b = w[_HORIZON + 2] + (w[_ZENITH + 2] - w[_HORIZON + 2]) * k + glow * w[_SUN + 2]
    return r, g, b, near


@kernel
def _sky(dx, dy, dz, w):  # type: ignore[no-untyped-def]
    """Colour of the sky in a unit direction."""
    r, g, b, near = _clear_sky(dx, dy, dz, w)
    if dz > 0.015:
        spread = 1.5 / (dz + 0.1)
        n = cloud_noise(dx * spread, dy * spread)
        cover = min(1.0, max(0.0, (n - 0.72 + 0.55 * w[_CLOUDS]) * 4.0)) * min(1.0, dz * 12.0)
        lit = 1.0 + 1.1 * (0.5 - n) + 0.35 * near
        r += cover * (lit * (1.05 * w[_LIGHT] + 0.3 * w[_SUN]) - r)
        g += cover * (lit * (1.05 * w[_LIGHT + 1] + 0.3 * w[_SUN + 1]) - g)
        b += cover * (lit * (1.05 * w[_LIGHT + 2] + 0.3 * w[_SUN + 2]) - b)
    return r, g, b


@kernel
def _backdrop(dx, dy, dz, w):  # type: ignore[no-untyped-def]
    """The sky with far hills and roofs in front of it."""
    azimuth = math.atan2(dy, dx)
    hill = 0.018 + 0.05 * smooth_noise(5.0 * azimuth, 0.0, 1.0) + 0.012 * smooth_noise(40.0 * azimuth, 0.0, 2.0)
    r, g, b = _sky(dx, dy, dz, w)
    if dz < hill:
        k = 0.35 * math.exp(-60.0 * w[_HAZE])
        hr, hg, hb = w[_HORIZON], w[_HORIZON + 1], w[_HORIZON + 2]
        return hr * (0.85 - 1.4 * k), hg * (0.87 - 1.2 * k), hb * (0.9 - 1.1 * k)
    return r, g, b


@kernel
def _in_shadow(shadow, to_map, x, y, z, bias):  # type: ignore[no-untyped-def]
    """Share of parallel light that is blocked at a point, bilinear between four texels."""
    u = to_map[0, 0] * x + to_map[0, 1] * y + to_map[0, 2] * z + to_map[0, 3] - 0.5
    v = to_map[1, 0] * x + to_map[1, 1] * y + to_map[1, 2] * z + to_map[1, 3] - 0.5
    depth = to_map[2, 0] * x + to_map[2, 1] * y + to_map[2, 2] * z + to_map[2, 3] - bias
    c, r = math.floor(u), math.floor(v)
    if c < 0 or r < 0 or c + 1 >= shadow.shape[1] or r + 1 >= shadow.shape[0]:
        return 0.0
    a, b = u - c, v - r
    total = 0.0
    for k in range(4):
        i, j = k >> 1, k & 1
        if shadow[r + i, c + j] < depth:
            total += (b if i else 1.0 - b) * (a if j else 1.0 - a)
    return total


@kernel
def _openness(above, to_map, x, y, z):  # type: ignore[no-untyped-def]
    """How much of the light from above arrives: eight taps within 2 m, in [0, 1]."""
    u = to_map[0, 0] * x + to_map[0, 1] * y + to_map[0, 3]
    v = to_map[1, 0] * x + to_map[1, 1] * y + to_map[1, 3]
    depth = to_map[2, 2] * z + to_map[2, 3] - 0.25
    blocked = 0.0
    for k in range(8):
        c, r = int(u + _TAPS[k, 0]), int(v + _TAPS[k, 1])
        if 0 <= c < above.shape[1] and 0 <= r < above.shape[0]:
            blocked += min(1.0, max(0.0, 2.0 * (depth - above[r, c])))
    return 1.0 - blocked / 8.0


@kernel
def _normal(kind, face, tx, ty, x, y, z):  # type: ignore[no-untyped-def]
    """Outward normal of a unit solid in its unit frame, not normalised."""
    if kind == ELLIPSOID:
        return x, y, z
    if face == 6:
        return x, y, 0.5 * (1.0 - tx) * (1.0 - 0.5 * (1.0 - tx) * (z + 1.0))
    sign = 1.0 - 2.0 * (face & 1)
    if kind == BOX and face < 2:
        return sign, 0.0, 0.5 * (1.0 - tx)
    if kind == BOX and face < 4:
        return 0.0, sign, 0.5 * (1.0 - ty)
    return 0.0, 0.0, sign


@kernel
def _ground_surface(rays, u, v, x, y, far, plan, w):  # type: ignore[no-untyped-def]
    """Texture and normal z (0 on a kerb's face) of the ground seen through (u, v), averaged over some rays."""
    ground, rows, marks = plan
    r = g = b = gloss = upright = 0.0
    patch, seam = smooth_noise(0.13 * x, 0.13 * y, 3.0), smooth_noise(0.22 * x, 0.22 * y, 5.0)
    count = 0
    for k in range(4 if far else 2):
        dx, dy, dz = at_pixel(rays, 3, u - 0.25 + 0.5 * (k & 1), v - 0.25 + 0.5 * (((k + 1) >> 1) & 1))
        t, material, face = enter_ground(ground, rays[0, 0], rays[0, 1], rays[0, 2], dx, dy, dz)
        if t >= FAR:
            continue
        detail = min(1.0, 7.0 / t)
        x, y = rays[0, 0] + t * dx, rays[0, 1] + t * dy
        if t < 30.0 and material <= m.LINE and near_border(ground, x, y):  # finer than the raster
            exact = street_material(rows, marks, x, y)
            material = exact if exact <= m.LINE else material
        tr, tg, tb, ts, _ = ground_texture(material, x, y, patch, seam, detail * detail, w[_WET])
        r, g, b, gloss, upright, count = r + tr, g + tg, b + tb, gloss + ts, upright + face, count + 1
    scale = 1.0 / max(count, 1)
    return r * scale, g * scale, b * scale, gloss * scale, 1.0 - upright * scale


@kernel
def _shape_surface(rays, u, v, far, row, look, kind, material, w):  # type: ignore[no-untyped-def]
    """Texture of a shape seen through (u, v), averaged over up to four rays, and its normal in the world."""
    frame = unit_frame(row)
    px, py, pz = rays[0, 0] - row[0], rays[0, 1] - row[1], rays[0, 2] - row[2]
    ox = frame[0] * px + frame[1] * py + frame[2] * pz
    oy = frame[3] * px + frame[4] * py + frame[5] * pz
    oz = frame[6] * px + frame[7] * py + frame[8] * pz
    fine = material == m.FACADE or material == m.STRIPES or material == m.WINDOW_BAND or material == m.BOX_BODY
    r = g = b = gloss = glow = 0.0
    nx, ny, nz = 0.0, 0.0, 1.0
    count = 0
    for k in range((5 if far else 3) if fine else 1):
        a, c = (u, v) if k == 0 else (u - 0.25 + 0.5 * (k & 1), v - 0.25 + 0.5 * ((k >> 1) & 1))
        wx, wy, wz = at_pixel(rays, 3, a, c)
        dx = frame[0] * wx + frame[1] * wy + frame[2] * wz
        dy = frame[3] * wx + frame[4] * wy + frame[5] * wz
        dz = frame[6] * wx + frame[7] * wy + frame[8] * wz
        t, face = enter(kind, row[15], row[16], ox, oy, oz, dx, dy, dz)
        if t >= FAR:
            continue
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        if k == 0:
            ux, uy, uz = _normal(kind, face, row[15], row[16], x, y, z)
            nx = frame[0] * ux + frame[3] * uy + frame[6] * uz
            ny = frame[1] * ux + frame[4] * uy + frame[7] * uz
            nz = frame[2] * ux + frame[5] * uy + frame[8] * uz
        tr, tg, tb, ts, te = shape_texture(
            material, kind, look, face, x, y, z, row[12], row[13], row[14],
            rays[0, 0] + t * wx, rays[0, 1] + t * wy, rays[0, 2] + t * wz, min(1.0, 12.0 / t), w[_DARK],
        )  # fmt: skip
        r, g, b, gloss, glow, count = r + tr, g + tg, b + tb, gloss + ts, glow + te, count + 1
    scale, length = 1.0 / max(count, 1), 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz)
    return r * scale, g * scale, b * scale, gloss * scale, glow * scale, nx * length, ny * length, nz * length


@kernel
def _rustle(nx, ny, nz, x, y, z):  # type: ignore[no-untyped-def]
    """The normal of a crown, ruffled by its leaves."""
    nx += 1.6 * (smooth_noise(4.0 * x, 4.0 * y, 4.0 * z) - 0.5)
    ny += 1.6 * (smooth_noise(4.0 * x + 31.0, 4.0 * y, 4.0 * z) - 0.5)
    nz += 1.6 * (smooth_noise(4.0 * x, 4.0 * y + 31.0, 4.0 * z) - 0.5) + 0.25
    length = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-6
    return nx / length, ny / length, nz / length


@kernel
def _light(maps, x, y, z, nx, ny, nz, leaves, standing, w):  # type: ignore[no-untyped-def]
    """Light that reaches a point: (share of the sun, share of the sky, openness to the sky)."""
    shadow, sun_map, above, above_map = maps
    facing = nx * w[0] + ny * w[1] + nz * w[2]
    facing = 0.3 + 0.7 * facing if leaves else facing  # leaves let light through
    sun = 0.0
    if facing > 0.0:
        lift, bias = (0.35, 0.6) if leaves else (0.06, 0.2)
        sun = facing * (1.0 - _in_shadow(shadow, sun_map, x + lift * nx, y + lift * ny, z + lift * nz, bias))
    opened = _openness(above, above_map, x + 2.3 * nx, y + 2.3 * ny, z + 0.1)  # clear of what the point belongs to
    low = 0.7 + 0.3 * min(1.0, max(0.0, z) / 0.8) if standing else 1.0
    bounce = 0.1 * (1.0 - nz) * max(0.0, w[2])
    return sun + bounce, (0.62 + 0.38 * nz) * (0.3 + 0.7 * opened) * low, opened


@kernel
def _mirrored(dx, dy, dz, nx, ny, nz, gloss, opened, w):  # type: ignore[no-untyped-def]
    """Sky seen in a glossy surface, Schlick-like; dim where houses would be mirrored."""
    against = -(nx * dx + ny * dy + nz * dz)
    mx, my, mz = dx + 2.0 * against * nx, dy + 2.0 * against * ny, dz + 2.0 * against * nz
    r, g, b, _ = _clear_sky(mx, my, mz, w)
    dim = 1.0 if mz > 0.12 else 0.35 + 5.0 * max(mz, 0.0)
    shine = gloss * (0.12 + 0.88 * (1.0 - max(0.0, min(1.0, against))) ** 4) * dim * (0.4 + 0.6 * opened)
    return shine * min(r, 3.0), shine * min(g, 3.0), shine * min(b, 3.0)


@kernel
def _radiance(rays, u, v, t, number, shapes, plan, maps, w):  # type: ignore[no-untyped-def]
    """Light that leaves the surface seen through (u, v) at ray length t towards the camera."""
    dx, dy, dz = at_pixel(rays, 3, u, v)
    x, y, z = rays[0, 0] + t * dx, rays[0, 1] + t * dy, rays[0, 2] + t * dz
    norm = math.sqrt(dx * dx + dy * dy + dz * dz)
    dx, dy, dz = dx / norm, dy / norm, dz / norm
    leaves = False
    if number == GROUND:
        r, g, b, gloss, nz = _ground_surface(rays, u, v, x, y, t > 12.0, plan, w)
        nx, ny, glow = 0.0, 0.0, 0.0
    else:
        solid, look, tags = shapes
        leaves = tags[number, MATERIAL] == m.LEAVES
        r, g, b, gloss, glow, nx, ny, nz = _shape_surface(
            rays, u, v, t > 15.0, solid[number], look[number], tags[number, KIND], tags[number, MATERIAL], w
        )
        if leaves:
            nx, ny, nz = _rustle(nx, ny, nz, x, y, z)
    sun, sky, opened = _light(maps, x, y, z, nx, ny, nz, leaves, number >= 0, w)
    r *= sun * w[_SUN] + sky * w[_LIGHT] + glow
    g *= sun * w[_SUN + 1] + sky * w[_LIGHT + 1] + glow
    b *= sun * w[_SUN + 2] + sky * w[_LIGHT + 2] + glow
    if gloss > 0.01:
        mr, mg, mb = _mirrored(dx, dy, dz, nx, ny, nz, gloss, opened, w)
        r, g, b = r + mr, g + mg, b + mb
    clear = math.exp(-w[_HAZE] * t * norm)
    r, g, b = clear * r, clear * g, clear * b
    veil = 1.0 - clear
    return r + veil * w[_HORIZON], g + veil * w[_HORIZON + 1], b + veil * w[_HORIZON + 2]


@kernel
def shade(image, depth, drawn, rays, shapes, plan, maps, w):  # type: ignore[no-untyped-def]
    """Fill `image` float32 (H, W, 3) with linear light.

    depth, drawn: the z-buffer; rays: the view's; shapes: (solid, look, tags); plan: (ground, street rows, crossing
    marks); maps: (sun's depth map, its matrix, depth map from above, its matrix); w: `Weather.row`.
    """
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            u, v, number = column + 0.5, row + 0.5, drawn[row, column]
            if number == SKY:
                dx, dy, dz = at_pixel(rays, 3, u, v)
                norm = math.sqrt(dx * dx + dy * dy + dz * dz)
                r, g, b = _backdrop(dx / norm, dy / norm, dz / norm, w)
            else:
                r, g, b = _radiance(rays, u, v, depth[row, column], number, shapes, plan, maps, w)
            image[row, column, 0], image[row, column, 1], image[row, column, 2] = r, g, b


@kernel
def _develop(image, drawn, exposure, seed, out):  # type: ignore[no-untyped-def]
    height, width = drawn.shape
    for r in range(height):
        for c in range(width):
            r0, r1, c0, c1 = max(r - 1, 0), min(r + 1, height - 1), max(c - 1, 0), min(c + 1, width - 1)
            own = drawn[r, c]
            edge = own != drawn[r0, c] or own != drawn[r1, c] or own != drawn[r, c0] or own != drawn[r, c1]
            keep = 0.4 if edge else 0.8
            a, b = (r + 0.5) / height - 0.5, (c + 0.5) / width - 0.5
            vignette = 1.0 - 0.35 * (a * a + b * b)
            for k in range(3):
                around = 0.25 * (image[r0, c, k] + image[r1, c, k] + image[r, c0, k] + image[r, c1, k])
                light = exposure * vignette * (keep * image[r, c, k] + (1.0 - keep) * around)
                light = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)  # Narkowicz 2015
                value = _GAMMA[int(4095.0 * min(1.0, light))]
                grain = hash_noise(r, c, seed + k) + hash_noise(r, c, seed + k + 3) - 1.0
                out[r, c, k] = np.uint8(max(0.0, min(255.0, 255.0 * value + 3.0 * grain + 0.5)))


def develop(image: np.ndarray, drawn: np.ndarray, darkness: float, seed: int) -> np.ndarray:
    """Linear light float32 (H, W, 3) to an exposed, slightly grainy uint8 (H, W, 3) photograph."""
    key = 0.26 * (1.0 - 0.55 * darkness)  # dusk stays dusky
    exposure = float(np.clip(key / np.minimum(image, 1.5).mean(), 0.35, 2.5))
    out = np.empty(image.shape, np.uint8)
    _develop(image, drawn, exposure, seed, out)
    return out
