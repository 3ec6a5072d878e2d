import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.metrics.bands import BandScore, distance_bands, height_bands
from distill.metrics.conventions import MONOOCC_16, OCC3D_17
from distill.metrics.counting import count_confusion

FREE, CAR = 17, 4
INF = float("inf")


def test_distance_bands_of_occ3d():
    bands = distance_bands(OCC3D, (0, 10, 20, 40, INF))
    assert bands.labels == ("0 to 10 m", "10 to 20 m", "20 to 40 m", "40 m and more")
    voxels = np.bincount(bands.band_XYZ.flat)
    areas = np.pi * np.array([10**2, 20**2 - 10**2, 40**2 - 20**2, 0]) + [0, 0, 0, 80**2 - np.pi * 40**2]
    assert voxels / (16 / 0.4**2) == pytest.approx(areas, rel=0.01)
    assert bands.band_XYZ[100, 100].tolist() == [0] * 16  # the centre (0.2, 0.2)
    assert bands.band_XYZ[125, 100, 0] == 1  # (10.2, 0.2)
    assert (distance_bands(OCC3D, (0, 10, 20, 40)).band_XYZ[0, 0] == 255).all()


def test_height_bands_of_occ3d():
    bands = height_bands(OCC3D, (-INF, 0, 2, INF))
    assert bands.labels == ("below 0 m", "0 to 2 m", "2 m and more")
    assert bands.band_XYZ[0, 0].tolist() == [0] * 2 + [1] * 5 + [2] * 9  # centres -0.8, -0.4, 0.0, ..., 1.6, 2.0, ...


def test_height_is_above_the_road_on_a_lidar_grid():
    """The road is 1.84 m below LIDAR_TOP: centres -4.75, -4.25, ... are at -2.91, -2.41, ..., -0.41, 0.09, ..."""
    bands = height_bands(SURROUNDOCC, (-INF, 0, 2, INF))
    assert bands.labels == ("below 0 m", "0 to 2 m", "2 m and more")
    assert bands.band_XYZ[0, 0].tolist() == [0] * 6 + [1] * 4 + [2] * 6


def test_a_centre_on_an_edge_is_in_the_band_above():
    grid = VoxelGrid("coarse", "ego", (0.0, 0.0, 0.0), 2.0, (1, 1, 4))
    assert height_bands(grid, (1, 3, 5)).band_XYZ[0, 0].tolist() == [0, 1, 255, 255]


@pytest.mark.parametrize("edges", [(1,), (1, 1), (2, 1)])
def test_edges_must_grow(edges):
    with pytest.raises(InputError, match="growing"):
        height_bands(OCC3D, edges)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_each_band_is_scored_alone_and_together_they_are_everything(seed):
    random = np.random.default_rng(seed)
    grid = VoxelGrid("small", "ego", (-12.0, -12.0, -1.0), 4.0, (6, 6, 2))
    bands = distance_bands(grid, (0, 5, 10, INF))
    metric, total = BandScore(MONOOCC_16, bands), 0
    for _ in range(2):
        prediction, semantics = (torch.from_numpy(random.integers(0, 18, grid.shape, np.uint8)) for _ in range(2))
        mask = torch.from_numpy(random.random(grid.shape) < 0.7)
        metric.update(prediction, semantics, mask)
        total += count_confusion(prediction, semantics, mask, OCC3D_CLASSES)[0]
    assert torch.equal(metric.confusion_GCC.sum(0), total)
    result = metric.compute()
    for g in range(3):
        alone = MONOOCC_16.score(metric.confusion_GCC[g])
        torch.testing.assert_close(result["distance mIoU"][g], alone.miou, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(result["distance geometric IoU"][g], alone.geometric_iou, equal_nan=True)
    assert result["distance voxels"].tolist() == metric.confusion_GCC.sum((1, 2)).tolist()


def test_right_near_and_wrong_far():
    semantics = np.full(OCC3D.shape, FREE, np.uint8)
    semantics[102, 100, 4], semantics[160, 100, 4] = CAR, CAR
    prediction = semantics.copy()
    prediction[160, 100, 4] = FREE
    metric = BandScore(OCC3D_17, distance_bands(OCC3D, (0, 10, 20, 40)))
    metric.update(prediction, semantics, np.ones(OCC3D.shape, bool))
    result = metric.compute()
    assert result["distance mIoU"][[0, 2]].tolist() == [100, 0] and result["distance mIoU"][1].isnan()
    assert result["distance IoU per class"][:, CAR].nan_to_num(-1).tolist() == [100, -1, 0]


def test_volumes_of_another_grid_are_refused():
    metric = BandScore(OCC3D_17, height_bands(OCC3D, (0, 2)))
    other = np.zeros((200, 200, 8), np.uint8)
    with pytest.raises(InputError, match="differ in shape"):
        metric.update(other, other, other)
