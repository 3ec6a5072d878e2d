"""The layout of panels: what stands where."""

from typing import ClassVar

import numpy as np
import pytest
from test_gaussian_pictures import one_gaussian
from test_voxel_pictures import BUS, CAR, FREE, PAINTER, PEDESTRIAN, is_hue

from distill.classes import OCC3D_CLASSES
from distill.grids import OCC3D, VoxelGrid
from distill.nuscenes.layout import CAMERAS
from distill.pictures.panel import GAP, HEADER, MARGIN, PERSPECTIVE, WIDTH, draw_panel
from distill.pictures.voxels import Painter


@pytest.fixture
def empty():
    return np.full(OCC3D.shape, FREE, dtype=np.uint8)


class TestPanel:
    cameras: ClassVar = {
        channel: np.full((9, 16, 3), 40 * place, dtype=np.uint8) for place, channel in enumerate(CAMERAS)
    }

    def test_cameras_stand_where_they_look(self):
        """Front row above back row, left cameras on the left."""
        image = draw_panel(PAINTER, self.cameras, {"student": np.full(OCC3D.shape, FREE, np.uint8)}, None)
        step_x, step_y = WIDTH + GAP, 338 + GAP
        for place, channel in enumerate(CAMERAS):
            row, column = int("BACK" in channel), {"LEFT": 0, "RIGHT": 2}.get(channel.rpartition("_")[2], 1)
            x, y = (MARGIN + WIDTH // 2 + column * step_x, MARGIN + 169 + row * step_y)
            assert (image[y, x] == 40 * place).all(), channel

    def test_five_columns_fit_and_the_cameras_stay_in_the_middle(self):
        coarse = VoxelGrid("coarse", "ego", (-40.0, -40.0, -1.0), 4.0, (20, 20, 2))
        columns = {str(place): np.full(coarse.shape, FREE, np.uint8) for place in range(5)}
        columns["4"][5:15, 5:15] = CAR
        image = draw_panel(Painter(coarse, OCC3D_CLASSES), self.cameras, columns, None)
        step = WIDTH + GAP
        assert image.shape[1] == 2 * MARGIN + 5 * step - GAP
        grey = np.flatnonzero(
            (image[MARGIN + 169] == self.cameras["CAM_FRONT_RIGHT"][0, 0]).all(-1)
        )  # the upper right camera
        assert (grey.min(), grey.max() + 1) == (MARGIN + 3 * step, MARGIN + 4 * step - GAP)
        birds_eye_row = image[-(2 * MARGIN + 68 + WIDTH // 2)]
        left = MARGIN + 4 * step + WIDTH // 4
        car = np.flatnonzero(is_hue(birds_eye_row, CAR))
        assert (car.min(), car.max() + 1) == (left, left + WIDTH // 2)

    def test_columns_appear_in_order(self, empty):
        filled = {}
        for title, class_id in (("ground truth", CAR), ("teacher", PEDESTRIAN), ("student", BUS)):
            filled[title] = empty.copy()
            filled[title][120:180, 20:180, 1] = class_id
        image = draw_panel(PAINTER, self.cameras, filled, None)
        middle = image[MARGIN * 2 + 2 * 338 + GAP + HEADER :][:WIDTH]
        for place, class_id in enumerate((CAR, PEDESTRIAN, BUS)):
            left = MARGIN + place * (WIDTH + GAP)
            views = middle[:, left : left + WIDTH]
            for other in (CAR, PEDESTRIAN, BUS):
                assert (is_hue(views, other).sum() > 10_000) == (other == class_id)


def test_a_panel_shows_gaussians_where_the_voxels_are():
    """The same car as a voxel and as a Gaussian appears at one place of both bird's-eye views."""
    lidar2ego = np.array([[0, 1, 0, 0.94], [-1, 0, 0, 0], [0, 0, 1, 1.84], [0, 0, 0, 1]], dtype=float)
    place_ego = np.array([20.2, 10.2, 0.4, 1.0])
    index = ((place_ego[:3] - OCC3D.lower) / OCC3D.voxel_size).astype(int)
    semantics_XYZ = np.full(OCC3D.shape, OCC3D_CLASSES.free, dtype=np.uint8)
    semantics_XYZ[tuple(index)] = CAR
    gaussians = one_gaussian(tuple((np.linalg.inv(lidar2ego) @ place_ego)[:3]), (0.2, 0.2, 0.2), CAR)
    cameras = dict.fromkeys(CAMERAS, np.zeros((9, 16, 3), dtype=np.uint8))
    painter = Painter(OCC3D, OCC3D_CLASSES)
    panel = draw_panel(painter, cameras, {"teacher": semantics_XYZ}, None, (gaussians, lidar2ego))
    top = MARGIN + 2 * round(WIDTH * 9 / 16) + GAP + MARGIN + HEADER + PERSPECTIVE[1] + GAP
    left = (panel.shape[1] - 2 * WIDTH - GAP) // 2
    places = []
    for start in (left, left + WIDTH + GAP):
        bev = panel[top : top + WIDTH, start : start + WIDTH].astype(int)
        blue = bev[..., 2] - bev[..., 0] > 40
        places.append(np.argwhere(blue).mean(0))
    assert np.abs(places[0] - places[1]).max() < 2
    assert np.abs(places[0] - [(40 - 20.2) / 80 * WIDTH, (40 - 10.2) / 80 * WIDTH]).max() < 2
