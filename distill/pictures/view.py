"""How pictures look at a grid: from above, and in perspective from behind and above the ego car.

Forward is up and left is left, whatever the frame of the grid.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from distill.grids import LIDAR_MOUNT, VoxelGrid

INK, PAPER = (38, 42, 51), (255, 255, 255)
UNSEEN, EMPTY, LINE = (231, 233, 237), (248, 249, 250), (222, 225, 230)

# The perspective camera over a grid of 80 m: where it stands and what it looks at, metres in the ego frame; vertical
# field of view.
EYE, TARGET, FIELD_OF_VIEW = (-76.0, -10.0, 66.0), (-7.0, -0.6, 0.0), 40.0
ABOVE = 100.0  # metres, where the bird is


class View:
    """A grid turned so that axis 0 is forward, axis 1 left, axis 2 up, and two cameras that look at it.

    Args:
        grid: to look at.

    Attributes:
        grid: turned; all metres here are its.
        ego: where the ego frame has its origin, (3,).
        eye, target: where the perspective camera stands, and what it looks at, (3,).
    """

    def __init__(self, grid: VoxelGrid) -> None:
        self._sideways = grid.frame == "lidar"
        if self._sideways:
            lower = (grid.lower[1], -grid.upper[0], grid.lower[2])
            grid = replace(grid, lower=lower, shape=(grid.shape[1], grid.shape[0], grid.shape[2]))
        self.grid = grid
        self.ego = -np.array(LIDAR_MOUNT) if self._sideways else np.zeros(3)
        larger = (grid.upper[0] - grid.lower[0]) / 80.0
        self.eye, self.target = larger * np.array(EYE) + self.ego, larger * np.array(TARGET) + self.ego

    def turned(self, array_XYZ: Any) -> Any:
        """An array on the grid, or None, with turned axes."""
        if array_XYZ is None or not self._sideways:
            return array_XYZ
        return array_XYZ.swapaxes(0, 1)[:, ::-1]

    def turn(self) -> np.ndarray:
        """Metres of the grid as it was given to metres of the turned grid, float64 (4, 4)."""
        return np.eye(4)[[1, 0, 2, 3]] * [[1], [-1], [1], [1]] if self._sideways else np.eye(4)

    def metres(self, index: np.ndarray) -> np.ndarray:
        """Of places (..., 3) in voxels."""
        return np.array(self.grid.lower) + index * self.grid.voxel_size

    def perspective(self, size: tuple[int, int]) -> np.ndarray:
        """Metres to (u d, v d, d) of the perspective camera, d the depth, float64 (3, 4).

        Args:
            size: (width, height) of its picture in pixels.
        """
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        focal = 0.5 * size[1] / np.tan(0.5 * np.radians(FIELD_OF_VIEW))
        intrinsics = np.array([[focal, 0, 0.5 * size[0]], [0, focal, 0.5 * size[1]], [0, 0, 1]])
        return intrinsics @ np.column_stack([rotation, -rotation @ self.eye])

    def above(self, width: int) -> np.ndarray:
        """Metres to (u, v, distance) of an orthographic camera from above, float64 (3, 4).

        Args:
            width: of its picture in pixels.
        """
        scale = width / (self.grid.upper[0] - self.grid.lower[0])
        # right is -y, down is -x
        return np.array(
            [
                [0, -scale, 0, scale * self.grid.upper[1]],
                [-scale, 0, 0, scale * self.grid.upper[0]],
                [0, 0, -1, ABOVE],
            ]
        )

    def project(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Metres (..., 3) to pixels (..., 2) of the perspective camera whose picture has this (width, height)."""
        matrix_34 = self.perspective(size)
        scaled = points @ matrix_34[:, :3].T + matrix_34[:, 3]
        return scaled[..., :2] / scaled[..., 2:]

    def floor(self, size: tuple[int, int]) -> Image.Image:
        """The bottom of the grid in perspective, with a line every 10 m, on paper of this (width, height)."""
        edges = np.arange(self.grid.lower[0], self.grid.upper[0] + 1e-6, 10.0)
        low, high, bottom = edges[0], edges[-1], self.grid.lower[2]

        def pixels(*corners: tuple[float, float]) -> list[float]:
            return self.project(np.array([(*corner, bottom) for corner in corners]), size).ravel().tolist()

        canvas = Image.new("RGB", size, PAPER)
        draw = ImageDraw.Draw(canvas)
        draw.polygon(pixels((low, low), (high, low), (high, high), (low, high)), fill=EMPTY)
        for edge in edges:
            draw.line(pixels((edge, low), (edge, high)), fill=LINE, width=2)
            draw.line(pixels((low, edge), (high, edge)), fill=LINE, width=2)
        return canvas

    def with_ego_arrow(self, pixels: np.ndarray, scale: int) -> np.ndarray:
        """A picture from above with the ego car as an arrow.

        Args:
            pixels: RGB uint8.
            scale: its pixels per voxel.
        """
        picture = Image.fromarray(pixels)
        metre = scale / self.grid.voxel_size
        outline = [(2.6, 0.0), (-1.4, 1.5), (-0.5, 0.0), (-1.4, -1.5)]
        ahead, left = self.grid.upper[0] - self.ego[0], self.grid.upper[1] - self.ego[1]
        corners = [((left - y) * metre, (ahead - x) * metre) for x, y in outline]
        ImageDraw.Draw(picture).polygon(corners, fill=INK, outline=PAPER, width=max(1, scale // 2))
        return np.asarray(picture)
