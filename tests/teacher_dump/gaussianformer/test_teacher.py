"""The teacher around the network: image pipeline, projection, and Gaussians evaluated on the grids people use."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from distill.errors import InputError
from distill.frame import Frame
from distill.grids import OCC3D, SURROUNDOCC
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.layout import CAMERAS
from distill.signals.gaussians import decode_gaussians, encode_gaussians, render
from teacher_dump.border import open_teacher
from teacher_dump.teachers.gaussianformer.teacher import lidar2image, normalised

LIDAR2EGO = torch.tensor(
    [[0.0, 1.0, 0.0, 0.94], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.84], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float32
)
SMALL = ("teacher.network.lifter.lifted=60", "teacher.network.lifter.learned=40", "teacher.image_size=[96,160]")


@pytest.fixture(scope="module")
def checkpoint(fill, tmp_path_factory):
    """A small GaussianFormer-2 with deterministic weights, saved as upstream saves its own."""
    path = tmp_path_factory.mktemp("weights") / "state_dict.pth"
    torch.save({"state_dict": fill(instantiate(config("none.pth").network)).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def teacher(checkpoint):
    return open_teacher(config(checkpoint))


def config(checkpoint, *overrides):
    return composed("gaussianformer2_25600", checkpoint, *SMALL, *overrides)


def composed(teacher, checkpoint, *overrides):
    with initialize_config_module("conf", version_base="1.3"):
        return compose("dump", [f"teacher={teacher}", f"teacher.checkpoint={checkpoint}", *overrides]).teacher


def batch(lidar2ego):
    """One keyframe: noise for images, six cameras in a circle 1.5 m above the ground."""
    generator = torch.Generator().manual_seed(0)
    cam2ego = torch.eye(4).repeat(6, 1, 1)
    for camera, yaw in enumerate((0.96, 0.0, -0.96, 1.92, np.pi, -1.92)):
        forward = torch.tensor([np.cos(yaw), np.sin(yaw), 0.0])
        right = torch.tensor([np.sin(yaw), -np.cos(yaw), 0.0])
        cam2ego[camera, :3] = torch.stack([right, torch.tensor([0.0, 0, -1]), forward, torch.tensor([1, 0, 1.5])], 1)
    intrinsics = torch.tensor([[120.0, 0, 80], [0, 120, 48], [0, 0, 1]]).repeat(6, 1, 1)
    return Frame(
        token=["t"],
        channels=[CAMERAS],
        images=torch.randint(0, 256, (1, 6, 3, 96, 160), generator=generator, dtype=torch.uint8),
        intrinsics=intrinsics.unsqueeze(0),
        cam2ego=(lidar2ego @ torch.linalg.inv(LIDAR2EGO) @ cam2ego).unsqueeze(0),
        lidar2ego=lidar2ego.unsqueeze(0),
    )


def test_images_are_normalised_as_upstream_does():
    grey = torch.full((1, 6, 3, 2, 2), 128, dtype=torch.uint8)
    expected = [(128 - 123.675) / 58.395, (128 - 116.28) / 57.12, (128 - 103.53) / 57.375]
    torch.testing.assert_close(normalised(grey)[0, 0, :, 0, 0], torch.tensor(expected))


def test_images_are_resized_as_upstream_does(teacher):
    assert FrameDataset([], labels=None, augmentation=None, seed=0, **teacher.inputs).bicubic


def test_cameras_come_in_the_order_of_upstream(teacher, monkeypatch):
    """docs/formulas.md 8.1: images and projections alike. The grey level and the focal length of a camera name it."""
    given, names = batch(LIDAR2EGO), []
    for camera in range(6):
        given.images[:, camera] = 40 * camera
        given.intrinsics[:, camera, 0, 0] = 100 + camera

    def network(images_N3HW, lidar2img_N44, draws):
        grey = (images_N3HW[:, 0, 0, 0] * 58.395 + 123.675) / 40
        # the row of u is the focal length times a unit vector, and the principal point times another, upright on it
        focal = (lidar2img_N44[:, 0, :3].square().sum(1) - 80**2).sqrt() - 100
        names.extend((CAMERAS[round(i)], CAMERAS[round(j)]) for i, j in zip(grey.tolist(), focal.tolist(), strict=True))
        return teacher.network.head(torch.zeros(1, 28))

    network.head = teacher.network.head
    monkeypatch.setattr(teacher, "network", network)
    teacher.predict(given)
    order = ("FRONT", "FRONT_RIGHT", "FRONT_LEFT", "BACK", "BACK_LEFT", "BACK_RIGHT")
    assert names == [(f"CAM_{name}", f"CAM_{name}") for name in order]


def test_a_lidar_point_projects_through_the_ego_frame():
    given = batch(LIDAR2EGO)
    lidar2img_44 = lidar2image(given.intrinsics, given.cam2ego, given.lidar2ego)[0, 1]
    # ahead of the front camera: 10 m along the optical axis, 1 m left, 0.5 m up
    ego = torch.tensor([11.0, 1.0, 2.0, 1.0])
    u, v, depth, one = (lidar2img_44 @ torch.linalg.inv(LIDAR2EGO) @ ego).tolist()
    assert (depth, one) == pytest.approx((10, 1), abs=1e-4)
    assert (u / depth, v / depth) == pytest.approx((80 - 12, 48 - 6), abs=1e-3)


def test_gaussians_are_evaluated_at_the_voxels_of_the_grid(teacher):
    """On Occ3D: at voxel centres brought into the LIDAR_TOP frame, and covered where the network's range is."""
    prediction = teacher.predict(batch(LIDAR2EGO))
    assert teacher.grid == OCC3D
    assert prediction.voxel_log_probs_BXYZC.shape == (1, 200, 200, 16, 18)
    torch.testing.assert_close(prediction.voxel_log_probs_BXYZC.exp().sum(-1), torch.ones(1, 200, 200, 16))
    index = torch.tensor([[20, 30, 3], [100, 100, 8], [150, 90, 1]])
    ego_V4 = torch.cat([(index + 0.5) * 0.4 + torch.tensor(OCC3D.lower), torch.ones(3, 1)], 1)
    lidar_V3 = (ego_V4 @ torch.linalg.inv(LIDAR2EGO).T)[:, :3]
    expected = prediction.gaussians[0].log_probs(lidar_V3)
    found = prediction.voxel_log_probs_BXYZC[0][tuple(index.T)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # the network's range ends 3 m above the LiDAR, which hangs at 1.84 m: only the centres of layer 15 are higher
    covered_Z = prediction.covered_BXYZ[0].all((0, 1))
    assert covered_Z.tolist() == [True] * 15 + [False]


def test_one_keyframe_gives_the_same_gaussians_on_either_grid(teacher, checkpoint):
    on_occ3d = teacher.predict(batch(LIDAR2EGO))
    other = open_teacher(config(checkpoint, "grid=surroundocc"))
    on_surroundocc = other.predict(batch(torch.eye(4)))  # whose samples are in the LIDAR_TOP frame
    assert other.grid == SURROUNDOCC
    assert on_surroundocc.covered_BXYZ.all()
    means = [prediction.gaussians[0].means_G3 for prediction in (on_occ3d, on_surroundocc)]
    torch.testing.assert_close(*means, rtol=0, atol=1e-3)
    assert teacher.gaussians.count == 100


def test_a_camera_rig_that_sees_nothing_is_named_by_its_keyframe(teacher):
    """A focal length of a hundredth of a pixel lifts every pixel out of the range."""
    given = batch(LIDAR2EGO)
    given.intrinsics[..., 0, 0] = given.intrinsics[..., 1, 1] = 0.01
    with pytest.raises(InputError, match=r"keyframe t: no pixel"):
        teacher.predict(given)


def test_fewer_points_than_anchors_still_give_every_gaussian(teacher, monkeypatch):
    """Six maps of 12 x 20 pixels lift 1440 points at the most."""
    lifter = teacher.network.lifter
    for name, rows in (("anchor", 1500), ("instance_feature", 1540)):
        before = getattr(lifter, name)
        monkeypatch.setattr(lifter, name, torch.nn.Parameter(before[torch.arange(rows) % len(before)]))
    prediction = teacher.predict(batch(LIDAR2EGO))
    means_G3 = prediction.gaussians[0].means_G3
    assert len(means_G3.unique(dim=0)) == 1540
    assert prediction.voxel_log_probs_BXYZC.isfinite().all()


@pytest.fixture(scope="module")
def baseline(fill, tmp_path_factory):
    """A teacher of the form of gaussianformer_144000, whose 3000 Gaussians leave most of the range alone."""
    path = tmp_path_factory.mktemp("weights") / "state_dict.pth"
    small = ("teacher.network.lifter.gaussians=3000", "teacher.image_size=[96,160]", "grid=surroundocc")
    network = instantiate(composed("gaussianformer_144000", "none.pth", *small).network)
    torch.save(fill(network).state_dict(), path)
    return open_teacher(composed("gaussianformer_144000", path, *small))


def test_where_no_gaussian_reaches_a_model_without_free_space_covers_nothing(baseline):
    prediction = baseline.predict(batch(torch.eye(4)))
    gaussians, covered_V = prediction.gaussians[0], prediction.covered_BXYZ.flatten()
    log_probs_VC = prediction.voxel_log_probs_BXYZC.flatten(0, -2)
    scores_VS = gaussians.occupancy(torch.from_numpy(SURROUNDOCC.centres()).float().view(-1, 3))
    reached_V = (scores_VS != 0).any(1)
    assert 0.02 < covered_V.float().mean() < 0.5
    assert not covered_V[~reached_V].any()
    # where it says more than that all classes are alike, as without any Gaussian
    assert covered_V[scores_VS.abs().amax(1) > 1e-5].all()
    uniform_V = (log_probs_VC - log_probs_VC[~reached_V][0]).abs().amax(1) < 1e-6
    assert uniform_V[~covered_V].all()


def test_gaussians_from_a_store_cover_what_those_of_the_teacher_do(baseline):
    """But for at most half a percent of what is covered: at the rim, where they say next to nothing."""
    prediction = baseline.predict(batch(torch.eye(4)))
    stored = decode_gaussians(encode_gaussians(prediction.gaussians[0], baseline.gaussians), baseline.gaussians)
    log_probs_VC, covered_V = render(stored, SURROUNDOCC, torch.eye(4), torch.arange(640_000))
    dumped_V, told_VC = prediction.covered_BXYZ.flatten(), prediction.voxel_log_probs_BXYZC.flatten(0, -2)
    differs_V = dumped_V != covered_V
    assert 0 < differs_V.sum() < 0.005 * dumped_V.sum()
    torch.testing.assert_close(log_probs_VC[differs_V], told_VC[differs_V], rtol=0, atol=1e-5)
