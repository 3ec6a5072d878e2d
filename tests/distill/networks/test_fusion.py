"""The LiDAR + camera teacher network: painting, pooling, and the whole."""

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from conf.schema import checked
from distill.checkpoint import load_checkpoint
from distill.frame import Frame
from distill.grids import OCC3D, VoxelGrid
from distill.networks.fusion import PointEncoder, paint

SIZE = (32, 64)
INTRINSICS = torch.tensor([[40.0, 0.0, 32.0], [0.0, 40.0, 16.0], [0.0, 0.0, 1.0]])
# forward: camera right, down, forward are ego -y, -z, x
FORWARD = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def ramp(offset):
    """(1, 2, 4, 8) features whose bilinear value at pixel (u, v) is (u, v) + offset away from the border."""
    v, u = torch.meshgrid((torch.arange(4) + 0.5) * 8, (torch.arange(8) + 0.5) * 8, indexing="ij")
    return torch.stack([u, v])[None] + offset


def test_a_point_takes_the_features_of_its_pixel():
    # at 10 m, 2 m left and 1 m up: u = 32 - 40 * 2 / 10, v = 16 - 40 * 1 / 10
    points = torch.tensor([[10.0, 2.0, 1.0], [-10.0, 2.0, 1.0], [10.0, 30.0, 1.0]])
    painted = paint(points, ramp(0.0), INTRINSICS[None], FORWARD[None], SIZE)
    assert painted.tolist() == [[24.0, 12.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_cameras_that_see_the_same_point_are_averaged():
    features = torch.cat([ramp(0.0), ramp(100.0), ramp(1000.0)])
    backward = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0])) @ FORWARD
    poses = torch.stack([FORWARD, FORWARD, backward])
    painted = paint(torch.tensor([[10.0, 2.0, 1.0]]), features, INTRINSICS.expand(3, 3, 3), poses, SIZE)
    assert painted.tolist() == [[74.0, 62.0, 1.0]]


def test_no_point_at_all_is_no_error():
    assert paint(torch.zeros(0, 3), ramp(0.0), INTRINSICS[None], FORWARD[None], SIZE).shape == (0, 3)


def some_points(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([30.0, 30.0, 3.0, 1.0])
    return torch.rand(count, 4, generator=generator) * 2 * spread - spread


@pytest.fixture(scope="module")
def encoder():
    encoder = PointEncoder(image_channels=2, hidden_channels=8, channels=3, slices=4, grid=OCC3D)
    # a positive feature for every point, whatever the random weights
    nn.init.constant_(encoder.mlp[-2].bias, 10.0)
    return encoder


def test_voxels_with_points_are_marked_and_points_outside_are_dropped(encoder):
    points = torch.tensor([[0.1, -39.9, -0.9, 0.5], [39.9, 0.1, 5.3, 0.5], [0.0, 40.1, 0.0, 1.0], [0.0, 0.0, 5.5, 1.0]])
    bev_BCXY = encoder(points, torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]), 2)
    assert bev_BCXY.shape == (2, 4 * 3 + 16, 200, 200)
    occupied_BZXY = bev_BCXY[:, 12:]
    assert occupied_BZXY.nonzero().tolist() == [[0, 0, 100, 0], [1, 15, 199, 100]]
    # features lie in the flat voxels of these points alone: the lowest and the highest of four
    features_BSCXY = bev_BCXY[:, :12].unflatten(1, (4, 3))
    assert features_BSCXY.any(2).nonzero().tolist() == [[0, 0, 100, 0], [1, 3, 199, 100]]


def test_the_order_of_the_points_does_not_matter(encoder):
    points, painted = some_points(5000), torch.randn(5000, 3)
    order = torch.randperm(5000)
    sample = torch.zeros(5000, dtype=torch.int64)
    bev_BCXY = encoder(points, painted, sample, 1)
    torch.testing.assert_close(encoder(points[order], painted[order], sample, 1), bev_BCXY)
    assert torch.equal(encoder(points, painted, sample, 1), bev_BCXY)


# a world of 40 x 40 columns, to be quick
COARSE = {
    "_target_": "distill.grids.VoxelGrid",
    **VoxelGrid("coarse", "ego", (-40, -40, -16), 2.0, (40, 40, 16)).to_dict(),
}


def fusion(*overrides, grid=None):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("common", ["+grid=occ3d", "+student=fusion", *overrides])
    if grid is not None:
        config.grid = grid
    return instantiate(config.student.network)


def keyframes(batch, size=(64, 160)):
    height, width = size
    intrinsics = torch.tensor([[0.7 * width, 0, width / 2], [0, 0.7 * width, height / 2], [0, 0, 1]])
    yaw = torch.arange(6) * torch.pi / 3
    turn = torch.eye(4).repeat(6, 1, 1)
    turn[:, 0, 0] = turn[:, 1, 1] = yaw.cos()
    turn[:, 0, 1], turn[:, 1, 0] = -yaw.sin(), yaw.sin()
    cam2ego = turn @ FORWARD.inverse()
    return Frame(
        images=torch.randint(0, 256, (batch, 6, 3, height, width), dtype=torch.uint8),
        intrinsics=intrinsics.repeat(batch, 6, 1, 1),
        cam2ego=cam2ego.repeat(batch, 1, 1, 1),
        points=[some_points(2000 + b, seed=b) for b in range(batch)],
    )


def test_budget():
    network = fusion()
    assert sum(parameter.numel() for parameter in network.parameters()) <= 2.3e6
    megabytes = sum(value.numel() * value.element_size() for value in network.state_dict().values()) / 1e6
    assert megabytes < 10


def test_gradients_reach_every_parameter_that_is_not_frozen():
    network = fusion(grid=COARSE)
    prediction = network(keyframes(1))
    assert prediction.voxel_logits_BXYZC.shape == (1, 40, 40, 16, 18)
    assert prediction.depth is None
    prediction.voxel_logits_BXYZC.square().mean().backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name, p in network.named_parameters() if p.requires_grad}


def test_a_sample_does_not_depend_on_its_batch():
    network = fusion(grid=COARSE)
    network.eval()
    batch = keyframes(2)
    with torch.inference_mode():
        both = network(batch).voxel_logits_BXYZC
        fields = ("images", "intrinsics", "cam2ego", "points")
        second = network(Frame(**{name: getattr(batch, name)[1:] for name in fields})).voxel_logits_BXYZC
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-4)


def test_the_network_says_the_widths_of_its_parts():
    network = fusion(
        "student.network.point_encoder.slices=2", "student.network.bev_encoder.out_channels=5", grid=COARSE
    )
    assert network(keyframes(1)).voxel_logits_BXYZC.shape == (1, 40, 40, 16, 18)
    assert network.depth_stride is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("student.network.bev_encoder.blocks=[1]", "bev_encoder: 4 widths need 3 numbers of blocks"),
        ("student.network.head.hidden_channels=0", "head.hidden_channels=0: should be greater than or equal to 1"),
        ("+student.network.bev_encoder.in_channels=80", "in_channels=80: should not be given, the network says it"),
        ("student.network.head._partial_=false", "head.in_channels: it must be given"),
    ],
)
def test_values_of_a_part_that_the_network_completes_are_checked(override, said):
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("train", ["student=fusion", override]), resolve=True)
    (problem,) = checked("train", config)[1]
    assert problem.endswith(said)


def test_the_shipped_teacher_of_an_earlier_format_says_its_widths_no_longer():
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("common", ["+grid=occ3d", "+student=fusion"])
    shipped = load_checkpoint("pkg://teacher_dump/weights/fusion_demo.safetensors", "ema")
    described = shipped.config["student"]["network"]
    assert described["bev_encoder"] == OmegaConf.to_container(config.student.network.bev_encoder)
    assert described["head"].keys() == config.student.network.head.keys()
    assert shipped.network().depth_stride is None
