"""Voxels seen from above and in perspective.

Pictures are RGB uint8 (rows, columns, 3). Letters: X Y Z voxel axes, F visible voxel faces.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from distill.classes import ClassSet
from distill.grids import VoxelGrid
from distill.pictures.view import EMPTY, UNSEEN, View

# The recording car seen from the ego origin below its rear axle: (lower, upper) corners in metres and RGB.
EGO_CAR = (
    ((-0.9, -0.9, 0.25), (3.2, 0.9, 0.95), (250, 250, 252)),
    ((-0.6, -0.78, 0.95), (1.9, 0.78, 1.55), (60, 66, 78)),
)

# The six faces of a cube as (axis, side, shade): light comes from above, a little from behind and the right.
FACES = ((0, 0, 0.76), (0, 1, 0.60), (1, 0, 0.64), (1, 1, 0.60), (2, 0, 0.50), (2, 1, 1.0))


class Painter:
    """Draws keyframes on one grid.

    Args:
        grid: of the arrays to draw.
        classes: their class set.

    Attributes:
        grid, classes: as given.
        view: how the grid is looked at.
    """

    def __init__(self, grid: VoxelGrid, classes: ClassSet) -> None:
        self.grid, self.classes, self.view = grid, classes, View(grid)

    def bev_image(self, semantics_XYZ: np.ndarray, mask_XYZ: np.ndarray | None, scale: int) -> np.ndarray:
        """The topmost occupied voxel of each column, brighter the higher it is, with the ego car.

        Args:
            semantics_XYZ: class ids, uint8 on the grid.
            mask_XYZ: bool; columns without a voxel in it are grey and voxels outside it are not drawn. None: all are.
            scale: pixels per voxel.

        Returns:
            RGB uint8 (X * scale, Y * scale, 3).
        """
        semantics_XYZ, mask_XYZ = self.view.turned(semantics_XYZ), self.view.turned(mask_XYZ)
        shown_XYZ = self._shown(semantics_XYZ, mask_XYZ)
        height = semantics_XYZ.shape[2]
        top_XY = height - 1 - shown_XYZ[:, :, ::-1].argmax(2)
        class_XY = np.take_along_axis(semantics_XYZ, top_XY[..., None], 2)[..., 0]
        shade_XY = 0.82 + 0.18 * (top_XY / (height - 1)) ** 0.5
        image = self.classes.palette[class_XY] * shade_XY[..., None]
        image[~shown_XYZ.any(2)] = EMPTY
        if mask_XYZ is not None:
            image[~mask_XYZ.any(2)] = UNSEEN
        # rows run backwards along x, columns backwards along y
        pixels = image[::-1, ::-1].astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
        return self.view.with_ego_arrow(pixels, scale)

    def perspective_image(
        self, semantics_XYZ: np.ndarray, mask_XYZ: np.ndarray | None, size: tuple[int, int]
    ) -> np.ndarray:
        """A perspective view of the coloured voxels from behind and above the ego car.

        Faces are painted from far to near. The distance to a voxel's centre is an exact order: along any ray through a
        regular grid it only grows.

        Args:
            semantics_XYZ: class ids, uint8 on the grid.
            mask_XYZ: bool; voxels outside it are not drawn. None: all are.
            size: (width, height) of the picture in pixels.

        Returns:
            RGB uint8 (height, width, 3).
        """
        semantics_XYZ, mask_XYZ = self.view.turned(semantics_XYZ), self.view.turned(mask_XYZ)
        shown_XYZ = self._shown(semantics_XYZ, mask_XYZ)
        quads, colours, distances = zip(
            self._ego_quads(), *(self._voxel_quads(semantics_XYZ, shown_XYZ, *face) for face in FACES), strict=True
        )
        order_F = np.argsort(-np.concatenate(distances), kind="stable")
        # drawn twice as large and reduced: smooth edges
        canvas = self.view.floor((2 * size[0], 2 * size[1]))
        draw = ImageDraw.Draw(canvas)
        pixels_F42 = self.view.project(np.concatenate(quads)[order_F], canvas.size)
        fills = np.concatenate(colours)[order_F].astype(np.uint8)
        lines = (fills * 0.82).astype(np.uint8)
        for corners, fill, line in zip(pixels_F42.reshape(-1, 8).tolist(), fills.tolist(), lines.tolist(), strict=True):
            draw.polygon(corners, fill=tuple(fill), outline=tuple(line))
        return np.asarray(canvas.resize(size, Image.Resampling.BOX))

    def _shown(self, semantics_XYZ: np.ndarray, mask_XYZ: np.ndarray | None) -> np.ndarray:
        occupied_XYZ = semantics_XYZ != self.classes.free
        return occupied_XYZ if mask_XYZ is None else occupied_XYZ & mask_XYZ

    def _voxel_quads(
        self, semantics_XYZ: np.ndarray, shown_XYZ: np.ndarray, axis: int, side: int, shade: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Corners (F, 4, 3) in metres, colours (F, 3) and distances (F,) of the bare faces turned to the camera."""
        step = 2 * side - 1
        padded_XYZ = np.pad(shown_XYZ, 1)
        neighbour_XYZ = np.roll(padded_XYZ, -step, axis)[1:-1, 1:-1, 1:-1]
        index_F3 = np.argwhere(shown_XYZ & ~neighbour_XYZ)
        faces_camera_F = (
            step * (self.view.eye - self.view.metres(index_F3 + 0.5))[:, axis] > 0.5 * self.view.grid.voxel_size
        )
        index_F3 = index_F3[faces_camera_F]
        colours_F3 = self.classes.palette[semantics_XYZ[tuple(index_F3.T)]] * shade
        colours_F3 *= _openness(padded_XYZ, index_F3)[:, None] if axis == 2 else 1.0
        distances_F = np.linalg.norm(self.view.metres(index_F3 + 0.5) - self.view.eye, axis=1)
        return self.view.metres(index_F3[:, None] + _square(axis, side)), colours_F3, distances_F

    def _ego_quads(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ego car's faces turned to the camera, in the form of `_voxel_quads`."""
        quads, colours, distances = [], [], []
        for near, far, colour in EGO_CAR:
            lower, upper = near + self.view.ego, far + self.view.ego
            size = np.subtract(upper, lower)
            for axis, side, shade in FACES:
                if (2 * side - 1) * (self.view.eye[axis] - (lower, upper)[side][axis]) > 0:
                    quads.append(lower + _square(axis, side) * size)
                    colours.append(np.multiply(colour, shade))
                    distances.append(np.linalg.norm(np.subtract(self.view.eye, np.add(lower, size / 2))))
        return np.array(quads), np.array(colours), np.array(distances)


def _openness(padded_XYZ: np.ndarray, index_F3: np.ndarray) -> np.ndarray:
    """Ambient light on top faces: 1 in the open, darker beside higher voxels."""
    x, y, z = index_F3.T + 1
    around = sum(padded_XYZ[x + dx, y + dy, z + 1] for dx in (-1, 0, 1) for dy in (-1, 0, 1))
    return 1 - 0.07 * np.minimum(around, 4)


def _square(axis: int, side: int) -> np.ndarray:
    """The corners (4, 3) of one face of the unit cube, in circular order."""
    corners = np.full((4, 3), side)
    corners[:, [other for other in range(3) if other != axis]] = [(0, 0), (0, 1), (1, 1), (1, 0)]
    return corners
