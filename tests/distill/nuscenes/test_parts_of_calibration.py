"""Calibration part by part: whatever happens to a frame, the parts make up the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.augment import Augmentation, ImageTransform
from distill.frame import Mirror, stack
from distill.networks.flashocc.rig import rigs_of
from distill.nuscenes.frames import Draw, FrameDataset
from student.evaluation.robustness import MovedCameras, TurnedCameras
from student.evaluation.tta import _with_mirrored_images

SIZE = (48, 112)
STRONG = Augmentation(resize=(1.0, 1.3), image_flip=0.5, rotation=9.0, colour=0.2, bev_flip=0.5)


@pytest.fixture
def keyframes(index):
    return index.keyframes("all")


def frames(keyframes, augmentation=None, calibration=True, history=0):
    return FrameDataset(
        keyframes, SIZE, None, False, None, augmentation, seed=0, calibration=calibration, history=history
    )


def check_whole(frame) -> None:
    """Lenses of the parts are those of the frame, and so are poses of cameras seen from the first."""
    parts = frame.calibration
    np.testing.assert_allclose(parts.source2image @ parts.intrinsics, frame.intrinsics, rtol=1e-5, atol=1e-3)
    cam2global = np.asarray(parts.ego2global, np.float64) @ np.asarray(parts.cam2ego, np.float64)
    cam2ego = np.asarray(frame.cam2ego, np.float64)
    found, expected = (np.linalg.inv(poses[..., :1, :, :]) @ poses for poses in (cam2global, cam2ego))
    np.testing.assert_allclose(found, expected, atol=1e-3)  # float32 on a map


def test_nothing_is_carried_that_nobody_asks_for(keyframes):
    assert frames(keyframes, calibration=False)[0].calibration is None


@pytest.mark.parametrize("turn", range(3))
def test_parts_make_up_the_whole(keyframes, turn):
    for at in range(len(keyframes)):
        check_whole(frames(keyframes, STRONG)[Draw(at, turn)])


def test_what_was_done_to_the_world_is_said(keyframes):
    frame = frames(keyframes)[0]
    np.testing.assert_array_equal(frame.calibration.world, np.eye(4))
    mirrored = stack([frame]).mirrored(Mirror(y=True))
    assert mirrored.calibration.world[0].diagonal().tolist() == [1, -1, 1, 1]
    np.testing.assert_array_equal(mirrored.calibration.cam2ego[0], frame.calibration.cam2ego)


@pytest.mark.parametrize("corruption", [TurnedCameras(2.0, 0), MovedCameras(10.0, 0)])
def test_a_wrong_calibration_is_wrong_in_its_parts_too(keyframes, corruption):
    frame = frames(keyframes)[0]
    worse = corruption.apply(frame)
    assert not np.allclose(worse.cam2ego, frame.cam2ego, atol=1e-2)
    check_whole(worse)
    plain = corruption.apply(frames(keyframes, calibration=False)[0])
    np.testing.assert_array_equal(worse.cam2ego, plain.cam2ego)


def test_mirrored_images_have_mirrored_parts(keyframes):
    frame = _with_mirrored_images(stack([frames(keyframes, history=1)[0]]))
    mirror = torch.from_numpy(ImageTransform(1.0, (0.0, 0.0), flip=True).upright(SIZE[1])).float()
    for seen in (frame, *frame.past):
        check_whole(seen)
        assert (torch.linalg.det(mirror @ seen.calibration.source2image) > 0).all()


@pytest.mark.parametrize("mirror", [Mirror(), Mirror(x=True), Mirror(x=True, y=True)])
def test_the_past_is_where_it_was_by_either_way_to_the_present(keyframes, mirror):
    """By the poses of the frames, and by the map."""
    latest = max(range(len(keyframes)), key=lambda at: keyframes[at].timestamp * (keyframes[at].previous != ""))
    assert keyframes[latest].previous
    frame = stack([frames(keyframes, history=1)[latest]]).mirrored(mirror)
    ways = [rigs_of(frame, key) for key in (None, "CAM_FRONT_LEFT")]
    moved = [torch.linalg.inv(then.cam2common_BN44) @ now.cam2common_BN44 for now, then in ways]
    torch.testing.assert_close(moved[0], moved[1], atol=2e-3, rtol=0)
    assert (moved[0][..., :3, 3].norm(dim=-1) > 1).all()
