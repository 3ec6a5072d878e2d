"""Splatting against its definition, pair by pair in float64, and the three implementations against each other."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.dispatch import only
from kernels.splat import cpu, reference, splat, tiles
from kernels.splat.tiles import POINTS, Splats, cells_of, cut

LOWER, CELL = (-3.0, 1.0, 0.25), 0.5
DENORMAL = 2.0**-149  # the smallest number above 0
FAMILY = (
    "gaussianformer2_25600",
    "gaussianformer2_12800",
    "gaussianformer2_6400",
    "gaussianformer_25600_solid",
    "gaussianformer_144000",
)


def definition(points, means, precisions, radius, weights, features, lower, cell):
    lower = torch.tensor(lower)
    own, theirs = ((points - lower) / cell).floor(), ((means - lower) / cell).floor()
    near = (own[:, None] - theirs[None]).abs().amax(2) <= radius[None]
    away = points.double()[:, None] - means.double()
    p = torch.where(near, (-0.5 * torch.einsum("vgi,gij,vgj->vg", away, precisions.double(), away)).exp(), 0)
    mixed = torch.where(near, weights.double() * p, 0) @ features.double()
    return mixed.float(), (1 - p).prod(1).float()


def scene(seed, points=200, gaussians=30, channels=18, spread=4.0):
    generator = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(gaussians, 3, generator=generator)
    axes = torch.linalg.qr(torch.randn(gaussians, 3, 3, generator=generator)).Q
    whitening = axes / (0.2 + 1.5 * torch.rand(gaussians, 3, 1, generator=generator))
    return (
        spread * torch.randn(points, 3, generator=generator),
        means,
        whitening.mT @ whitening,
        torch.randint(0, 12, (gaussians,), generator=generator, dtype=torch.int32),
        torch.rand(gaussians, generator=generator),
        torch.randn(gaussians, channels, generator=generator),
    )


def assert_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6, equal_nan=True)


def faint(implementation):
    """A Gaussian of 1 m, seen from 0 to 15 m away: its powers (V,), what is mixed (V, 3), and emptiness."""
    distances = torch.linspace(0, 15, 301)
    points = torch.stack([distances, torch.zeros(301), torch.zeros(301)], 1)
    weighted = (torch.ones(1), torch.tensor([[1.0, 64.0, -0.5]]))
    found = by(implementation, points, torch.zeros(1, 3), torch.eye(3)[None], torch.tensor([40]), *weighted)
    return torch.from_numpy(np.exp(-0.5 * distances.numpy() ** 2)), *found


def assert_underflows(implementation):
    """Powers fade as float32's exp does: through the denormal numbers, then to 0."""
    power, mixed, empty = faint(implementation)
    assert ((power > 0) & (power < 2.0**-126)).sum() > 15 and (power == 0).sum() > 10
    for channel, feature in enumerate((1.0, 64.0, -0.5)):
        torch.testing.assert_close(mixed[:, channel], feature * power, rtol=1e-4, atol=1.01 * abs(feature) * DENORMAL)
    assert torch.equal(mixed[:, 0] > 0, power > 0)
    torch.testing.assert_close(empty, 1 - power, rtol=0, atol=2e-7)


def model_scene(teacher, gaussians, points, seed=0):
    """What a model of the family, with random anchors, makes; and points inside the box of each Gaussian and around."""
    with initialize_config_module("conf", version_base="1.3"):
        network = compose("dump", [f"teacher={teacher}", "teacher.checkpoint=none.pth"]).teacher.network
    columns = 10 + network.encoder.opacity + network.encoder.semantics
    generator = torch.Generator().manual_seed(seed)
    anchors = 1.5 * torch.randn(gaussians, columns, generator=generator)
    with torch.inference_mode():
        found = instantiate(network.head)(anchors)
    reach = (found.scales_G3[:gaussians].amax(1) * found.reach / 0.5).ceil() * 0.5 + 0.7
    aside = (2 * torch.rand(gaussians, points, 3, generator=generator) - 1) * reach[:, None, None]
    return found, (found.means_G3[:gaussians, None] + aside).flatten(0, 1)


def assert_same_occupancy(implementation, gaussians, points):
    """Value by value, however small, and which channel is the greatest."""
    found, expected = occupancy_by(implementation, gaussians, points), occupancy_by(reference, gaussians, points)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    assert ((found - expected).abs() <= 1e-4 * expected.abs().amax(1, keepdim=True) + 5 * DENORMAL).all()


def occupancy_by(implementation, gaussians, points):
    with only(implementation.__name__.removeprefix("kernels.splat.")):
        return gaussians.occupancy(points)


def by(implementation, points, means, precisions, radius, weights, features):
    upper = precisions[:, (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)]
    splats = Splats(means, upper, cells_of(means, LOWER, CELL), radius, weights, features)
    cells = cells_of(points, LOWER, CELL)
    return implementation.splat(points, cells, splats, cut(cells, splats.cells_G3, radius))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    points=st.integers(1, 400),
    gaussians=st.integers(1, 60),
    channels=st.integers(1, 20),
    spread=st.sampled_from([0.1, 1.0, 10.0]),
)
def test_matches_the_definition(seed, points, gaussians, channels, spread):
    inputs = scene(seed, points, gaussians, channels, spread)
    expected = definition(*inputs, LOWER, CELL)
    assert_close(splat(*inputs, LOWER, CELL), expected)
    assert_close(by(reference, *inputs), expected)


def test_the_reference_is_exact_for_very_flat_gaussians():
    """Discs 1 cm thick and 1 to 1.8 m wide, seen at points within them: the terms of the exponent cancel."""
    generator = torch.Generator().manual_seed(9)
    _, means, _, *rest = scene(9)
    axes = torch.linalg.qr(torch.randn(30, 3, 3, generator=generator)).Q
    whitening = axes / torch.tensor([0.01, 1.0, 1.8])[:, None]
    points = means[:, None] + torch.randn(30, 16, 2, generator=generator) @ axes[:, 1:]
    inputs = (points.flatten(0, 1), means, whitening.mT @ whitening, *rest)
    expected = definition(*inputs, LOWER, CELL)
    assert (expected[1] < 0.9).float().mean() > 0.5
    assert_close(by(reference, *inputs), expected)


def test_known_answer():
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 30]])
    mean, precision = torch.zeros(2, 3), torch.eye(3).repeat(2, 1, 1)
    precision[1, 1, 1] = 0.25  # 2 long in y
    weights, features = torch.tensor([2.0, 10.0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    mixed, empty = splat(points, mean, precision, torch.tensor([8, 8]), weights, features, (0.0, 0.0, 0.0), 0.5)
    one, four = torch.tensor([-0.5, -2.0]).exp().tolist()
    expected = [[2.0, 10.0], [2 * one, 10 * one], [2 * four, 10 * one], [0.0, 0.0]]
    torch.testing.assert_close(mixed, torch.tensor(expected))
    torch.testing.assert_close(empty, torch.tensor([0.0, (1 - one) ** 2, (1 - four) * (1 - one), 1.0]))


@pytest.mark.parametrize("implementation", [cpu, reference], ids=["cpu", "reference"])
def test_powers_underflow_as_those_of_float32_do(implementation):
    assert_underflows(implementation)


@pytest.mark.parametrize("implementation", [cpu, reference], ids=["cpu", "reference"])
def test_where_only_a_faint_gaussian_reaches_it_decides(implementation):
    """Of class 0, 12 m away, beside one of class 1 that is nearer, reaches as far, and has faded to 0."""
    means, precisions = torch.tensor([[0.0, 0, 0], [2.0, 0, 0]]), torch.eye(3) * torch.tensor([1.0, 9.0])[:, None, None]
    inputs = torch.tensor([[12.0, 0, 0]]), means, precisions, torch.tensor([30, 30]), torch.ones(2), torch.eye(2)
    (scores,), empty = by(implementation, *inputs)
    assert scores.tolist() == [pytest.approx(np.exp(-72.0), rel=1e-4), 0]
    assert empty == 1


@pytest.mark.parametrize("teacher", FAMILY)
def test_twins_agree_on_every_model_of_the_family(teacher):
    gaussians, points = model_scene(teacher, 200, 60)
    assert_same_occupancy(cpu, gaussians, points)
    greatest = occupancy_by(cpu, gaussians, points).abs().amax(1)
    # where no Gaussian of free space is, much is left to the faintest, and some to none
    faintest = ((greatest > 0) & (greatest < 2.0**-126)).sum(), (greatest == 0).sum()
    assert (min(faintest) > 50) == (teacher == "gaussianformer_144000")


def test_a_box_of_cells_ends_every_gaussian():
    cell_centres = torch.arange(-10, 11) * 0.5 + 0.25
    for axis in range(3):
        points = torch.full((21, 3), 0.1)
        points[:, axis] = cell_centres
        wide = torch.eye(3)[None] * 1e-6
        mixed, empty = splat(
            points, torch.full((1, 3), 0.4), wide, torch.tensor([3]), torch.ones(1), torch.ones(1, 1), (0.0,) * 3, 0.5
        )
        # the mean lies in cell 0: cells -3 .. 3
        assert mixed[:, 0].nonzero()[:, 0].tolist() == list(range(7, 14))
        assert torch.equal(empty == 1, mixed[:, 0] == 0)


def test_a_weight_that_is_not_a_number_spoils_its_box_and_nothing_else():
    inputs = scene(0)
    inputs[4][3] = torch.nan
    expected = definition(*inputs, LOWER, CELL)
    spoilt = expected[0].isnan()
    assert spoilt.any() and not spoilt.all()
    assert_close(splat(*inputs, LOWER, CELL), expected)
    assert_close(by(reference, *inputs), expected)


def test_a_point_gets_the_same_answer_in_any_company():
    points, *gaussians = scene(1, points=3000)
    mixed, empty = splat(points, *gaussians, LOWER, CELL)
    some = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:700]
    far = torch.full((1, 3), 1e6)
    mixed_some, empty_some = splat(torch.cat([points[some], far]), *gaussians, LOWER, CELL)
    assert torch.equal(mixed_some[:-1], mixed[some]) and torch.equal(empty_some[:-1], empty[some])
    assert not mixed_some[-1].any() and empty_some[-1] == 1


def test_the_number_of_threads_changes_nothing():
    inputs = scene(2, points=3000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = splat(*inputs, LOWER, CELL)
        torch.set_num_threads(3)
        assert all(torch.equal(*pair) for pair in zip(splat(*inputs, LOWER, CELL), alone, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_more_points_in_a_block_than_a_tile_holds():
    inputs = scene(3, points=5 * POINTS + 1, spread=0.05)
    assert len(cells_of(inputs[0], LOWER, CELL).unique(dim=0)) < 10
    assert_close(splat(*inputs, LOWER, CELL), definition(*inputs, LOWER, CELL))


def test_nothing_to_ask_and_nothing_there():
    points, *gaussians = scene(4)
    mixed, empty = splat(points[:0], *gaussians, LOWER, CELL)
    assert mixed.shape == (0, 18) and empty.shape == (0,)
    mixed, empty = splat(points, *(field[:0] for field in gaussians), LOWER, CELL)
    assert mixed.shape == (200, 18) and not mixed.any() and (empty == 1).all()


def test_layout_and_precision_of_the_inputs_do_not_matter():
    inputs = [field.half() if field.is_floating_point() else field for field in scene(5)]
    expected = splat(*(field.float() for field in inputs), LOWER, CELL)
    turned = [
        field.movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_(field.is_floating_point()) for field in inputs
    ]
    assert not turned[0].is_contiguous()
    assert all(torch.equal(*pair) for pair in zip(splat(*turned, LOWER, CELL), expected, strict=True))


def test_tiles_hold_every_point_once_and_every_gaussian_in_reach():
    points, means, _, radius, *_ = scene(6, points=1000)
    cells, centres = cells_of(points, LOWER, CELL), cells_of(means, LOWER, CELL)
    found = cut(cells, centres, radius)
    assert found.order_V.sort().values.equal(torch.arange(1000))
    sizes = found.end_T - found.begin_T
    assert found.begin_T[0] == 0 and torch.equal(found.end_T, sizes.cumsum(0)) and found.end_T[-1] == 1000
    assert sizes.min() > 0 and sizes.max() <= POINTS
    for begin, end, first, last in torch.stack(found[2:], 1).tolist():
        listed = found.gaussian_P[first:last]
        assert (listed.diff() > 0).all()
        inside = (cells[found.order_V[begin:end], None] - centres).abs().amax(2) <= radius
        assert set(inside.any(0).nonzero()[:, 0].tolist()) <= set(listed.tolist())


def test_looking_at_few_pairs_at_once_finds_the_same_lists(monkeypatch):
    points, means, _, radius, *_ = scene(8, points=1000)
    cells, centres = cells_of(points, LOWER, CELL), cells_of(means, LOWER, CELL)
    expected = cut(cells, centres, radius)
    monkeypatch.setattr(tiles, "_PAIRS", 100)  # three blocks
    assert len(expected.begin_T) > 30
    assert all(torch.equal(*pair) for pair in zip(cut(cells, centres, radius), expected, strict=True))


TWINS = """
import torch
from kernels.splat import reference, triton as twin
from kernels.splat.tiles import Splats, cells_of, cut
from test_splat import FAMILY, assert_same_occupancy, assert_underflows, model_scene

generator = torch.Generator().manual_seed(0)
for count, gaussians, channels, spread in ((130, 20, 18, 0.1), (3, 17, 5, 1.0), (2, 1, 33, 9.0)):
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    points, means, axes = spread * draw(count, 3), spread * draw(gaussians, 3), draw(gaussians, 3, 3)
    upper = (axes.mT @ axes)[:, (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)].contiguous()
    radius = torch.randint(0, 9, (gaussians,), generator=generator, dtype=torch.int32)
    weights = draw(gaussians).abs()
    weights[1:2] = torch.nan
    radius[:2] = 3
    cells, centres = (cells_of(places, (-1.0, -1.0, -1.0), 0.5) for places in (points, means))
    inputs = points, cells, Splats(means, upper, centres, radius, weights, draw(gaussians, channels))
    inputs += (cut(cells, centres, radius),)
    for found, expected in zip(twin.splat(*inputs), reference.splat(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)

assert_underflows(twin)
for teacher in FAMILY:
    assert_same_occupancy(twin, *model_scene(teacher, 2, 3))
"""


def test_triton_twin_in_the_interpreter_matches_torch(interpret):
    interpret(TWINS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_matches_cpu_and_repeats_itself():
    inputs = scene(7, points=20000, gaussians=500)
    expected = by(cpu, *inputs)
    on_gpu = [field.cuda() for field in inputs]
    runs = [splat(*on_gpu, LOWER, CELL) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))
    assert_close([field.cpu() for field in runs[0]], expected)
    assert_close([field.cpu() for field in by(reference, *on_gpu)], expected)
