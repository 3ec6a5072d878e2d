"""Mirrored views of a keyframe, against a network that cannot tell them apart and against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from same import assert_same
from torch import nn

from distill.augment import ImageTransform
from distill.errors import InputError
from distill.frame import Frame, Mirror, stack
from distill.grids import VoxelGrid
from distill.networks.prediction import Occupancy
from student.evaluation.tta import View, average_views

HEIGHT, WIDTH, POINTS = 64, 160, 100
# not symmetric along the axis of travel
EGO = VoxelGrid("coarse", "ego", (-20.0, -40.0, -16.0), 2.0, (32, 40, 16))
LIDAR = VoxelGrid("coarse", "lidar", (-40.0, -20.0, -16.0), 2.0, (40, 32, 16))
# what a network is never told
UNSEEN = ("token", "scene", "semantics", "mask_camera", "mask_lidar", "labelled", "depth", "teachers")
PLAIN = View(images=False, world=False)
FLIP = [View(images, world) for world in (False, True) for images in (False, True)]


def keyframe(seed, grid):
    """A frame as `FrameDataset` gives it: six cameras looking around, LiDAR points."""
    rng = np.random.default_rng(seed)
    cam2ego = np.tile(np.eye(4), (6, 1, 1))
    for pose, yaw in zip(cam2ego, np.arange(6) * np.pi / 3 + rng.uniform(-0.2, 0.2, 6), strict=True):
        forward = np.array([np.cos(yaw), np.sin(yaw), rng.uniform(-0.1, 0.1)])
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        forward /= np.linalg.norm(forward)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
        pose[:3, 3] = rng.uniform([-1, -1, 1], [1, 1, 2])
    return Frame(
        token=f"{seed:032x}",
        scene="scene-0001",
        images=rng.integers(0, 256, (6, 3, HEIGHT, WIDTH), dtype=np.uint8),
        intrinsics=np.tile(np.array([[110, 0, 83], [0, 110, 30], [0, 0, 1]], np.float32), (6, 1, 1)),
        cam2ego=cam2ego.astype(np.float32),
        lidar2ego=np.eye(4, dtype=np.float32) if grid.frame == "lidar" else cam2ego[3].astype(np.float32),
        points=(rng.normal(size=(POINTS, 4)) * [15, 15, 1, 1]).astype(np.float32),
        depth=rng.uniform(0, 60, (6, 4, 10)).astype(np.float32),
        semantics=rng.integers(0, 18, grid.shape, dtype=np.uint8),
        mask_camera=rng.random(grid.shape) < 0.5,
        mask_lidar=rng.random(grid.shape) < 0.5,
        labelled=True,
    )


def batch_of(grid, seeds=(0, 1)):
    return stack([keyframe(seed, grid) for seed in seeds])


class Projection(nn.Module):
    """Paints every voxel centre with the image colours at its pixels and with the points around it.

    That is all there is to the geometry of a keyframe, so mirrored images change nothing and a mirrored world mirrors.
    """

    def __init__(self, grid):
        super().__init__()
        self.centres_V3 = torch.from_numpy(grid.centres()).double().reshape(-1, 3)
        self.grid = grid

    def forward(self, frame):
        assert [getattr(frame, name) for name in UNSEEN] == [None] * len(UNSEEN)
        return Occupancy(torch.stack([self.painted(frame, b) for b in range(len(frame.images))]))

    def painted(self, frame, b):
        ego2cam_N44 = torch.linalg.inv(frame.cam2ego[b].double())
        camera_NV3 = self.centres_V3 @ ego2cam_N44[:, :3, :3].mT + ego2cam_N44[:, None, :3, 3]
        u, v, depth = (camera_NV3 @ frame.intrinsics[b].double().mT).unbind(-1)
        uv_NV2 = torch.stack([u / WIDTH, v / HEIGHT], -1) / depth.clamp(min=0.1).unsqueeze(-1) * 2 - 1
        images_N3HW = frame.images[b].double() / 50
        colours_N3V = nn.functional.grid_sample(images_N3HW, uv_NV2[:, None], align_corners=False)[:, :, 0]
        colours_V3 = (colours_N3V * (depth > 0.1).unsqueeze(1)).sum(0).T
        near_V1 = torch.cdist(self.centres_V3, frame.points[b][:, :3].double()).amin(1, keepdim=True)
        to_lidar_V1 = (self.centres_V3 - frame.lidar2ego[b, :3, 3].double()).norm(dim=1, keepdim=True) / 10
        return torch.cat([colours_V3, near_V1, to_lidar_V1], 1).unflatten(0, self.grid.shape)


@pytest.mark.parametrize("grid", [EGO, LIDAR], ids=["ego", "lidar"])
@pytest.mark.parametrize("view", FLIP)
def test_a_network_that_knows_only_geometry_gives_the_same_answer(grid, view):
    network, batch = Projection(grid), batch_of(grid, seeds=[0])
    expected = network(PLAIN.of(batch, grid)).voxel_logits_BXYZC
    assert (expected[..., :3] != 0).float().mean() > 0.2
    answer = network(view.of(batch, grid)).voxel_logits_BXYZC
    assert torch.allclose(answer, expected) != view.world
    torch.testing.assert_close(view.undone(answer, grid), expected, rtol=1e-4, atol=1e-3)
    average = average_views(network, batch, [PLAIN, view], grid)
    torch.testing.assert_close(average, expected.float().log_softmax(-1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("grid", [EGO, LIDAR], ids=["ego", "lidar"])
@pytest.mark.parametrize("view", FLIP)
def test_mirrored_twice_is_as_before(grid, view):
    batch = batch_of(grid)
    once = view.of(batch, grid)
    twice = view.of(once, grid)
    for name in ("images", "intrinsics", "cam2ego", "lidar2ego"):
        torch.testing.assert_close(getattr(twice, name), getattr(batch, name))
        mirrored = view.images if name in ("images", "intrinsics") else view.world
        assert torch.equal(getattr(once, name), getattr(batch, name)) != mirrored
    for before, after in zip(batch.points, twice.points, strict=True):
        assert torch.equal(after, before)
    voxels = torch.randn(2, *grid.shape, 3)
    assert torch.equal(view.undone(view.undone(voxels, grid), grid), voxels)


@pytest.mark.parametrize("grid", [EGO, LIDAR], ids=["ego", "lidar"])
@pytest.mark.parametrize("view", FLIP)
def test_the_past_is_seen_in_the_same_view(grid, view):
    """As a keyframe of its own, whose cameras stand where they stood in the frame of the present."""
    alone = batch_of(grid, seeds=[1])
    ego2present = alone.cam2ego[:, 2]  # some rigid motion
    past = replace(alone, ego2present=ego2present, points=None)
    (seen,) = view.of(replace(batch_of(grid, seeds=[0]), past=(past,)), grid).past
    expected = view.of(replace(alone, cam2ego=ego2present @ alone.cam2ego), grid)
    assert torch.equal(seen.images, expected.images) and torch.equal(seen.intrinsics, expected.intrinsics)
    torch.testing.assert_close(seen.ego2present @ seen.cam2ego, expected.cam2ego)


def test_the_batch_itself_stays():
    batch = batch_of(EGO)
    average_views(Projection(EGO), batch, FLIP, EGO)
    assert_same(batch, batch_of(EGO))


def configured(student, grid):
    """A network of conf/student with random weights."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("common", ["+grid=occ3d", f"+student={student}", "student.network.encoder.weights=none"])
    config.grid = {"_target_": "distill.grids.VoxelGrid", **grid.to_dict()}
    torch.manual_seed(0)
    return instantiate(config.student.network).eval()


def by_hand(network, grid, seeds):
    """Mean probabilities of the four views, mirrored keyframe by keyframe as training does, float64."""
    axis = 1 if grid.frame == "ego" else 0
    mirror_33 = ImageTransform(scale=1.0, offset=(0.0, 0.0), flip=True).upright(WIDTH).astype(np.float32)
    total = 0
    for images in (False, True):
        for world in (False, True):
            frames = [keyframe(seed, grid) for seed in seeds]
            if images:
                frames = [
                    replace(frame, images=frame.images[..., ::-1], intrinsics=mirror_33 @ frame.intrinsics)
                    for frame in frames
                ]
            mirror = Mirror(x=world and axis == 0, y=world and axis == 1)
            logits = network(stack([frame.mirrored(mirror) for frame in frames])).voxel_logits_BXYZC
            probs = logits.double().softmax(-1).numpy()
            total = total + (np.flip(probs, 1 + axis) if world else probs)
    return total / 4


@pytest.mark.parametrize(("student", "grid"), [("demo", EGO), ("fusion", LIDAR)], ids=["demo", "fusion"])
def test_the_configured_views_are_the_mean_of_four_passes(student, grid):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("common", ["+tta=flip"])
    views = instantiate(config.tta.views, _convert_="all")
    network = configured(student, grid)
    with torch.inference_mode():
        average = average_views(network, batch_of(grid), views, grid)
        plain = network(batch_of(grid)).voxel_logits_BXYZC.log_softmax(-1)
        expected = by_hand(network, grid, seeds=(0, 1))
    assert average.dtype == torch.float32
    np.testing.assert_allclose(average.exp(), expected, atol=1e-5)
    torch.testing.assert_close(average.exp().sum(-1), torch.ones(2, *grid.shape))
    assert (average - plain).abs().max() > 1e-3  # a real network does tell the views apart


def test_the_keyframe_as_it_is_is_the_plain_network():
    network, batch = configured("demo", EGO), batch_of(EGO)
    with torch.inference_mode():
        plain = network(batch).voxel_logits_BXYZC.log_softmax(-1)
        assert torch.equal(average_views(network, batch, [PLAIN], EGO), plain)


def test_without_augmentation_there_are_no_views():
    with initialize_config_module("conf", version_base="1.3"):
        assert instantiate(compose("common", ["+tta=none"]).tta.views, _convert_="all") == []


class Certain(nn.Module):
    """Knows the class for certain, another one in every view."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, frame):
        logits = torch.full((1, 4, 4, 1, 4), -1e4)
        logits[..., self.calls] = 0.0
        self.calls += 1
        return Occupancy(logits)


def test_probabilities_are_averaged_and_stay_finite():
    grid = VoxelGrid("tiny", "ego", (-2.0, -2.0, 0.0), 1.0, (4, 4, 1))
    average = average_views(Certain(), batch_of(EGO, seeds=[0]), FLIP[:2], grid)
    expected = torch.tensor([np.log(0.5), np.log(0.5), -1e4 + np.log(0.5) + np.log(2), -1e4]).float()
    torch.testing.assert_close(average, expected.expand(1, 4, 4, 1, 4))


@pytest.mark.parametrize(
    "grid",
    [VoxelGrid("aside", "ego", (-20, -40, 0), 1, (40, 60, 2)), VoxelGrid("aside", "lidar", (0, -1, 0), 1, (9, 2, 2))],
)
def test_a_grid_that_is_not_symmetric_sideways_is_refused(grid):
    with pytest.raises(InputError, match=r"the grid aside reaches from .* m sideways"):
        average_views(Certain(), batch_of(EGO, seeds=[0]), FLIP, grid)
    average_views(Certain(), batch_of(EGO, seeds=[0]), FLIP[:2], grid)  # mirrored images need no symmetry
