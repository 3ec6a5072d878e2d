"""Pictures of occupancy: bird's-eye view, perspective view, and a panel of cameras above both.

Pictures are RGB uint8 (rows, columns, 3), whatever the frame of the grid: forward is up, left is left.
Letters: X Y Z voxel axes, K visible voxels, F visible voxel faces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from distill.classes import ClassSet
from distill.gaussian_picture import draw_gaussians
from distill.gaussians import Gaussians
from distill.grids import LIDAR_MOUNT, VoxelGrid
from distill.nuscenes.layout import CAMERAS

INK, PAPER = (38, 42, 51), (255, 255, 255)
UNSEEN, EMPTY, LINE = (231, 233, 237), (248, 249, 250), (222, 225, 230)

# The recording car seen from the ego origin below its rear axle: (lower, upper) corners in metres and RGB.
EGO_CAR = (
    ((-0.9, -0.9, 0.25), (3.2, 0.9, 0.95), (250, 250, 252)),
    ((-0.6, -0.78, 0.95), (1.9, 0.78, 1.55), (60, 66, 78)),
)

# The perspective camera over a grid of 80 m: where it stands and what it looks at, metres in the ego frame; vertical
# field of view.
EYE, TARGET, FIELD_OF_VIEW = (-76.0, -10.0, 66.0), (-7.0, -0.6, 0.0), 40.0

# The six faces of a cube as (axis, side, shade): light comes from above, a little from behind and the right.
FACES = ((0, 0, 0.76), (0, 1, 0.60), (1, 0, 0.64), (1, 1, 0.60), (2, 0, 0.50), (2, 1, 1.0))

# The layout of a panel, pixels; a camera is as wide as a column.
WIDTH, GAP, MARGIN, HEADER, FONT = 600, 12, 28, 58, 19
VIEW = (WIDTH, WIDTH * 2 // 3)  # of the perspective view
ABOVE = 100.0  # metres, where the bird is


class Painter:
    """Draws keyframes on one grid.

    Inside, arrays and metres are those of `grid` turned: axis 0 is forward, axis 1 left, axis 2 up.

    Args:
        grid: of the arrays to draw.
        classes: their class set.
    """

    def __init__(self, grid: VoxelGrid, classes: ClassSet) -> None:
        self.classes = classes
        self.sideways = grid.frame == "lidar"
        if self.sideways:
            lower = (grid.lower[1], -grid.upper[0], grid.lower[2])
            grid = replace(grid, lower=lower, shape=(grid.shape[1], grid.shape[0], grid.shape[2]))
        self.grid = grid
        self.ego = -np.array(LIDAR_MOUNT) if self.sideways else np.zeros(3)  # where the ego frame has its origin
        larger = (grid.upper[0] - grid.lower[0]) / 80.0
        self.eye, self.target = larger * np.array(EYE) + self.ego, larger * np.array(TARGET) + self.ego

    def panel(
        self,
        cameras: Sequence[np.ndarray],
        columns: Mapping[str, np.ndarray],
        mask_XYZ: np.ndarray | None,
        gaussians: tuple[Gaussians, np.ndarray] | None = None,
    ) -> np.ndarray:
        """One picture of a keyframe: six cameras, below them perspective and bird's-eye view of each column, a legend.

        Args:
            cameras: six RGB uint8 pictures of one size in the order of `CAMERAS`.
            columns: title -> class ids, uint8 on the grid, such as ground truth, teacher, student; any number.
            mask_XYZ: bool, the voxels to show, usually mask_camera; the rest is grey. None: all are.
            gaussians: one more column, and the pose (4, 4) that brings LIDAR_TOP metres into the frame of the grid.

        Returns:
            RGB uint8.
        """
        views = {title: self._voxel_views(semantics_XYZ, mask_XYZ) for title, semantics_XYZ in columns.items()}
        if gaussians is not None:
            views["Gaussians"] = self._gaussian_views(*gaussians)
        blocks = [
            _camera_block(cameras),
            _columns_block(views),
            self._legend_block(mask_XYZ is not None),
        ]
        height = sum(block.height for block in blocks) + MARGIN * (len(blocks) + 1)
        width = max(block.width for block in blocks) + 2 * MARGIN
        canvas = Image.new("RGB", (width, height), PAPER)
        top = MARGIN
        for block in blocks:
            canvas.paste(block, ((canvas.width - block.width) // 2, top))
            top += block.height + MARGIN
        return np.asarray(canvas)

    def _voxel_views(self, semantics_XYZ: np.ndarray, mask_XYZ: np.ndarray | None) -> list[np.ndarray]:
        """Perspective and bird's-eye view of voxels."""
        perspective = self.voxel_image(semantics_XYZ, mask_XYZ, VIEW)
        return [perspective, self.bev_image(semantics_XYZ, mask_XYZ, WIDTH // self.grid.shape[0])]

    def _gaussian_views(self, gaussians: Gaussians, lidar2grid: np.ndarray) -> list[np.ndarray]:
        """Perspective and bird's-eye view of Gaussians."""
        turn = np.eye(4)[[1, 0, 2, 3]] * [[1], [-1], [1], [1]] if self.sideways else np.eye(4)
        canvas = Image.new("RGB", VIEW, PAPER)
        self._draw_floor(ImageDraw.Draw(canvas), VIEW)
        perspective = draw_gaussians(
            np.asarray(canvas), gaussians, self._view_matrix(VIEW) @ turn @ lidar2grid, self.classes
        )
        paper = np.full((WIDTH, WIDTH, 3), EMPTY, dtype=np.uint8)
        scale = WIDTH / (self.grid.upper[0] - self.grid.lower[0])
        # an orthographic camera from above: right is -y, down is -x, and the third row is the distance to it
        above = np.array(
            [
                [0, -scale, 0, scale * self.grid.upper[1]],
                [-scale, 0, 0, scale * self.grid.upper[0]],
                [0, 0, -1, ABOVE],
            ]
        )
        bev = draw_gaussians(paper, gaussians, above @ turn @ lidar2grid, self.classes, perspective=False)
        return [perspective, self._with_ego_arrow(bev, WIDTH // self.grid.shape[0])]

    def _legend_block(self, masked: bool) -> Image.Image:
        """The colour of every class, in two rows."""
        entries = [
            (name.replace("_", " "), colour)
            for place, (name, colour) in enumerate(zip(self.classes.names, self.classes.colours, strict=True))
            if place != self.classes.free
        ]
        entries += [("not seen", UNSEEN)] if masked else []
        font, swatch, line = ImageFont.load_default(FONT), 32, 34
        per_row = -(-len(entries) // 2)
        widths = [swatch + max(font.getlength(name) for name, _ in entries[place::per_row]) for place in range(per_row)]
        block = Image.new("RGB", (3 * WIDTH + 2 * GAP, 2 * line), PAPER)
        space = (block.width - sum(widths)) / (per_row - 1)
        draw = ImageDraw.Draw(block)
        for place, (name, colour) in enumerate(entries):
            row, column = divmod(place, per_row)
            left, top = round(sum(widths[:column]) + column * space), row * line
            draw.rounded_rectangle((left, top + 6, left + 22, top + 28), 4, fill=colour, outline=LINE)
            draw.text((left + swatch, top + line // 2), name, INK, font, anchor="lm")
        return block

    def bev_image(self, semantics_XYZ: np.ndarray, mask_XYZ: np.ndarray | None, scale: int) -> np.ndarray:
        """The topmost occupied voxel of each column, brighter the higher it is, with the ego car.

        Args:
            semantics_XYZ: class ids, uint8 on the grid.
            mask_XYZ: bool; columns without a voxel in it are grey and voxels outside it are not drawn. None: all are.
            scale: pixels per voxel.

        Returns:
            RGB uint8 (X * scale, Y * scale, 3).
        """
        semantics_XYZ, mask_XYZ = self.forward_left(semantics_XYZ), self.forward_left(mask_XYZ)
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
        return self._with_ego_arrow(pixels, scale)

    def _with_ego_arrow(self, pixels: np.ndarray, scale: int) -> np.ndarray:
        picture = Image.fromarray(pixels)
        metre = scale / self.grid.voxel_size
        outline = [(2.6, 0.0), (-1.4, 1.5), (-0.5, 0.0), (-1.4, -1.5)]
        ahead, left = self.grid.upper[0] - self.ego[0], self.grid.upper[1] - self.ego[1]
        corners = [((left - y) * metre, (ahead - x) * metre) for x, y in outline]
        ImageDraw.Draw(picture).polygon(corners, fill=INK, outline=PAPER, width=max(1, scale // 2))
        return np.asarray(picture)

    def voxel_image(self, semantics_XYZ: np.ndarray, mask_XYZ: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
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
        semantics_XYZ, mask_XYZ = self.forward_left(semantics_XYZ), self.forward_left(mask_XYZ)
        shown_XYZ = self._shown(semantics_XYZ, mask_XYZ)
        quads, colours, distances = zip(
            self._ego_quads(), *(self._voxel_quads(semantics_XYZ, shown_XYZ, *face) for face in FACES), strict=True
        )
        order_F = np.argsort(-np.concatenate(distances), kind="stable")
        # drawn twice as large and reduced: smooth edges
        canvas = Image.new("RGB", (2 * size[0], 2 * size[1]), PAPER)
        draw = ImageDraw.Draw(canvas)
        self._draw_floor(draw, canvas.size)
        pixels_F42 = self._project(np.concatenate(quads)[order_F], canvas.size)
        fills = np.concatenate(colours)[order_F].astype(np.uint8)
        lines = (fills * 0.82).astype(np.uint8)
        for corners, fill, line in zip(pixels_F42.reshape(-1, 8).tolist(), fills.tolist(), lines.tolist(), strict=True):
            draw.polygon(corners, fill=tuple(fill), outline=tuple(line))
        return np.asarray(canvas.resize(size, Image.Resampling.BOX))

    def forward_left(self, array_XYZ: Any) -> Any:
        """An array on the grid, or None, with the axes of the picture."""
        if array_XYZ is None or not self.sideways:
            return array_XYZ
        return array_XYZ.swapaxes(0, 1)[:, ::-1]

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
        faces_camera_F = step * (self.eye - self._metres(index_F3 + 0.5))[:, axis] > 0.5 * self.grid.voxel_size
        index_F3 = index_F3[faces_camera_F]
        colours_F3 = self.classes.palette[semantics_XYZ[tuple(index_F3.T)]] * shade
        colours_F3 *= _openness(padded_XYZ, index_F3)[:, None] if axis == 2 else 1.0
        distances_F = np.linalg.norm(self._metres(index_F3 + 0.5) - self.eye, axis=1)
        return self._metres(index_F3[:, None] + _square(axis, side)), colours_F3, distances_F

    def _ego_quads(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ego car's faces turned to the camera, in the form of `_voxel_quads`."""
        quads, colours, distances = [], [], []
        for near, far, colour in EGO_CAR:
            lower, upper = near + self.ego, far + self.ego
            size = np.subtract(upper, lower)
            for axis, side, shade in FACES:
                if (2 * side - 1) * (self.eye[axis] - (lower, upper)[side][axis]) > 0:
                    quads.append(lower + _square(axis, side) * size)
                    colours.append(np.multiply(colour, shade))
                    distances.append(np.linalg.norm(np.subtract(self.eye, np.add(lower, size / 2))))
        return np.array(quads), np.array(colours), np.array(distances)

    def _draw_floor(self, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
        """The bottom of the grid with a line every 10 m."""
        edges = np.arange(self.grid.lower[0], self.grid.upper[0] + 1e-6, 10.0)
        low, high, floor = edges[0], edges[-1], self.grid.lower[2]

        def pixels(*corners: tuple[float, float]) -> list[float]:
            return self._project(np.array([(*corner, floor) for corner in corners]), size).ravel().tolist()

        draw.polygon(pixels((low, low), (high, low), (high, high), (low, high)), fill=EMPTY)
        for edge in edges:
            draw.line(pixels((edge, low), (edge, high)), fill=LINE, width=2)
            draw.line(pixels((low, edge), (high, edge)), fill=LINE, width=2)

    def _metres(self, index: np.ndarray) -> np.ndarray:
        return np.array(self.grid.lower) + index * self.grid.voxel_size

    def _project(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Pinhole projection of metres (..., 3) to pixels (..., 2)."""
        matrix_34 = self._view_matrix(size)
        scaled = points @ matrix_34[:, :3].T + matrix_34[:, 3]
        return scaled[..., :2] / scaled[..., 2:]

    def _view_matrix(self, size: tuple[int, int]) -> np.ndarray:
        """Metres to (u d, v d, d) of the perspective view, float64 (3, 4)."""
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        focal = 0.5 * size[1] / np.tan(0.5 * np.radians(FIELD_OF_VIEW))
        intrinsics = np.array([[focal, 0, 0.5 * size[0]], [0, focal, 0.5 * size[1]], [0, 0, 1]])
        return intrinsics @ np.column_stack([rotation, -rotation @ self.eye])


def _camera_block(cameras: Sequence[np.ndarray]) -> Image.Image:
    """Two rows of three cameras, each with its name."""
    rows, columns = cameras[0].shape[:2]
    size = (WIDTH, round(WIDTH * rows / columns))
    block = Image.new("RGB", (3 * size[0] + 2 * GAP, 2 * size[1] + GAP), PAPER)
    draw = ImageDraw.Draw(block, "RGBA")
    font = ImageFont.load_default(FONT)
    for place, (channel, pixels) in enumerate(zip(CAMERAS, cameras, strict=True)):
        left, top = (place % 3) * (size[0] + GAP), (place // 3) * (size[1] + GAP)
        block.paste(Image.fromarray(np.asarray(pixels)).resize(size, Image.Resampling.LANCZOS), (left, top))
        name = channel.removeprefix("CAM_").replace("_", " ").lower()
        text = (left + 20, top + 15)
        right, bottom = draw.textbbox(text, name, font)[2:]
        draw.rounded_rectangle((left + 10, top + 10, right + 10, bottom + 8), 6, fill=(*INK, 190))
        draw.text(text, name, PAPER, font)
    return block


def _columns_block(views: Mapping[str, Sequence[np.ndarray]]) -> Image.Image:
    """Side by side: a title, the perspective view, the bird's-eye view."""
    block = Image.new("RGB", (len(views) * (WIDTH + GAP) - GAP, HEADER + VIEW[1] + GAP + WIDTH), PAPER)
    draw = ImageDraw.Draw(block)
    for place, (title, (perspective, bev)) in enumerate(views.items()):
        left = place * (WIDTH + GAP)
        draw.text((left + WIDTH // 2, HEADER // 2), title, INK, ImageFont.load_default(30), anchor="mm")
        block.paste(Image.fromarray(perspective), (left, HEADER))
        block.paste(Image.fromarray(bev), (left, block.height - WIDTH))
    return block


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
