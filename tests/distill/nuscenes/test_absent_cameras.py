"""A camera that a keyframe lacks: a black image that sees nothing of the world, whoever projects into it."""

import numpy as np
import pytest
import torch

from distill.augment import Augmentation
from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import stack
from distill.grids import OCC3D, SURROUNDOCC
from distill.networks.fusion import paint
from distill.networks.lift import LiftSplat, frustum
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.index import load_index
from distill.nuscenes.labels import SurroundOccLabels
from distill.nuscenes.layout import CAMERAS
from distill.nuscenes.overlay import draw_overlay
from distill.nuscenes.points import project
from distill.pictures.cameras import keyframe_overlays
from teacher_dump.teachers.gaussianformer.attention import View
from teacher_dump.teachers.gaussianformer.attention import project as project_keypoints
from teacher_dump.teachers.gaussianformer.teacher import lidar2image

VERSION, SIZE, STRIDE = "v1.0-tiny", (48, 112), 16
ABSENT = [1, 4]  # CAM_FRONT and CAM_BACK of keyframe "late"
MIRRORED = Augmentation(resize=(0.8, 1.3), image_flip=0.5, rotation=0.0, colour=0.2, bev_flip=1.0)


def leave_out(edit, gone):
    """Take keyframe images away, those for whose channel and sample token `gone` holds."""
    edit("sample_data", lambda rows: rows.__setitem__(slice(None), [row for row in rows if not gone(*named(row))]))


def named(row):
    return row["filename"].split("/")[1], row["sample_token"]


@pytest.fixture
def index(dataroot, edit, tmp_path):
    """A tiny dataroot whose keyframe "late" has four cameras."""
    leave_out(edit, lambda channel, token: token == "late" and channel in ("CAM_FRONT", "CAM_BACK"))
    return load_index(dataroot, VERSION, tmp_path / "cache")


def frame_of(index, augmentation=None, labels=None):
    return FrameDataset(index.select(["late"]), SIZE, STRIDE, True, labels, augmentation, 0)[0]


def test_which_cameras_are_absent(index):
    cameras = index.keyframe("late").cameras
    assert [camera.channel for camera in cameras] == list(CAMERAS)
    assert [i for i, camera in enumerate(cameras) if not camera.present] == ABSENT
    assert all(camera.path.is_file() for camera in cameras if camera.present)
    assert index.keyframes("all").absent_cameras == {"CAM_FRONT": 1, "CAM_BACK": 1}
    assert index.keyframes("val").absent_cameras == {}


def test_its_image_is_black_and_its_depth_map_empty(index):
    frame = frame_of(index)
    assert [i for i in range(6) if not frame.images[i].any()] == ABSENT
    assert [i for i in range(6) if not frame.depth[i].any()] == ABSENT


@pytest.mark.parametrize("augmentation", [None, MIRRORED])
@pytest.mark.parametrize("labels", [None, SurroundOccLabels(None)])
def test_nothing_that_it_shows_reaches_the_grid(index, augmentation, labels):
    """No point of its image within 60 m lies on the grid, and nothing measured or modelled is in front of it."""
    frame = frame_of(index, augmentation, labels)
    grid = SURROUNDOCC if labels else OCC3D
    depths = torch.arange(0.5, 60.5, 1.0)
    batch = stack([frame])
    points = frustum(3, 7, STRIDE, depths, batch.intrinsics, batch.cam2ego)[0].numpy()
    inside_N = ((points >= grid.lower) & (points < grid.upper)).all(-1).any((1, 2, 3))
    assert [i for i in range(6) if not inside_N[i]] == ABSENT

    _, _, depth_NP = project(frame.points, frame.intrinsics, frame.cam2ego)
    assert [i for i in range(6) if not (depth_NP[i] > 0).any()] == ABSENT

    view = View([], lidar2image(batch.intrinsics, batch.cam2ego, batch.lidar2ego)[0], SIZE)
    corners = torch.rand(500, 1, 3) * (torch.tensor(grid.upper) - torch.tensor(grid.lower)) + torch.tensor(grid.lower)
    _, seen_GPN = project_keypoints(corners, view)
    assert [i for i in range(6) if not seen_GPN[..., i].any()] == ABSENT


@pytest.mark.parametrize("augmentation", [None, MIRRORED])
def test_lift_does_not_depend_on_its_pixels(index, augmentation):
    batch = stack([frame_of(index, augmentation)])
    torch.manual_seed(0)
    lift = LiftSplat(8, 4, (1.0, 60.0), 20, 2, 1, OCC3D).eval()
    feat_BNCHW = torch.randn(1, 6, 8, 3, 7)

    def lifted(changed):
        feat = feat_BNCHW.clone()
        feat[:, changed] = 10 * torch.randn(1, len(changed), 8, 3, 7)
        with torch.no_grad():
            return lift(feat, STRIDE, batch.intrinsics, batch.cam2ego)[0]

    assert lifted([]).any()
    torch.testing.assert_close(lifted(ABSENT), lifted([]), rtol=0, atol=0)
    assert not torch.equal(lifted([0]), lifted([]))


@pytest.mark.parametrize("augmentation", [None, MIRRORED])
def test_points_are_not_painted_with_its_pixels(index, augmentation):
    frame = frame_of(index, augmentation)
    points, intrinsics, cam2ego = map(torch.from_numpy, (frame.points, frame.intrinsics, frame.cam2ego))
    black, bright = torch.zeros(6, 2, 3, 7), torch.zeros(6, 2, 3, 7)
    bright[ABSENT] = 1.0
    ego2cam = torch.linalg.inv(cam2ego)
    painted = [paint(points[:, :3], feat, intrinsics, ego2cam, SIZE) for feat in (black, bright)]
    assert painted[0][:, -1].any()
    torch.testing.assert_close(painted[0], painted[1], rtol=0, atol=0)


def test_batches_mix_keyframes_with_all_and_with_fewer_cameras(index):
    whole = FrameDataset(index.keyframes("all"), SIZE, STRIDE, False, None, MIRRORED, 0)
    batch = stack([whole[i] for i in range(3)])
    assert batch.images.shape == (3, 6, 3, 48, 112)
    assert torch.isfinite(batch.intrinsics).all() and torch.isfinite(torch.linalg.inv(batch.cam2ego)).all()


def test_pictures_leave_it_as_it_is(index):
    keyframe = index.keyframe("late")
    grey = [np.full((54, 96, 3), 90, np.uint8) for _ in CAMERAS]
    everywhere = np.zeros(OCC3D.shape, np.uint8)
    drawn = keyframe_overlays(keyframe, grey, everywhere, None, OCC3D, OCC3D_CLASSES)
    assert [i for i in range(6) if np.array_equal(drawn[i], grey[i])] == ABSENT
    box = np.array([[[x, y, z] for y, z in ((-1, 0), (1, 0), (1, 2), (-1, 2))] for x in (10, 14)]).reshape(1, 8, 3)
    sheet = np.asarray(draw_overlay(keyframe, box))[40:450, 800:1600]  # CAM_FRONT without its name
    assert not sheet.any()


def test_a_rig_of_fewer_cameras(dataroot, edit, tmp_path):
    leave_out(edit, lambda channel, token: channel.startswith("CAM_") and channel != "CAM_BACK")
    keyframes = load_index(dataroot, VERSION, tmp_path).keyframes("all")
    assert [camera.channel for camera in keyframes[0].cameras if camera.present] == ["CAM_BACK"]
    assert set(keyframes.absent_cameras.values()) == {3}
    assert (keyframes[0].cameras[0].width, keyframes[0].cameras[0].height) == (250, 141)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("CAM_", r"keyframe late has none of CAM_FRONT_LEFT, .* \(it has LIDAR_TOP\): name its cameras so"),
        ("LIDAR_TOP", r"keyframe late has no LIDAR_TOP in .*sample_data\.json \(it has CAM_BACK, .*add its record"),
        ("", r"keyframe late has no LIDAR_TOP in .* \(it has no sensor at all\)"),
    ],
)
def test_a_keyframe_needs_its_scan_and_a_camera(dataroot, edit, tmp_path, prefix, message):
    leave_out(edit, lambda channel, token: token == "late" and channel.startswith(prefix))
    with pytest.raises(InputError, match=message):
        load_index(dataroot, VERSION, tmp_path)
