"""The encoder against upstream's outputs, block by block and as a whole, and its parts by themselves."""

import itertools

import pytest
import torch
from goldens import deterministic
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from distill.command import user_mistake
from teacher_dump.teachers.gaussianformer import anchors
from teacher_dump.teachers.gaussianformer.attention import DeformableAttention, KeyPoints, View, project
from teacher_dump.teachers.gaussianformer.refinement import Refinement
from teacher_dump.teachers.gaussianformer.sparse_conv import SparseConv3D

SIZE = (96, 160)
CASES = {
    "tiny_prob": ("gaussianformer2_25600", False),
    "tiny_prob_6400": ("gaussianformer2_6400", False),
    "tiny_v1": ("gaussianformer_25600_solid", False),
    "tiny_v1_old": ("gaussianformer_25600_solid", True),
}
OPERATIONS = ("deformable", "norm", "ffn", "spconv", "norm_full", "refine_anchor")


def encoder(config, **overrides):
    """The encoder of a config in conf/teacher."""
    with initialize_config_module("conf", version_base="1.3"):
        composed = compose("dump", [f"teacher={config}", "teacher.checkpoint=none"])
    return instantiate(composed.teacher.network.encoder, **overrides)


@pytest.fixture(scope="module")
def upstream_encoder(fill):
    """`upstream_encoder("tiny_v1_old")`: with the goldens' weights and the rules they were made with."""
    built = {}

    def build(case):
        if case not in built:
            config, legacy = CASES[case]
            built[case] = fill(encoder(config, legacy=legacy, duplicates="sum"), "encoder.")
        return built[case]

    return build


@pytest.fixture
def view(maps, lidar2img):
    return View(maps, lidar2img, SIZE)


@pytest.fixture
def start_of(golden):
    """Anchors and features that go into the first block."""

    def start(case):
        anchor_GK = golden(case)["lifter.representation"]
        return anchor_GK, torch.from_numpy(deterministic.weight("lifter.instance_feature", (len(anchor_GK), 128)))

    return start


@pytest.mark.parametrize("case", CASES)
def test_the_first_blocks_match_upstream(case, upstream_encoder, golden, thinned, view, start_of):
    """Operation by operation, up to one of each kind: the first version looks at neighbours in its second block."""
    upstream, network, given = golden(case), upstream_encoder(case), start_of(case)
    for block in range(1 if case.startswith("tiny_prob") else 2):
        outputs = record(network.layers, layers_of(network, block))
        given = network.run_block(block, *given, view)
        assert compared(outputs, upstream, thinned) == (9 if case.startswith("tiny_prob") else 4 + 2 * block)


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("case", CASES)
def test_each_block_matches_upstream(case, block, upstream_encoder, whole_golden, thinned, lidar2img, start_of):
    """From what upstream gave to the block."""
    upstream, network, given = whole_golden(case), upstream_encoder(case), start_of(case)
    numbers = layers_of(network, block)
    if block:
        before = numbers[0] - 1
        given = upstream[f"enc.{before}.refine_anchor"][0], upstream[f"enc.{before - 1}.norm_full"][0]
    outputs = record(network.layers, numbers)
    network.run_block(block, *given, View([upstream[f"img_neck.{level}"] for level in range(4)], lidar2img, SIZE))
    whole = sum(f"enc.{number}." in key for number in numbers for key in upstream.arrays)
    assert compared(outputs, upstream, thinned) == whole >= 2


def layers_of(network, block):
    """Numbers of the layers of a block."""
    ends = [sum(len(names) for names in network.blocks[:number]) for number in range(5)]
    return range(ends[block], ends[block + 1])


def compared(outputs, upstream, thinned):
    """How many of a block's outputs are in a golden; they are as upstream's."""
    count = 0
    for number, name in itertools.product(outputs, OPERATIONS):
        if f"enc.{number}.{name}" in upstream:
            expected = upstream[f"enc.{number}.{name}"][0]
            found = thinned(outputs[number], expected)
            # logits of saturated sigmoids are steep
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 if name == "refine_anchor" else 2e-5)
            count += 1
    return count


def record(layers, numbers):
    """Dictionary that the next forward pass of these layers fills with their outputs."""
    outputs = {}
    for number in numbers:
        layers[number].register_forward_hook(lambda *call, number=number: outputs.__setitem__(number, call[2]))
    return outputs


@pytest.mark.parametrize("case", CASES)
def test_the_whole_encoder_matches_upstream(case, upstream_encoder, golden, view, start_of):
    network, upstream = upstream_encoder(case), golden(case)
    last_GK = network(*start_of(case), *view)
    scale_range = network.layers[1 if case.startswith("tiny_prob") else 0].kps_generator.scale_range
    semantics = "identity" if case.startswith("tiny_prob") else "softplus"
    decoded = anchors.decode(last_GK, scale_range, semantics, opacity=True)
    for name, found in zip(("means", "scales", "rotations", "opacities", "semantics"), decoded, strict=True):
        expected = upstream[f"gaussian.{name}"][0]
        # upstream's own float32 is up to 4e-4 m away from float64
        torch.testing.assert_close(found.view_as(expected), expected, rtol=0, atol=1e-3)


def test_gaussians_that_share_a_voxel_are_not_summed_by_default(upstream_encoder, start_of, view):
    summed = upstream_encoder("tiny_prob")
    single = encoder("gaussianformer2_25600").eval()
    single.load_state_dict(summed.state_dict())
    found, other = (network(*start_of("tiny_prob"), *view) for network in (single, summed))
    assert not torch.allclose(found, other, atol=1e-2)


@pytest.mark.parametrize(("argument", "value"), [("version", "v3"), ("duplicates", "mean")])
def test_unknown_options_are_a_mistake_of_the_user(argument, value):
    with pytest.raises(InstantiationException) as caught:
        encoder("gaussianformer2_25600", **{argument: value})
    assert user_mistake(caught.value).startswith(f"teacher.network.encoder.{argument}={value}: it is '")


def anchor_at(position, scales, rotation, scale_range):
    smallest, largest = scale_range
    shares = (torch.tensor([scales]) - smallest) / (largest - smallest)
    logits = anchors.position_logits(torch.tensor([position]))
    return torch.cat([logits, shares.logit(), torch.tensor([rotation]), torch.zeros(1, 18)], 1)


def test_key_points_lie_along_the_axes_of_the_gaussian():
    points = KeyPoints(8, (0.1, 1.1), 2, 6.0).requires_grad_(False)
    points.learnable_fc.weight.zero_()
    points.learnable_fc.bias[:] = torch.tensor([30.0, 0, 0, 0, -30, 0])
    # a quarter turn about z: the transposed rotation takes the first axis to -y, the second to x
    half = 0.5**0.5
    anchor_GK = anchor_at([10.0, 20.0, 1.0], [0.2, 0.4, 1.0], [half, 0.0, 0.0, half], (0.1, 1.1))
    offsets = points(torch.zeros(1, 8), anchor_GK)[0] - torch.tensor([10.0, 20.0, 1.0])
    x, y, z = torch.eye(3)
    expected = [0 * x, -0.09 * y, 0.09 * y, 0.18 * x, -0.18 * x, 0.45 * z, -0.45 * z, -0.6 * y, -1.2 * x]
    torch.testing.assert_close(offsets, torch.stack(expected), rtol=0, atol=1e-3)


def forward_camera():
    """A camera at the origin that looks along y, 100 x 200 pixels, 100 pixels of focal length."""
    return torch.tensor([[[100.0, 100, 0, 0], [0, 50, -100, 0], [0, 1, 0, 0], [0, 0, 0, 1]]])


def test_points_are_seen_in_front_of_a_camera_and_within_its_image():
    view = View([], forward_camera(), (100, 200))
    points = torch.tensor([[[0.0, 10, 0], [5, 10, 2.5], [0, -10, 0], [11, 10, 0], [0, 10, 6], [0, 0, 0]]])
    uv, seen = project(points, view)
    torch.testing.assert_close(uv[0, :2, 0], torch.tensor([[0.5, 0.5], [0.75, 0.25]]))
    assert seen[0, :, 0].tolist() == [True, True, False, False, False, False]


def attention(legacy):
    torch.manual_seed(0)
    return DeformableAttention(8, (0.01, 0.1), 2, 1.0, joined=False, legacy=legacy).requires_grad_(False)


def looked_at(position, network):
    """Output for one Gaussian where the maps are 1 everywhere: its weights' sum, projected."""
    generator = torch.Generator().manual_seed(1)
    network.output_proj.weight.copy_(torch.eye(8))
    network.output_proj.bias.fill_(0.5)
    # two cameras that look along y and -y
    turned = forward_camera() * torch.tensor([-1.0, -1, 1, 1])
    view = View([torch.ones(2, 8, 10, 20)] * 4, torch.cat([forward_camera(), turned]), (100, 200))
    anchor_GK = anchor_at(position, [0.05] * 3, [1.0, 0, 0, 0], (0.01, 0.1))
    return network(*torch.randn(2, 1, 8, generator=generator), anchor_GK, view)[0]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_gaussian_that_no_camera_sees_gathers_nothing(legacy):
    torch.testing.assert_close(looked_at([40.0, 10, 0], attention(legacy)), torch.full((8,), 0.5))


def test_weights_of_what_is_seen_sum_to_one():
    torch.testing.assert_close(looked_at([0.0, 10, 0], attention(False)), torch.full((8,), 1.5))


def test_legacy_weights_are_shared_with_what_is_not_seen():
    shares = looked_at([0.0, 10, 0], attention(True)) - 0.5
    assert ((shares > 0.05) & (shares < 0.95)).all()


@pytest.mark.parametrize("legacy", [False, True])
def test_voxels_begin_at_the_range_or_at_the_first_gaussian(legacy):
    generator = torch.Generator().manual_seed(0)
    network = SparseConv3D(4, 0.5, deep=False, projected=False, legacy=legacy, duplicates="single")
    # in the first 0.15 m of 0.5 m voxels, one of them in the very corner
    means_G3 = torch.randint(6, (40, 3), generator=generator) * 0.5 + 0.1 * torch.rand(40, 3, generator=generator)
    means_G3 = torch.cat([torch.zeros(1, 3), means_G3 + 0.05])
    x_GC = torch.randn(41, 4, generator=generator)
    # 0.4 m on, some fall into the next voxel of the range, but they keep together
    here, there = (network(x_GC, anchors.position_logits(means_G3 + shift)) for shift in (-1.0, -0.6))
    assert torch.allclose(here, there, atol=1e-5) == legacy


@pytest.mark.parametrize("metric", [False, True])
def test_refinement_moves_by_a_bounded_step_and_replaces_the_rest(metric):
    refinement = Refinement(28, 8, (4.0, 4.0, 1.0), metric).requires_grad_(False)
    refinement.layers[-2].weight.zero_()
    refinement.layers[-2].bias[:] = torch.arange(28.0)
    refinement.layers[-2].bias[:3] = torch.tensor([50.0, -50.0, 0.0])
    before_GK = anchor_at([0.0, 0.0, -1.0], [0.05] * 3, [1.0, 0, 0, 0], (0.01, 0.1))
    after_GK = refinement(torch.zeros(1, 8), torch.zeros(1, 8), before_GK)
    expected = torch.tensor([[4.0, -4.0, -1.0]])
    torch.testing.assert_close(anchors.means(after_GK), expected, rtol=0, atol=1e-4 if metric else 0.02)
    assert after_GK[0, 3:6].tolist() == [3, 4, 5] and after_GK[0, 10:].tolist() == list(range(10, 28))
    torch.testing.assert_close(after_GK[0, 6:10], torch.arange(6.0, 10) / torch.arange(6.0, 10).norm())
