from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.classes import OCC3D_CLASSES
from distill.gaussians import Gaussians
from distill.grids import SURROUNDOCC
from distill.pictures.gaussians import draw_gaussians

CAR = 4
FOCAL = 400.0
# looks along the LiDAR's y axis, as the front camera does: u grows with x, v falls with z
FRONT = np.array([[FOCAL, 400, 0, 0], [0, 200, -FOCAL, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=float)


def one_gaussian(mean: tuple[float, ...], scale: tuple[float, ...], label: int) -> Gaussians:
    return Gaussians(
        means_G3=torch.tensor([mean]),
        scales_G3=torch.tensor([scale]),
        rotations_G4=torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        opacities_G=torch.ones(1),
        semantics_GS=torch.nn.functional.one_hot(torch.tensor([label]), 18).float(),
        form="probabilistic",
        reach=3.0,
        det="stable",
        space=SURROUNDOCC,
    )


def drawn(gaussians: Gaussians) -> np.ndarray:
    black = np.zeros((400, 800, 3), dtype=np.uint8)
    return draw_gaussians(black, gaussians, FRONT, OCC3D_CLASSES).any(2)


def test_an_ellipse_has_the_size_and_place_of_the_projected_gaussian():
    rows, columns = np.nonzero(drawn(one_gaussian((1.0, 10.0, 0.5), (0.8, 0.2, 0.4), CAR)))
    assert (rows.min() + rows.max()) / 2 == pytest.approx(200 - FOCAL * 0.05, abs=1)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(400 + FOCAL * 0.1, abs=1)
    # the half axes: scale * focal / depth; the depth's own extent shows too, off the axis
    assert (columns.max() - columns.min()) / 2 == pytest.approx(FOCAL * 0.08, abs=1.5)
    assert (rows.max() - rows.min()) / 2 == pytest.approx(FOCAL * 0.04, abs=1.5)


def test_a_rotated_gaussian_is_drawn_rotated():
    """Half a right angle about the viewing axis, transposed from 3D Gaussian splatting: covariance = R^T S^2 R."""
    half = np.pi / 8
    flat = one_gaussian((0.0, 10.0, 0.0), (0.9, 0.1, 0.1), CAR)
    turned = replace(flat, rotations_G4=torch.tensor([[np.cos(half), 0.0, np.sin(half), 0.0]], dtype=torch.float32))
    rows, columns = np.nonzero(drawn(turned))
    # R = rotation by 45 degrees about y: the first axis of R^T points along (1, 0, 1) or (1, 0, -1)
    w, y = np.cos(half), np.sin(half)
    axis = np.array([[1 - 2 * y * y, 0, 2 * w * y], [0, 1, 0], [-2 * w * y, 0, 1 - 2 * y * y]])[0]
    slope = np.polyfit(columns, rows, 1)[0]
    assert slope == pytest.approx(-axis[2] / axis[0], abs=0.15)


def test_free_space_and_what_is_behind_the_camera_are_not_drawn():
    assert not drawn(one_gaussian((0.0, 10.0, 0.0), (0.5, 0.5, 0.5), OCC3D_CLASSES.free)).any()
    assert not drawn(one_gaussian((0.0, -10.0, 0.0), (0.5, 0.5, 0.5), CAR)).any()
    assert drawn(one_gaussian((0.0, 10.0, 0.0), (0.5, 0.5, 0.5), CAR)).any()


def test_a_gaussian_that_would_fill_the_image_is_not_drawn():
    assert not drawn(one_gaussian((0.0, 2.0, 0.0), (0.5, 0.5, 0.5), CAR)).any()
