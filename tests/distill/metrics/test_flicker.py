import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyquaternion import Quaternion

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.grids import VoxelGrid
from distill.metrics.flicker import Flicker

FREE, CAR, TRUCK = 17, 4, 10
GRID = VoxelGrid("small", "ego", (-2.0, -2.0, -0.8), 0.4, (10, 10, 4))
ALL = np.ones(GRID.shape, bool)
HERE = np.eye(4)


def moved(x=0.0, y=0.0, z=0.0, yaw=0.0):
    matrix = Quaternion(axis=(0, 0, 1), degrees=yaw).transformation_matrix
    matrix[:3, 3] = x, y, z
    return matrix


def world(voxels, pose):
    """A static world on the grid of a vehicle that stands at whole voxels: points (x, y, z) in metres of a class."""
    volume = np.full(GRID.shape, FREE, np.uint8)
    for point, name in voxels.items():
        at = np.floor(((np.linalg.inv(pose) @ [*point, 1])[:3] - GRID.lower) / GRID.voxel_size).astype(int)
        if (at >= 0).all() and (at < GRID.shape).all():
            volume[tuple(at)] = name
    return volume


def flicker(*keyframes, classes=OCC3D_CLASSES):
    metric = Flicker(GRID, classes)
    for i, (prediction, semantics, mask, pose) in enumerate(keyframes):
        metric.update(prediction, semantics, mask, str(i), str(i - 1) if i else "", pose)
    return metric


def test_a_standing_vehicle():
    semantics = world({(1.0, 1.0, 0.2): CAR, (-1.0, 1.0, 0.2): CAR}, HERE)
    wavering = np.where(semantics == CAR, TRUCK, semantics).astype(np.uint8)
    result = flicker((semantics, semantics, ALL, HERE), (wavering, semantics, ALL, HERE)).compute()
    assert result["flicker"] == pytest.approx(100 * 2 / 400)
    assert result["flicker occupied"] == 100 and result["flicker per class"][CAR] == 100
    assert result["flicker per class"][FREE] == 0 and result["flicker per class"][TRUCK].isnan()
    assert (result["flicker pairs"], result["flicker unpaired"]) == (1, 0)


def test_always_wrong_does_not_flicker():
    semantics = world({(1.0, 1.0, 0.2): CAR}, HERE)
    free = np.full_like(semantics, FREE)
    assert flicker(*[(free, semantics, ALL, HERE)] * 3).compute()["flicker"] == 0


@pytest.mark.parametrize("pose", [moved(x=0.8), moved(y=-0.4, z=0.4), moved(yaw=90), moved(x=1.2, yaw=180)])
def test_a_world_that_stands_still_does_not_flicker_however_the_vehicle_moves(pose):
    labels = {(101.0, 1.0, 0.2): CAR, (99.0, 0.2, 0.2): 15, (100.2, -1.4, -0.2): 11}
    wrong = {(101.0, 1.0, 0.2): TRUCK, (99.4, 0.2, 0.2): 15, (100.2, -1.4, -0.2): 11}
    frames = [(world(wrong, at), world(labels, at), ALL, at) for at in (moved(x=100), moved(x=100) @ pose)]
    metric = flicker(*frames)
    assert metric.compute()["flicker"] == 0 and metric.compared_C[[CAR, 11, 15]].sum() >= 2
    shifted = [*frames[:1], (np.roll(frames[1][0], 1, 0), *frames[1][1:])]
    assert flicker(*shifted).compute()["flicker occupied"] > 0


def test_what_moves_and_what_is_not_scored_in_both_is_left_out():
    before, after = world({(1.0, 1.0, 0.2): CAR}, HERE), world({(1.4, 1.0, 0.2): CAR}, HERE)
    metric = flicker((before, before, ALL, HERE), (after, after, ALL, HERE))
    assert metric.compared_C.tolist() == [0] * 17 + [398] and metric.changed_C.sum() == 0
    mask = ALL.copy()
    mask[:5] = False
    assert flicker((before, before, mask, HERE), (before, before, ALL, HERE)).compared_C.sum() == 200
    assert flicker((before, before, ALL, HERE), (before, before, mask, HERE)).compared_C.sum() == 200
    noise = np.where(ALL, 0, 0).astype(np.uint8)
    keyframe = (before, noise, ALL, HERE)
    assert flicker(keyframe, keyframe, classes=SURROUNDOCC_CLASSES).compared_C.sum() == 0


def test_only_neighbours_are_compared():
    volume = world({(1.0, 1.0, 0.2): CAR}, HERE)
    metric = Flicker(GRID, OCC3D_CLASSES)
    for token, previous in (("a0", ""), ("a1", "a0"), ("b0", ""), ("a2", "a1"), ("a3", "a2"), ("c7", "c6")):
        metric.update(volume, volume, ALL, token, previous, HERE)
    assert (metric.pairs, metric.unpaired, metric.keyframes) == (2, 2, 6)
    metric.reset()
    metric.update(volume, volume, ALL, "c8", "c7", HERE)
    assert (metric.pairs, metric.unpaired) == (0, 1)


def test_it_keeps_no_reference_to_what_it_was_given():
    volume, semantics = world({(1.0, 1.0, 0.2): CAR}, HERE), world({(1.0, 1.0, 0.2): CAR}, HERE)
    mask, pose = ALL.copy(), HERE.copy()
    metric = Flicker(GRID, OCC3D_CLASSES)
    metric.update(torch.from_numpy(volume), semantics, mask, "0", "", pose)
    before = volume.copy()
    volume[:], semantics[:], mask[:], pose[:] = 3, 3, False, 7
    metric.update(before, before, ALL, "1", "0", HERE)
    assert metric.compared_C.sum() == 400 and metric.changed_C.sum() == 0


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_matches_a_plain_implementation(seed):
    random = np.random.default_rng(seed)
    poses = [moved(*random.uniform(-30, 30, 2), yaw=random.uniform(0, 360))]
    poses.append(poses[0] @ moved(*random.uniform(-1, 1, 3), yaw=random.uniform(-20, 20)))
    names = [2, CAR, FREE, 255]
    frames = [
        (
            random.choice(names[:3], GRID.shape).astype(np.uint8),
            random.choice(names, GRID.shape).astype(np.uint8),
            random.random(GRID.shape) < 0.7,
            pose,
        )
        for pose in poses
    ]
    compared, changed = np.zeros(18, int), np.zeros(18, int)
    (p0, s0, m0, _), (p1, s1, m1, _) = frames
    for at in np.ndindex(GRID.shape):
        centre = [*(np.array(at) + 0.5) * GRID.voxel_size + GRID.lower, 1]
        x, y, z, _ = np.linalg.inv(poses[0]) @ poses[1] @ centre
        then = tuple(int(np.floor((v - low) / GRID.voxel_size)) for v, low in zip((x, y, z), GRID.lower, strict=True))
        inside = all(0 <= i < count for i, count in zip(then, GRID.shape, strict=True))
        if m1[at] and inside and m0[then] and s1[at] == s0[then] != 255:
            compared[s1[at]] += 1
            changed[s1[at]] += p1[at] != p0[then]
    metric = flicker(*frames)
    assert np.array_equal(metric.compared_C, compared) and np.array_equal(metric.changed_C, changed)
    assert compared.sum() > 0
