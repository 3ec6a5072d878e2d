"""The lift's geometry, and the configured students as a whole."""

import copy

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distill.errors import InputError
from distill.frame import Frame
from distill.grids import OCC3D, VoxelGrid
from distill.networks.lift import LiftSplat, near_ground
from distill.networks.network import LiftsMeasuredDepth

HEIGHT, WIDTH, STRIDE = 4, 6, 16
DEPTH_RANGE, BINS = (1.0, 31.0), 5
# the camera looks along ego x: its axes right, down, forward are -y, -z, x
FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def lift(channels=2, bev_stride=1, grid=OCC3D, height_slices=1, by_area=False):
    """A lift that takes its input for depth scores and context; unless `by_area`, near and far points count alike."""
    module = LiftSplat(4, channels * height_slices, DEPTH_RANGE, BINS, bev_stride, height_slices, grid)
    if not by_area:
        module.area.fill_(1.0)
    module.conv = nn.Identity()
    module.depth_and_context = TakeFirst(BINS + channels)
    return module


class TakeFirst(nn.Module):
    """Passes its first channels, which leaves the hint about the ground out."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x_BCHW):
        return x_BCHW[:, : self.channels]


def camera(yaw=0.0, position=(0.0, 0.0, 1.5), focal=60.0):
    """Intrinsics (3, 3) and cam2ego (4, 4), float64."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    pose = np.eye(4)
    pose[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ FORWARD
    pose[:3, 3] = position
    return np.array([[focal, 0, 48.0], [0, focal, 32.0], [0, 0, 1]]), pose


def splat(module, feat_BNCHW, *cameras):
    intrinsics, cam2ego = (torch.tensor(np.stack(part))[None].float() for part in zip(*cameras, strict=True))
    return module(feat_BNCHW, STRIDE, intrinsics, cam2ego)


class TestMeasuredDepth:
    def test_cells_with_a_return_are_lifted_to_where_it_lies(self):
        """To the bin in which it lies, whatever is predicted; without one, or out of range, as predicted."""
        module = lift()
        feat = torch.randn(1, 1, BINS + 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
        measured = torch.zeros(1, 1, HEIGHT, WIDTH)
        measured[..., 0] = torch.tensor([1.0, 6.9, 30.9, 13.0])
        measured[..., 1] = torch.tensor([0.5, 31.0, 0.0, 900.0])
        certain = feat.clone()
        certain[:, :, :BINS, :, 0] = 0
        for row, depth_bin in enumerate([0, 0, 4, 2]):
            certain[0, 0, depth_bin, row, 0] = 1000.0
        at = [torch.tensor(part)[None, None].float() for part in camera(0.0, (0.0, 3.0, 1.5))]
        expected, _ = module(certain, STRIDE, *at)
        bev_BCXY, depth_BNDHW = module(feat, STRIDE, *at, measured)
        torch.testing.assert_close(bev_BCXY, expected)
        assert torch.equal(depth_BNDHW, feat[:, :, :BINS])
        unmeasured, _ = module(feat, STRIDE, *at, torch.zeros_like(measured))
        assert torch.equal(unmeasured, module(feat, STRIDE, *at)[0])
        assert not torch.allclose(unmeasured, bev_BCXY)

    def test_the_configured_student_takes_it(self):
        with initialize_config_module("conf", version_base="1.3"):
            config = compose("train", overrides=["student=demo", "student.network.encoder.weights=none"])
        network = instantiate(config.student.network).eval()
        assert isinstance(network, LiftsMeasuredDepth)
        intrinsics, cam2ego = (torch.tensor(part)[None, None].float() for part in camera())
        images = torch.zeros(1, 1, 3, 64, 96, dtype=torch.uint8)
        frame = Frame(images=images, intrinsics=intrinsics, cam2ego=cam2ego, depth=torch.full((1, 1, 8, 12), 9.0))
        with torch.no_grad():
            plain, measured = network(frame), network.with_measured_depth(frame)
        assert torch.equal(plain.depth.logits_BNDHW, measured.depth.logits_BNDHW)
        assert not torch.equal(plain.voxel_logits_BXYZC, measured.voxel_logits_BXYZC)


def one_point(row, column, depth_bin):
    """Features whose context is 3 at one image cell, at the depth of one bin for certain."""
    feat = torch.zeros(1, 1, BINS + 2, HEIGHT, WIDTH)
    feat[:, :, depth_bin] = 1000.0
    feat[0, 0, BINS, row, column] = 3.0
    return feat


@settings(max_examples=60, deadline=None)
@given(
    row=st.integers(0, HEIGHT - 1),
    column=st.integers(0, WIDTH - 1),
    depth_bin=st.integers(0, BINS - 1),
    yaw=st.floats(-3, 3),
    x=st.floats(-20, 20),
    z=st.floats(-2, 6),
    bev_stride=st.sampled_from([1, 2]),
)
def test_a_point_lands_where_the_pinhole_camera_says(row, column, depth_bin, yaw, x, z, bev_stride):
    intrinsics, cam2ego = camera(yaw, (x, 3.0, z))
    depth = 1.0 + 6.0 * (depth_bin + 0.5)
    u, v = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
    # by similar triangles, without inverting a matrix
    in_camera = np.array([(u - 48.0) / 60.0 * depth, (v - 32.0) / 60.0 * depth, depth, 1.0])
    place = ((cam2ego @ in_camera)[:3] - OCC3D.lower) / [0.4 * bev_stride, 0.4 * bev_stride, 6.4]
    if np.abs(place - place.round()).min() < 1e-3:
        return  # on the border between two cells, rounding decides
    expected = torch.zeros(200 // bev_stride, 200 // bev_stride)
    inside = (place >= 0).all() and (place < [200 / bev_stride, 200 / bev_stride, 1]).all()
    if inside:
        expected[int(place[0]), int(place[1])] = 3.0
    bev_BCXY, _ = splat(lift(bev_stride=bev_stride), one_point(row, column, depth_bin), (intrinsics, cam2ego))
    torch.testing.assert_close(bev_BCXY[0, 0], expected)
    assert not bev_BCXY[0, 1].any()


def test_known_cell():
    # 16 m ahead of a camera at x = 2: 18 m ahead of the ego, 8 pixels right of the centre: 16 * 8 / 60 m right
    bev_BCXY, _ = splat(lift(), one_point(2, 3, 2), camera(position=(2.0, 0.0, 1.5)))
    assert bev_BCXY[0, 0].nonzero().tolist() == [[int((18 + 40) / 0.4), int((40 - 16 * 8 / 60) / 0.4)]]


@pytest.mark.parametrize("position", [(0.0, 0.0, 6.0), (0.0, 0.0, -9.0), (39.0, 0.0, 1.5), (0.0, 43.0, 1.5)])
def test_points_above_below_and_beside_the_grid_are_dropped(position):
    row = 1 if position[2] > 5 else 2  # above the horizon: the point is higher than the camera
    bev_BCXY, _ = splat(lift(), one_point(row, 3, 2), camera(position=position))
    assert not bev_BCXY.any()


def test_a_mark_grows_with_the_square_of_its_distance():
    module = lift(by_area=True)
    high = camera(position=(0.0, 0.0, 4.0))
    near, far = (splat(module, one_point(2, 3, depth_bin), high)[0].sum() for depth_bin in (0, 3))
    ratio = (module.depth_centres[3] / module.depth_centres[0]) ** 2
    torch.testing.assert_close(far / near, ratio)


def test_height_slices_keep_height_apart():
    module = lift(height_slices=4)
    for height, expected in ((-0.9, 0), (0.7, 1), (2.3, 2), (3.9, 3)):
        # 4 m ahead of a level camera, one pixel row below its centre: 8 * 4 / 60 m under it
        bev_BCXY, _ = splat(module, one_point(2, 3, 0), camera(position=(0.0, 0.0, height + 8 * 4 / 60)))
        (slice_and_channel,) = bev_BCXY.sum((0, 2, 3)).view(2, 4).nonzero().tolist()
        assert slice_and_channel == [0, expected]


def test_the_hint_marks_where_a_ray_meets_the_road():
    module = lift()
    height, slope = 1.5, 0.1
    z = height - slope * module.depth_centres  # meets the road at 15 m, between the bins at 10 and 16 m
    points = torch.stack([torch.zeros(BINS), torch.zeros(BINS), z], -1).view(1, 1, BINS, 1, 1, 3)
    hint = near_ground(points, OCC3D.ground, OCC3D.voxel_size).flatten()
    assert hint.argmax() == (module.depth_centres - 15).abs().argmin()
    assert torch.allclose(hint.sum(), torch.tensor(1.0), atol=1e-5)  # two neighbours share a crossing between them
    above = points * torch.tensor([1.0, 1.0, 0.0]) + torch.tensor([0.0, 0.0, 3.0])
    assert not near_ground(above, OCC3D.ground, OCC3D.voxel_size).any()


def test_the_sum_is_not_normalised():
    """The BEV holds exactly the depth probability that falls inside: a doubtful cell leaves a weak mark."""
    feat = torch.randn(1, 1, BINS + 2, HEIGHT, WIDTH)
    feat[:, :, BINS] = 1.0
    everywhere = VoxelGrid("huge", "ego", (-400.0, -400.0, -400.0), 40.0, (20, 20, 20))
    bev_BCXY, logits_BNDHW = splat(lift(grid=everywhere), feat, camera())
    torch.testing.assert_close(bev_BCXY[0, 0].sum(), torch.tensor(float(HEIGHT * WIDTH)))
    in_front = VoxelGrid("near", "ego", (0.0, -400.0, -400.0), 20.0, (1, 40, 40))
    bev_BCXY, _ = splat(lift(grid=in_front), feat, camera())
    # the first three bins end before 20 m
    torch.testing.assert_close(bev_BCXY[0, 0].sum(), logits_BNDHW.softmax(2)[:, :, :3].sum())


@pytest.mark.parametrize("axis", [0, 1])
def test_mirroring_the_ego_frame_mirrors_the_bev(axis):
    feat = torch.randn(1, 2, BINS + 2, HEIGHT, WIDTH)
    mirror = np.diag([-1.0 if i == axis else 1.0 for i in range(4)])
    cameras = [camera(0.3, (1.0, 0.4, 1.5)), camera(-2.0, (-1.0, 0.7, 1.4))]
    bev_BCXY, depth = splat(lift(), feat, *cameras)
    mirrored_BCXY, mirrored_depth = splat(lift(), feat, *((K, mirror @ pose) for K, pose in cameras))
    assert bev_BCXY.count_nonzero() > 50
    torch.testing.assert_close(mirrored_BCXY, bev_BCXY.flip(2 + axis))
    assert torch.equal(depth, mirrored_depth)


def test_every_sample_is_lifted_with_its_own_calibration():
    feat = torch.randn(2, 1, BINS + 2, HEIGHT, WIDTH)
    cameras = [camera(0.2), camera(1.0, focal=50.0)]
    intrinsics, cam2ego = (torch.tensor(np.stack(part))[:, None].float() for part in zip(*cameras, strict=True))
    together, _ = lift()(feat, STRIDE, intrinsics, cam2ego)
    for b in range(2):
        torch.testing.assert_close(together[b : b + 1], splat(lift(), feat[b : b + 1], cameras[b])[0])


def test_cells_of_one_calibration_serve_all_images_of_these_cameras():
    module = lift(height_slices=2, by_area=True)
    intrinsics, cam2ego = (torch.tensor(part)[None, None].float() for part in camera(0.2))
    cells = module.cells(intrinsics, cam2ego, (HEIGHT, WIDTH), STRIDE)
    assert cells.cell_BNDHW.shape == cells.near_ground_BNDHW.shape == (1, 1, BINS, HEIGHT, WIDTH)
    for _ in range(2):
        feat = torch.randn(1, 1, BINS + 2, HEIGHT, WIDTH)
        expected = module(feat, STRIDE, intrinsics, cam2ego)
        assert all(map(torch.equal, module.pool(feat, cells), expected))


def test_bev_cells_must_divide_the_grid():
    with pytest.raises(InputError, match="bev_stride=3 does not divide"):
        lift(bev_stride=3)


def test_autocast_does_not_touch_the_geometry():
    feat = torch.randn(1, 1, BINS + 2, HEIGHT, WIDTH)
    expected, _ = splat(lift(), feat, camera(0.2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = splat(lift(), feat, camera(0.2))
    assert torch.equal(found, expected)


# a world of 40 x 40 columns, to be quick
COARSE = {
    "_target_": "distill.grids.VoxelGrid",
    **VoxelGrid("coarse", "ego", (-40, -40, -16), 2.0, (40, 40, 16)).to_dict(),
}


def student(name, *overrides, grid=None):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("common", ["+grid=occ3d", f"+student={name}", *overrides])
    if grid is not None:
        config.grid = grid
    return instantiate(config.student.network), config.student.inputs


def keyframes(inputs, batch):
    height, width = inputs.image_size
    pairs = [camera(k * np.pi / 3) for k in range(6)]
    intrinsics, cam2ego = (torch.tensor(np.stack(part)).float() for part in zip(*pairs, strict=True))
    intrinsics[:, :2] *= torch.tensor([[width / 96], [height / 64]])
    generator = torch.Generator().manual_seed(0)
    return Frame(
        images=torch.randint(0, 256, (batch, 6, 3, height, width), dtype=torch.uint8, generator=generator),
        intrinsics=intrinsics.repeat(batch, 1, 1, 1),
        cam2ego=cam2ego.repeat(batch, 1, 1, 1),
    )


def millions(network):
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "most_millions", "most_gflop", "stride"),
    [
        ("effnet_lite0", 10, 60, 16),
        ("effnet_lite0_small", 4, 20, 16),
        ("demo", 2, 12, 8),
        ("demo_small", 1, 5, 8),
        ("demo_large", 3, 17, 8),
    ],
)
def test_budget_and_shapes(name, most_millions, most_gflop, stride):
    network, inputs = student(name)
    assert network.depth_stride == stride
    assert millions(network) < most_millions
    batch = keyframes(inputs, batch=1)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        prediction = network.eval()(batch)
    assert counter.get_total_flops() / 1e9 < most_gflop
    assert prediction.voxel_logits_BXYZC.shape == (1, 200, 200, 16, 18)
    height, width = inputs.image_size
    cells = (height // stride, width // stride)
    # the depth bins are counted on their own, not by the 16 heights of the grid
    assert prediction.depth.logits_BNDHW.shape == (1, 6, 44 if name.startswith("demo") else 88, *cells)
    assert prediction.depth.stride == stride
    assert (prediction.depth.lower, prediction.depth.upper) == (1.0, 45.0)
    assert prediction.voxel_logits_BXYZC.isfinite().all()


def test_resnet50_has_the_size_of_flashocc_m1():
    network, _ = student("resnet50", "student.network.encoder.weights=none")
    assert 35 < millions(network) < 45


def test_gradients_reach_every_parameter_that_is_not_frozen():
    network, inputs = student("demo", "student.inputs.image_size=[64,160]", grid=COARSE)
    prediction = network(keyframes(inputs, batch=1))
    # the voxels alone: the depth distribution must learn from them too
    prediction.voxel_logits_BXYZC.square().mean().backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name, p in network.named_parameters() if p.requires_grad}
    assert not network.encoder.backbone["conv_stem"].weight.requires_grad


def test_a_sample_does_not_depend_on_its_batch_and_a_copy_gives_the_same():
    network, inputs = student("demo", "student.inputs.image_size=[64,160]", grid=COARSE)
    network.eval()
    batch = keyframes(inputs, batch=2)
    with torch.inference_mode():
        both = network(batch).voxel_logits_BXYZC
        alone = Frame(images=batch.images[1:], intrinsics=batch.intrinsics[1:], cam2ego=batch.cam2ego[1:])
        second = copy.deepcopy(network)(alone).voxel_logits_BXYZC
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-4)
