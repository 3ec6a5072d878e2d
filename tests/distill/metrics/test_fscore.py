"""The F-score against nearest neighbours found with a k-d tree, as FlashOcc computes it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.metrics.fscore import FLASHOCC_DISTANCE, FScore, neighbours

FREE = 17


def flashocc(prediction, semantics, mask, grid, distance):
    """(F-score, accuracy, completeness) in percent."""
    points = [grid.centres()[mask & (volume != FREE) & (semantics != 255)] for volume in (prediction, semantics)]
    if not all(map(len, points)):
        return 0.0, 0.0, 0.0
    accuracy = (cKDTree(points[1]).query(points[0])[0] < distance).mean()
    completeness = (cKDTree(points[0]).query(points[1])[0] < distance).mean()
    return 100 * 2 / (1 / (accuracy + 1e-8) + 1 / (completeness + 1e-8)), 100 * accuracy, 100 * completeness


def found(metric):
    result = metric.compute()
    return tuple(float(result[name]) for name in ("F-score", "accuracy", "completeness"))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    share=st.sampled_from([0.0, 0.02, 0.2]),
    distance=st.sampled_from([0.3, 0.45, 0.6, 0.9, 1.5]),
)
def test_matches_nearest_neighbours(seed, shape, share, distance):
    grid = VoxelGrid("small", "ego", (-1.0, -2.0, -1.0), 0.4, shape)
    random = np.random.default_rng(seed)
    metric, expected = FScore(grid, OCC3D_CLASSES, distance), []
    for _ in range(3):
        prediction, semantics = (np.where(random.random(shape) < share, 4, FREE).astype(np.uint8) for _ in range(2))
        semantics[random.random(shape) < 0.1] = 255
        mask = random.random(shape) < 0.8
        metric.update(prediction, semantics, mask)
        expected.append(flashocc(prediction, semantics, mask, grid, distance))
    assert found(metric) == pytest.approx(np.mean(expected, axis=0), abs=1e-9)


def test_neighbours_within_06_m():
    assert len(neighbours(OCC3D.voxel_size, FLASHOCC_DISTANCE)) == 19
    assert len(neighbours(SURROUNDOCC.voxel_size, FLASHOCC_DISTANCE)) == 7


@pytest.mark.parametrize(("shift", "percent"), [((1, 1, 0), 100), ((1, 1, 1), 0), ((0, 2, 0), 0)])
def test_how_far_a_voxel_may_be_off(shift, percent):
    semantics = np.full((5, 5, 5), FREE, np.uint8)
    semantics[1, 1, 1] = 4
    metric = FScore(OCC3D, OCC3D_CLASSES, FLASHOCC_DISTANCE)
    metric.update(np.roll(semantics, shift, (0, 1, 2)), semantics, np.ones(semantics.shape, bool))
    assert found(metric) == pytest.approx((percent,) * 3, abs=1e-5)


def test_real_labels(shared):
    semantics = np.load(shared / "realdata/occ3d_label_scene-1077/labels.npz")
    mask, semantics = semantics["mask_camera"].astype(bool), semantics["semantics"]
    prediction = np.roll(semantics, (2, 1), (0, 2))
    metric = FScore(OCC3D, OCC3D_CLASSES, FLASHOCC_DISTANCE)
    metric.update(semantics, semantics, mask)
    assert found(metric) == pytest.approx((100, 100, 100), abs=1e-5)
    metric.reset()
    metric.update(prediction, semantics, mask)
    assert found(metric) == pytest.approx(flashocc(prediction, semantics, mask, OCC3D, FLASHOCC_DISTANCE), abs=1e-9)
    metric.reset()
    metric.update(np.full_like(semantics, FREE), semantics, mask)
    assert found(metric) == (0, 0, 0)


def test_voxels_labelled_noise_are_on_neither_side():
    semantics = np.full((4, 4, 4), FREE, np.uint8)
    semantics[0], semantics[3] = 0, 4
    prediction = np.where(semantics == 4, 4, FREE).astype(np.uint8)
    prediction[0] = 4
    metric = FScore(SURROUNDOCC, SURROUNDOCC_CLASSES, FLASHOCC_DISTANCE)
    metric.update(torch.from_numpy(prediction), torch.from_numpy(semantics), torch.ones(4, 4, 4))
    assert found(metric) == pytest.approx((100, 100, 100), abs=1e-5)
