"""The signal `points`: what is kept stays within its bounds, in its voxels, and says what the teacher says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame, Mirror, stack
from distill.grids import OCC3D, SURROUNDOCC
from distill.point_sets import VoxelRule, voxel_places
from distill.signals import PointKind, SignalsOf, TeacherPrediction, described
from distill.signals.points import MAX_MEAN_KL, Points, decode_points, encode_points

RULE = VoxelRule(3.0, 0.5, 10, 1.0)
NAMES = OCC3D_CLASSES.names
SIGNAL = Points(OCC3D, NAMES, PointKind(6000, RULE))
LIDAR2EGO = np.array([[0.0, 1, 0, 0.94], [-1, 0, 0, 0], [0, 0, 1, 1.84], [0, 0, 0, 1]], np.float32)


def points(seed, queries=300, count=20):
    """Sets of points around queries all over the grid, and beyond it; (Q, R, 20)."""
    random = torch.Generator().manual_seed(seed)
    centre = (torch.rand(queries, 1, 3, generator=random) - 0.5) * torch.tensor([90.0, 90, 8]) + torch.tensor(
        [0, 0, 2.0]
    )
    metres = centre + torch.randn(queries, count, 3, generator=random) * torch.tensor([1.0, 1.0, 0.4])
    logits = torch.randn(queries, count, 17, generator=random) - 3
    logits[..., 11] += 3.5
    return torch.cat([metres, logits.sigmoid()], 2)


def voxels_of(points_QRN, grid=OCC3D):
    kept = RULE.kept(points_QRN[..., :3], points_QRN[..., 3:])
    return RULE.voxel_logits(points_QRN[kept][:, :3], points_QRN[kept][:, 3:], grid).log_softmax(-1)


def stored(points_QRN, lidar2grid=LIDAR2EGO):
    """What comes out of a store."""
    frame = Frame(lidar2ego=torch.from_numpy(lidar2grid).unsqueeze(0), token=["t"])
    prediction = TeacherPrediction(voxels_of(points_QRN).unsqueeze(0), more={"points": [points_QRN]})
    said = SIGNAL.say(prediction, frame, 17)[0]
    SIGNAL.check(said, frame, prediction.voxel_log_probs_BXYZC[0], None)
    encoded = SIGNAL.encode(said)
    arrays = {array.name: array for array in SIGNAL.arrays()}
    assert encoded.keys() == arrays.keys()
    return SIGNAL.decode(lambda name: arrays[name].unpack(arrays[name].pack(encoded[name])))


def heard(record, lidar2grid=LIDAR2EGO, grid=OCC3D):
    frame = Frame(lidar2ego=torch.from_numpy(lidar2grid).unsqueeze(0))
    return SIGNAL.listen(stack([record]), frame, grid, 17, frozenset({"voxels", "columns"}))


def test_errors_are_bounded_and_no_point_changes_its_voxel():
    given = points(0).flatten(0, 1)
    given[:, 3:] = torch.rand(given[:, 3:].shape) ** 3
    given[:4, 3:], given[4:8, 3:] = 0, 1
    places, arcs = map(torch.from_numpy, encode_points(given.numpy(), OCC3D))
    found, scores = decode_points(places, arcs, OCC3D)
    assert (found - given[:, :3]).abs().max() <= OCC3D.voxel_size / 32 + 1e-5
    assert torch.equal(voxel_places(found, OCC3D).floor(), voxel_places(given[:, :3], OCC3D).floor())
    s = given[:, 3:]
    assert ((scores - s).abs() <= 2**-7 * (s * (1 - s)).sqrt() + 2**-16).all()
    assert scores[:4].eq(0).all() and scores[4:8].eq(1).all()


def test_voxels_of_the_store_are_those_of_the_teacher():
    given = points(1)
    teacher = voxels_of(given)
    answers = heard(stored(given))
    found = answers.voxels(torch.arange(640000)).view(teacher.shape)
    occupied = teacher.argmax(-1) != 17
    assert occupied.sum() > 1000
    assert float((teacher.exp() * (teacher - found)).sum(-1).mean()) <= MAX_MEAN_KL
    assert float((teacher.argmax(-1) != found.argmax(-1)).sum()) <= 0.01 * float(occupied.sum())
    assert answers.covered(torch.arange(640000)).all()
    columns = answers.columns(torch.arange(10))
    assert columns.shape == (10, 18) and columns.exp().sum(1).allclose(torch.ones(10))


@pytest.mark.parametrize("mirror", [Mirror(x=True), Mirror(y=True), Mirror(x=True, y=True)])
def test_mirrored_points_make_mirrored_voxels(mirror):
    record = stored(points(2))
    frame = Frame(lidar2ego=LIDAR2EGO).mirrored(mirror)
    axes = [axis for axis, flips in enumerate((mirror.x, mirror.y)) if flips]
    plain = heard(record).voxels(torch.arange(640000)).view(200, 200, 16, 18)
    found = heard(record.mirrored(mirror), frame.lidar2ego).voxels(torch.arange(640000)).view(200, 200, 16, 18)
    torch.testing.assert_close(found, plain.flip(axes))


def test_on_another_grid_they_lie_where_they_are():
    """SurroundOcc's is that of the LiDAR, in which the identity is LIDAR_TOP's pose."""
    given = points(3)
    moved = given.clone()
    lidar = np.linalg.inv(LIDAR2EGO.astype(np.float64))
    moved[..., :3] = (
        given[..., :3].double() @ torch.from_numpy(lidar[:3, :3].T) + torch.from_numpy(lidar[:3, 3])
    ).float()
    answers = heard(stored(given), np.eye(4, dtype=np.float32), SURROUNDOCC)
    found = answers.voxels(torch.arange(640000)).view(200, 200, 16, 18)
    expected = voxels_of(moved, SURROUNDOCC)
    occupied = expected.argmax(-1) != 17
    assert ((found.argmax(-1) != 17) == occupied).float()[occupied].mean() > 0.9  # a place is off by 12 mm at most
    covered = answers.covered(torch.arange(640000)).view(200, 200, 16)
    assert covered[100, 100, 8] and not covered[0].any() and not covered[:, :, -1].all()


def test_frames_that_nobody_teaches_travel_too():
    record = stack([stored(points(4)), SIGNAL.absent()])
    frame = Frame(lidar2ego=torch.from_numpy(np.stack([LIDAR2EGO] * 2)))
    found = SIGNAL.listen(record, frame, OCC3D, 17, frozenset({"voxels"})).voxels(torch.arange(640000, 640010))
    assert found.isfinite().all() and (found.argmax(1) == 17).all()


def test_the_rule_is_recorded():
    description = described([replace(SIGNAL, kind=PointKind(6000, replace(RULE, power=2.7)))])
    assert description["points"]["rule"] == {"reach": 3.0, "threshold": 0.5, "most": 10, "power": 2.7}
    assert SignalsOf(description, OCC3D, NAMES, {}.__getitem__)["points"].kind.rule.power == 2.7


def test_what_cannot_be_kept_is_said():
    with pytest.raises(InputError, match="predicts no set of points: leave points out of"):
        Points.of(SimpleNamespace(), OCC3D, NAMES)
    for broken in (np.nan, 1.5):
        given = points(5)[0].numpy().copy()
        given[0, 5] = broken
        with pytest.raises(ValueError, match="not all numbers, or has a score that is no probability"):
            SIGNAL.encode((given, LIDAR2EGO))
    with pytest.raises(ValueError, match="are not 6000 of all classes"):
        SIGNAL.encode((np.zeros((6001, 20), np.float32), LIDAR2EGO))
    weak = points(6)
    frame = Frame(lidar2ego=torch.from_numpy(LIDAR2EGO).unsqueeze(0), token=["t"])
    said = SIGNAL.say(TeacherPrediction(torch.zeros(1), more={"points": [weak]}), frame, 17)[0]
    with pytest.raises(InputError, match="sample t: voxels of its stored points would miss the teacher's by"):
        SIGNAL.check(said, frame, voxels_of(points(7)), None)
