"""RayIoU against a plain re-implementation, by hand, and against the facts of the official evaluation."""

import gzip
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyquaternion import Quaternion

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.errors import InputError
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.metrics.rays import RayIoU, ray_directions, ray_origins
from kernels.ray_cast.reference import follow

FREE, CAR, TRUCK = 17, 4, 10
SMALL = VoxelGrid("small", "ego", (-2.0, -1.6, -0.8), 0.4, (10, 8, 4))
LIDAR_ORIGIN = np.array([[0.985793, 0.0, 1.84019]])


def test_the_official_rays():
    rays = ray_directions()
    assert rays.shape == (14_040, 3) and rays.dtype == np.float32
    assert np.linalg.norm(rays, axis=1) == pytest.approx(1.0)
    pitches = np.degrees(np.arcsin(rays[::360, 2].astype(float)))
    assert len(pitches) == 39
    assert pitches[[0, 1, 9, -1]] == pytest.approx([-45.0, -26.5651, -5.7106, 12.5478], abs=1e-4)
    assert np.diff(pitches)[9:] == pytest.approx(0.62960, abs=1e-5)
    azimuths = np.degrees(np.arctan2(rays[:360, 1], rays[:360, 0])) % 360
    assert azimuths == pytest.approx(np.arange(360), abs=1e-4)


def plain_counts(prediction, semantics, origins, directions, grid):
    """Hits by threshold and class, label counts and prediction counts, ray by ray."""
    hits, labels, predictions = np.zeros((3, 18), int), np.zeros(18, int), np.zeros(18, int)
    lower, voxel_size = np.array(grid.lower), float(np.float32(grid.voxel_size))
    for origin in origins:
        start = ((origin - lower) / voxel_size).astype(np.float32).astype(float)
        for direction in directions:
            end = ((direction.astype(float) + origin - lower) / voxel_size).astype(np.float32).astype(float)
            ends = [follow(volume != FREE, start, end) for volume in (semantics, prediction)]
            label, predicted = semantics.flat[ends[0][0]], prediction.flat[ends[1][0]]
            if label == FREE:
                continue
            labels[label] += 1
            predictions[predicted] += 1
            metres = [distance * np.float32(grid.voxel_size) for _, distance in ends]
            for row, threshold in enumerate((1, 2, 4)):
                hits[row, label] += label == predicted and abs(metres[0] - metres[1]) < threshold
    return hits, labels, predictions


def random_keyframe(seed, grid=SMALL, share=0.1):
    random = np.random.default_rng(seed)
    semantics, prediction = np.full((2, *grid.shape), FREE, np.uint8)
    for volume in (semantics, prediction):
        occupied = random.random(grid.shape) < share
        volume[occupied] = random.integers(0, 4, occupied.sum())
    return prediction, semantics, random


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.sampled_from([0.0, 0.05, 0.4]), outside=st.booleans())
def test_counts_are_those_of_a_plain_implementation(seed, share, outside):
    prediction, semantics, random = random_keyframe(seed, share=share)
    origins = random.uniform(SMALL.lower, SMALL.upper, (2, 3))
    if outside:  # below, where voxel 0 is the first, and above
        origins[:, 2] = [SMALL.lower[2] - 0.2, SMALL.upper[2] + 0.5]
    metric = RayIoU(SMALL, OCC3D_CLASSES)
    metric.directions_R3 = metric.directions_R3[seed % 499 :: 499]
    metric.update(prediction, semantics, origins)
    hits, labels, predictions = plain_counts(prediction, semantics, origins, metric.directions_R3.numpy(), SMALL)
    assert np.array_equal(metric.hits_DC, hits)
    assert np.array_equal(metric.rays_CC.sum(1), labels)
    assert np.array_equal(metric.rays_CC.sum(0), predictions)
    with np.errstate(invalid="ignore"):
        iou = 100 * (hits / (labels + predictions - hits))[:, :FREE]
    result = metric.compute()
    if labels.any():
        assert result["RayIoU"] == pytest.approx(np.nanmean(iou))
        assert [result[f"RayIoU@{t}"] for t in (1, 2, 4)] == pytest.approx(np.nanmean(iou, axis=1))
        assert np.array_equal(result["RayIoU per class"][:, :FREE].isnan(), np.isnan(iou))
    else:
        assert result["RayIoU"].isnan()


def street() -> np.ndarray:
    """Labels on the Occ3D grid: a road, a wall and a car."""
    semantics = np.full(OCC3D.shape, FREE, np.uint8)
    semantics[:, :, 1], semantics[:, 150:152, 2:9], semantics[125:136, 95:100, 2:6] = 11, 15, CAR
    return semantics


def score(prediction, semantics, origins=LIDAR_ORIGIN):
    metric = RayIoU(OCC3D, OCC3D_CLASSES)
    metric.update(prediction, semantics, origins)
    return metric.compute()


def test_labels_score_100_and_free_scores_0():
    perfect, free = score(street(), street()), score(np.full_like(street(), FREE), street())
    assert all(perfect[f"RayIoU{at}"] == 100 for at in ("", "@1", "@2", "@4"))
    assert all(free[f"RayIoU{at}"] == 0 for at in ("", "@1", "@2", "@4"))
    assert free["RayIoU per class"][:, [CAR, 11, 15]].eq(0).all()
    assert free["RayIoU per class"].isnan().sum() == 3 * 15


def test_real_labels_score_100(shared):
    semantics = np.load(shared / "realdata/occ3d_label_scene-1077/labels.npz")["semantics"]
    result = score(semantics, semantics)
    assert result["RayIoU"] == 100
    assert score(np.roll(semantics, 3, axis=0), semantics)["RayIoU"] < 80


@pytest.mark.parametrize(
    "origin",
    [
        (0.0, 0.0, 1.0),  # a corner of voxels
        (0.2, 0.2, 1.2),  # the centre of one: rays meet two borders at once
        (38.999, -38.999, 1.84),
        (1.0, 1.0, -1.3),  # less than a voxel below
    ],
)
def test_hard_origins_on_the_grid_of_occ3d(origin):
    semantics = street()
    prediction = np.roll(np.where(semantics == CAR, TRUCK, semantics), (2, -3, 1), (0, 1, 2)).astype(np.uint8)
    metric = RayIoU(OCC3D, OCC3D_CLASSES)
    metric.directions_R3 = metric.directions_R3.unflatten(0, (39, 360))[::6, ::30].flatten(0, 1)
    metric.update(prediction, semantics, np.array([origin]))
    hits, labels, predictions = plain_counts(
        prediction, semantics, np.array([origin]), metric.directions_R3.numpy(), OCC3D
    )
    assert np.array_equal(metric.hits_DC, hits)
    assert np.array_equal(metric.rays_CC.sum(1), labels) and np.array_equal(metric.rays_CC.sum(0), predictions)
    assert labels.sum() > 10 and hits.sum() > 0


@pytest.mark.parametrize(
    ("voxels", "right"), [(2, (100, 100, 100)), (3, (0, 100, 100)), (6, (0, 0, 100)), (11, (0,) * 3)]
)
def test_a_hit_that_moves_along_its_ray(voxels, right):
    """0.8 m are within 1 m, 1.2 m within 2 m, 2.4 m within 4 m and 4.4 m within none (docs/formulas.md 3.4)."""
    semantics = np.full(OCC3D.shape, FREE, np.uint8)
    prediction = semantics.copy()
    semantics[130, 100, 7], prediction[130 + voxels, 100, 7] = CAR, CAR
    metric = RayIoU(OCC3D, OCC3D_CLASSES)
    metric.directions_R3 = torch.tensor([[1.0, 0.0, 0.0]])
    metric.update(prediction, semantics, np.array([[0.1, 0.2, 2.0]]))
    result = metric.compute()
    assert tuple(result[f"RayIoU@{t}"] for t in (1, 2, 4)) == right


def test_an_oblique_ray_stretches_the_step():
    """Two voxels further along x are 0.8 m; for a ray at 45 degrees whose hit moves along both axes, 1.13 m."""
    semantics = np.full(OCC3D.shape, FREE, np.uint8)
    prediction = semantics.copy()
    semantics[130, 130, 7], prediction[132, 132, 7] = CAR, CAR
    metric = RayIoU(OCC3D, OCC3D_CLASSES)
    metric.directions_R3 = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5), 0.0]])
    metric.update(prediction, semantics, np.array([[0.1, 0.1, 2.0]]))
    result = metric.compute()
    assert (result["RayIoU@1"], result["RayIoU@2"]) == (0, 100)


def test_the_threshold_itself_is_a_miss():
    """Ends 1 and 5 m away, exact in float32 on a grid of 0.5 m: 4 m apart are not within 4 m."""
    grid = VoxelGrid("half", "ego", (-8.0, -1.0, -1.0), 0.5, (32, 4, 4))
    for prediction_x, right in ((25, 0), (24, 100)):
        semantics = np.full(grid.shape, FREE, np.uint8)
        prediction = semantics.copy()
        semantics[17, 2, 2], prediction[prediction_x, 2, 2] = CAR, CAR
        metric = RayIoU(grid, OCC3D_CLASSES)
        metric.directions_R3 = torch.tensor([[1.0, 0.0, 0.0]])
        metric.update(prediction, semantics, np.array([[0.25, 0.25, 0.25]]))
        assert metric.compute()["RayIoU@4"] == right


def test_the_class_must_be_right_and_unhit_rays_are_not_counted():
    semantics = street()
    prediction = np.where(semantics == CAR, TRUCK, semantics).astype(np.uint8)
    result = score(prediction, semantics)
    assert result["RayIoU per class"][0, [CAR, TRUCK]].tolist() == [0, 0]
    assert result["RayIoU per class"][0, 11] == 100
    more = prediction.copy()
    more[20:30, 20:30, 14:] = 16  # in the sky, in front of nothing
    assert score(more, semantics)["RayIoU per class"][0, 16].isnan()


def test_labels_that_say_nothing_are_not_counted_on_the_other_grid():
    semantics = np.full(SURROUNDOCC.shape, FREE, np.uint8)
    semantics[:, :, 4], semantics[110:130] = 11, 0
    metric = RayIoU(SURROUNDOCC, SURROUNDOCC_CLASSES)
    metric.update(np.where(semantics == 0, 11, semantics).astype(np.uint8), semantics, np.zeros((1, 3)))
    assert metric.rays_CC[0].sum() == 0 and metric.compute()["RayIoU"] == 100


def test_wrong_inputs_are_refused():
    metric = RayIoU(OCC3D, OCC3D_CLASSES)
    with pytest.raises(InputError, match="occ3d"):
        metric.update(np.zeros((200, 200, 8), np.uint8), np.zeros((200, 200, 8), np.uint8), LIDAR_ORIGIN)
    with pytest.raises(InputError, match="differ in shape"):
        metric.update(np.zeros((200, 200, 8), np.uint8), street(), LIDAR_ORIGIN)
    with pytest.raises(InputError, match="uint8"):
        metric.update(street().astype(np.int64), street(), LIDAR_ORIGIN)
    with pytest.raises(InputError, match="class 18"):
        metric.update(np.full_like(street(), 18), street(), LIDAR_ORIGIN)
    assert metric.keyframes == 0 and metric.rays_CC.sum() == 0


def pose(translation, rotation) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Quaternion(rotation).rotation_matrix, translation
    return matrix


def drive(count, step):
    """A straight drive; the LiDAR looks to the right, as nuScenes' does."""
    lidar2ego = np.stack([pose([0.9, 0.1, 1.8], Quaternion(axis=(0, 0, 1), degrees=-90).elements)] * count)
    turned = Quaternion(axis=(0, 0, 1), degrees=30)
    ego2global = np.stack([pose(turned.rotate([step * k, 0, 0]), turned.elements) for k in range(count)])
    return lidar2ego, ego2global


def test_origins_of_a_straight_drive():
    lidar2ego, ego2global = drive(3, 5.0)
    expected = [[0.9 + x, 0.1, 1.8] for x in (-5, 0, 5)]
    assert ray_origins(lidar2ego, ego2global, 1, OCC3D) == pytest.approx(np.array(expected), abs=1e-5)
    in_lidar = ray_origins(lidar2ego, ego2global, 1, SURROUNDOCC)  # forward is the LiDAR's y
    assert in_lidar == pytest.approx(np.array([[0, y, 0] for y in (-5, 0, 5)]), abs=1e-5)


def test_at_most_8_origins_evenly_spread_and_39_m_away():
    lidar2ego, ego2global = drive(40, 2.0)
    x = ray_origins(lidar2ego, ego2global, 20, OCC3D)[:, 0]
    # 0.9 + 2 k in (-39, 39): k = -19 ... 19, 39 origins, of which round(linspace(0, 38, 8)) are taken
    assert (x - 0.9) / 2 == pytest.approx(np.array([0, 5, 11, 16, 22, 27, 33, 38]) - 19, abs=1e-5)
    assert len(ray_origins(lidar2ego[:9], ego2global[:9], 0, OCC3D)) == 8
    alone = ray_origins(*drive(4, 100.0), 2, OCC3D)
    assert alone == pytest.approx(np.array([[0.9, 0.1, 1.8]]))


@pytest.mark.parametrize("axis", [0, 1])
def test_an_origin_at_39_m_is_left_out(axis):
    """Exact numbers: the LiDAR is the vehicle, which moves along one axis."""
    lidar2ego, ego2global = np.stack([np.eye(4)] * 5), np.stack([np.eye(4)] * 5)
    ego2global[:, axis, 3] = [-39, -38.875, 0, 38.875, 39]
    assert ray_origins(lidar2ego, ego2global, 2, OCC3D)[:, axis].tolist() == [-38.875, 0, 38.875]


def real_scenes(shared):
    """lidar2ego and ego2global of the keyframes of each scene of nuScenes' mini_val."""
    with gzip.open(shared / "realdata/mini_val_infos.json.gz") as file:
        infos = json.load(file)["infos"]
    for scene in sorted({info["scene"] for info in infos}):
        frames = [info for info in infos if info["scene"] == scene]
        yield tuple(
            np.stack([pose(info[f"{name}_translation"], info[f"{name}_rotation"]) for info in frames])
            for name in ("lidar2ego", "ego2global")
        )


@pytest.mark.parametrize(
    ("keyframe", "rays", "hits", "ray_iou"),
    [
        (0, 73_089, [15_556, 40_449, 50_355], 20.447323235783365),
        (20, 78_771, [15_847, 38_717, 49_769], 19.5996581217720),
    ],
)
def test_numbers_of_the_original(shared, keyframe, rays, hits, ray_iou):
    """What the loop of the published kernel and its evaluation script returned for real labels and real poses."""
    semantics = np.load(shared / "realdata/occ3d_label_scene-1077/labels.npz")["semantics"]
    lidar2ego, ego2global = next(real_scenes(shared))
    metric = RayIoU(OCC3D, OCC3D_CLASSES)
    origins = ray_origins(lidar2ego, ego2global, keyframe, OCC3D)
    metric.update(np.roll(semantics, (2, -3, 1), (0, 1, 2)), semantics, origins)
    assert metric.rays_CC.sum() == rays and metric.hits_DC.sum(1).tolist() == hits
    assert metric.compute()["RayIoU"] == pytest.approx(ray_iou, abs=1e-12)


def test_origins_of_real_scenes(shared):
    for to_ego, to_map in real_scenes(shared):
        for reference in range(len(to_ego)):
            from_map = np.linalg.inv(to_map[reference] @ to_ego[reference])
            kept = []
            for k in range(len(to_ego)):
                lidar = (from_map @ (to_map[k] @ to_ego[k]))[:3, 3].astype(np.float32)
                lidar = np.zeros(3, np.float32) if k == reference else lidar
                x, y, z = to_ego[reference][:3] @ np.append(lidar.astype(float), 1)
                if -39 < x < 39 and -39 < y < 39:
                    kept.append((x, y, z))
            if len(kept) > 8:
                kept = [kept[round(i * (len(kept) - 1) / 7)] for i in range(8)]
            found = ray_origins(to_ego, to_map, reference, OCC3D)
            assert found == pytest.approx(np.array(kept), abs=1e-12)
            assert 1 <= len(found) <= 8 and np.abs(found[:, :2]).max() < 39
