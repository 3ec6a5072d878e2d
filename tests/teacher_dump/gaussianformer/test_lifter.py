"""The lifters against upstream's outputs, and what happens to keyframes that lift too few points."""

import pytest
import torch
from torch import nn

from distill.errors import InputError
from distill.grids import SURROUNDOCC
from kernels.farthest_points import farthest_points
from teacher_dump.teachers.gaussianformer import anchors
from teacher_dump.teachers.gaussianformer.backbone import ResNetDCN
from teacher_dump.teachers.gaussianformer.draws import SeededDraws
from teacher_dump.teachers.gaussianformer.lifter import GaussianLifter, GaussianLifterV2, ImageEncoder
from teacher_dump.teachers.gaussianformer.necks import SecondFPN

CASES = {"tiny_prob": ("prob/nuscenes_gs25600.py", 400, 200), "tiny_prob_6400": ("prob/nuscenes_gs6400.py", 400, 240)}
SIZE = (96, 160)


def lifter(lifted, learned, sampling="seeded", encoder=None, channels=128, subsets=1):
    """A lifter with upstream's sizes; without an encoder its images are the encoder's output."""
    encoder = encoder or nn.Identity()
    return GaussianLifterV2(encoder, 512, lifted, learned, 28, channels, 128, (1.0, 72.0), subsets, sampling)


def image_encoder():
    return ImageEncoder(ResNetDCN(), SecondFPN((256, 512, 1024, 2048), 128))


@pytest.mark.parametrize(
    ("config", "lifted", "learned"),
    [
        ("prob/nuscenes_gs25600.py", 19200, 6400),
        ("prob/nuscenes_gs12800.py", 6400, 6400),
        ("prob/nuscenes_gs6400.py", 4000, 2400),
    ],
)
def test_names_and_shapes_are_those_of_upstream(config, lifted, learned, key_list):
    state = lifter(lifted, learned).state_dict()
    expected = {key: shape for key, shape in key_list(config).items() if key.startswith("lifter.")}
    own = {key: shape for key, shape in expected.items() if not key.startswith("lifter.initialize_backbone.")}
    assert {"lifter." + key: tuple(value.shape) for key, value in state.items()} == own


@pytest.mark.parametrize(
    ("config", "gaussians"), [("nuscenes_gs25600_solid.py", 25600), ("nuscenes_gs144000.py", 144000)]
)
def test_names_and_shapes_of_the_first_version(config, gaussians, key_list):
    state = GaussianLifter(gaussians, 28, 128).state_dict()
    expected = {key: shape for key, shape in key_list(config).items() if key.startswith("lifter.")}
    assert {"lifter." + key: tuple(value.shape) for key, value in state.items()} == expected


def test_the_first_version_starts_from_its_anchors(fill, golden, images, lidar2img):
    module = fill(GaussianLifter(600, 28, 128), "lifter.")
    anchor_GK, feature_GC = module(images, lidar2img, None)
    torch.testing.assert_close(anchor_GK, golden("tiny_v1")["lifter.representation"], rtol=0, atol=0)
    assert feature_GC is module.instance_feature


@pytest.fixture(scope="module")
def features(fill, images):
    """What the lifter's own network makes of the images."""
    return fill(image_encoder(), "lifter.initialize_backbone.")(images)


@pytest.fixture(scope="module")
def depth_logits(fill, features):
    return fill(lifter(400, 200), "lifter.").depth_logits(features)


def test_depth_logits_match_upstream(features, depth_logits, golden, thinned):
    upstream = golden("tiny_prob")
    torch.testing.assert_close(features[:2, ::16], upstream["lifter.secondfpn"], rtol=1e-5, atol=2e-5)
    expected = upstream["lifter.logits"][0]
    torch.testing.assert_close(thinned(depth_logits, expected), expected, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("case", CASES)
def test_points_and_anchors_match_upstream(case, fill, golden, given_draws, lidar2img, depth_logits):
    _, lifted, learned = CASES[case]
    upstream = golden(case)
    module = fill(lifter(lifted, learned), "lifter.")
    module.depth_logits = lambda _: depth_logits

    points_P3 = module.lift(depth_logits, lidar2img, SIZE, given_draws(case))
    torch.testing.assert_close(points_P3, upstream["lifter.fps_in"], rtol=0, atol=1e-5)
    assert torch.equal(farthest_points(points_P3, lifted, 1), upstream["lifter.fps_idx"].long())

    anchor_GK, feature_GC = module(torch.empty(6, 3, *SIZE), lidar2img, given_draws(case))
    torch.testing.assert_close(anchor_GK, upstream["lifter.representation"], rtol=0, atol=1e-4)
    assert feature_GC is module.instance_feature


# One camera at the origin of the LiDAR frame that looks along y; at depth d it sees d metres to either side.
FORWARD = torch.tensor([[8.0, 8, 0, 0], [0, 8, -8, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
CAMERA_SIZE = (16, 16)


def logits(bin_HW):
    """Certain about one bin per pixel, (1, H, W, 129)."""
    return 1e3 * nn.functional.one_hot(torch.tensor(bin_HW), 129).float().unsqueeze(0)


def lifted_from(bins, anchors_wanted=4, sampling="seeded", token="a"):
    module = lifter(anchors_wanted, 2, sampling)
    module.depth_logits = lambda _: logits(bins)
    anchor_GK, _ = module(torch.empty(1, 3, *CAMERA_SIZE), FORWARD[None], SeededDraws(0, token))
    return anchors.means(anchor_GK[:anchors_wanted])


@pytest.mark.parametrize("sampling", ["seeded", "deterministic"])
def test_pixels_lift_to_where_they_look(sampling):
    module = lifter(1, 1, sampling)
    depth = module.depth_D[4].item()
    assert depth == pytest.approx(1 + 4 * 71 / 127)
    points_P3 = module.lift(logits([[4, 4], [4, 4]]), FORWARD[None], CAMERA_SIZE, SeededDraws(0, "a"))
    half = depth / 2
    expected = [[-half, depth, half], [half, depth, half], [-half, depth, -half], [half, depth, -half]]
    torch.testing.assert_close(points_P3, torch.tensor(expected))


def test_nothing_and_points_out_of_range_are_dropped():
    module = lifter(1, 1)
    bins = [[4, 128], [20, 127]]  # seen; nothing; 12 m: 6 m below the camera; 72 m
    points_P3 = module.lift(logits(bins), FORWARD[None], CAMERA_SIZE, SeededDraws(0, "a"))
    assert len(points_P3) == 1 and points_P3[0, 0] < 0


def test_depths_are_drawn_from_their_distribution():
    module = lifter(1, 1)
    probs = torch.zeros(1, 200, 200, 129)
    probs[..., [1, 2, 3]] = torch.tensor([0.1, 0.6, 0.3])
    points_P3 = module.lift(probs.log(), FORWARD[None], CAMERA_SIZE, SeededDraws(0, "a"))
    shares = [(points_P3[:, 1] - module.depth_D[i]).abs().lt(1e-3).float().mean().item() for i in (1, 2, 3)]
    assert len(points_P3) == 200 * 200
    assert shares == pytest.approx([0.1, 0.6, 0.3], abs=0.01)
    module.sampling = "deterministic"
    points_P3 = module.lift(probs.log(), FORWARD[None], CAMERA_SIZE, None)
    torch.testing.assert_close(points_P3[:, 1], module.depth_D[2].expand(200 * 200))


def test_too_few_points_are_used_again_nearby():
    points = lifted_from([[4, 128], [128, 128]], anchors_wanted=40)
    first = torch.tensor([-1.618, 3.236, 1.618])
    torch.testing.assert_close(points[0], first, rtol=0, atol=2e-3)
    distance = (points - points[0]).norm(dim=1)
    assert len(points.unique(dim=0)) == 40
    assert 0.05 < distance.mean() < 0.3
    lower, upper = torch.tensor(SURROUNDOCC.lower), torch.tensor(SURROUNDOCC.upper)
    assert ((points >= lower) & (points <= upper)).all()


def test_jittered_points_follow_the_scan():
    """Point by point: the scan, then `rounds` copies of it, each with its own noise."""
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    module = lifter(6, 1)
    module.depth_logits = lambda _: logits([[4, 4], [128, 128]])

    class Noise:
        def uniform(self, *shape):
            return torch.full(shape, 0.5)

        def normal(self, *shape):
            assert shape == (4, 3)
            return noise

    anchor_GK, _ = module(torch.empty(1, 3, *CAMERA_SIZE), FORWARD[None], Noise())
    scan = module.lift(module.depth_logits(None), FORWARD[None], CAMERA_SIZE, Noise())
    cloud = torch.cat([scan, scan + 0.1 * noise[:2], scan + 0.1 * noise[2:]])
    torch.testing.assert_close(anchors.means(anchor_GK[:6]), cloud[farthest_points(cloud, 6, 1)], rtol=0, atol=1e-4)


def test_a_keyframe_that_lifts_nothing_is_an_error():
    with pytest.raises(InputError, match="no pixel of this keyframe lifts into the range"):
        lifted_from([[128, 128], [128, 128]])


def test_draws_depend_on_seed_and_keyframe_alone():
    def numbers(seed, token):
        draws = SeededDraws(seed, token)
        return draws.uniform(3, 5), draws.normal(4)

    first, again = numbers(0, "a"), numbers(0, "a")
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    for other in (numbers(1, "a"), numbers(0, "b")):
        assert not any(torch.equal(x, y) for x, y in zip(first, other, strict=True))
    assert first[0].min() >= 0 and first[0].max() < 1


def test_unknown_sampling_is_refused():
    with pytest.raises(InputError, match="sampling=random"):
        lifter(1, 1, "random")
