"""Semantic Gaussians at any point of space, against the formulas in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.gaussians import FLOOR, Gaussians
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid

LOWER = torch.tensor(SURROUNDOCC.lower)
LIDAR2EGO = torch.tensor([[0.0, 1.0, 0.0, 0.9], [-1.0, 0.0, 0.02, 0.0], [0.02, 0.0, 1.0, 1.84], [0.0, 0.0, 0.0, 1.0]])


def make(seed, count=40, form="probabilistic", det="stable", scales=(0.1, 1.8)):
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor(SURROUNDOCC.upper) - LOWER
    semantics = torch.nn.functional.pad(torch.randn(count, 17, generator=generator).softmax(1), (0, 1))
    return Gaussians(
        means_G3=LOWER + extent * torch.rand(count, 3, generator=generator),
        scales_G3=scales[0] + (scales[1] - scales[0]) * torch.rand(count, 3, generator=generator),
        rotations_G4=torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1),
        opacities_G=torch.rand(count, generator=generator),
        semantics_GS=semantics if form == "probabilistic" else 5 * torch.randn(count, 18, generator=generator),
        form=form,
        reach=4.0,
        det=det,
        space=SURROUNDOCC,
    )


def one(scales=(1.0, 1.0, 1.0), rotation=(1.0, 0.0, 0.0, 0.0), semantics=None, **others):
    """One Gaussian of car (4), a little noise (0) and bus (3), at the centre of a voxel."""
    row = torch.zeros(1, 18)
    row[0, [0, 3, 4]] = torch.tensor([0.2, 0.2, 0.6])
    fields = dict(form="probabilistic", reach=4.0, det="stable", space=SURROUNDOCC) | others
    return Gaussians(
        means_G3=torch.tensor([[0.25, 0.25, 0.25]]),
        scales_G3=torch.tensor([scales]),
        rotations_G4=torch.tensor([rotation]),
        opacities_G=torch.tensor([0.5]),
        semantics_GS=row if semantics is None else semantics,
        **fields,
    )


def quaternion_turn(quaternions, vectors):
    """q v q* in Hamilton's algebra, an independent way to rotate."""
    w, u = quaternions[:, :1], quaternions[:, 1:]
    twice = 2 * torch.linalg.cross(u, vectors)
    return vectors + w * twice + torch.linalg.cross(u, twice)


def definition(gaussians, points):
    """`Gaussians.occupancy` by brute force in float64."""
    cells = ((points - LOWER) / 0.5).floor()
    own = ((gaussians.means_G3 - LOWER) / 0.5).floor()
    reach = (gaussians.scales_G3.amax(1) * gaussians.reach / 0.5).ceil()
    rotations, scales = gaussians.rotations_G4.double(), gaussians.scales_G3.double()
    empty, total = torch.ones(len(points)).double(), torch.zeros(len(points)).double()
    mixed = torch.zeros(len(points), 18).double()
    for g in range(len(scales)):
        near = ((cells - own[g]).abs() <= reach[g]).all(1).nonzero()[:, 0]
        away = points[near].double() - gaussians.means_G3[g].double()
        # covariance = R^T S^2 R: what R turns onto the axes is measured in scales
        local = quaternion_turn(rotations[g : g + 1].expand(len(away), 4), away) / scales[g]
        p = (-0.5 * local.square().sum(1)).exp()
        weight = gaussians.opacities_G[g].double() * p
        if gaussians.form == "probabilistic":
            weight /= (2 * math.pi) ** 1.5 * scales[g].prod()
        empty[near] *= 1 - p
        total[near] += weight
        mixed[near] += weight[:, None] * gaussians.semantics_GS[g].double()
    if gaussians.form == "additive":
        return mixed.float()
    mixed = torch.where(total[:, None] > 1e-9, mixed / total[:, None], 1 / 17) * (1 - empty[:, None])
    mixed[:, 17] = empty
    return mixed.float()


def occ3d_points():
    """Occ3D voxel centres, ego -> LIDAR_TOP."""
    centres = np.pad(OCC3D.centres().reshape(-1, 3), ((0, 0), (0, 1)), constant_values=1.0)
    return torch.from_numpy(centres @ np.linalg.inv(LIDAR2EGO.double().numpy()).T)[:, :3].float()


@pytest.mark.parametrize("det", ["stable", "upstream"])
@pytest.mark.parametrize("form", ["probabilistic", "additive"])
def test_occ3d_voxels_equal_brute_force(form, det):
    points = occ3d_points()
    gaussians = make(0, count=60, form=form, det=det)
    values = gaussians.occupancy(points)
    expected = definition(gaussians, points)
    assert (expected != expected[0]).any(1).float().mean() > 0.2
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 30), form=st.sampled_from(["probabilistic", "additive"]))
def test_any_points_equal_brute_force(seed, count, form):
    gaussians = make(seed, count, form)
    near = gaussians.means_G3.repeat_interleave(9, 0)
    points = near + 3 * torch.randn(near.shape, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(gaussians.occupancy(points), definition(gaussians, points), rtol=1e-5, atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), form=st.sampled_from(["probabilistic", "additive"]))
def test_log_probs_are_finite_normalised_and_free_of_noise(seed, form):
    gaussians = make(seed, 80, form)
    points = torch.cat([gaussians.means_G3, gaussians.means_G3 + 1.0, torch.tensor([[500.0, 0.0, 0.0]])])
    values, log_probs = gaussians.occupancy(points), gaussians.log_probs(points)
    probs = values if form == "probabilistic" else values.softmax(1)
    assert log_probs.dtype == torch.float32 and log_probs.isfinite().all()
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(len(points)))
    torch.testing.assert_close(log_probs[:, 17].exp(), probs[:, 17].clamp(min=FLOOR))
    torch.testing.assert_close(log_probs[:, 0].exp(), torch.full((len(points),), FLOOR))
    shares = probs[:, 1:17] / probs[:, 1:17].sum(1, keepdim=True)
    occupied = probs[:, 17] < 0.999
    torch.testing.assert_close(
        log_probs[occupied, 1:17].exp(), (shares * (1 - probs[:, 17:]))[occupied], rtol=1e-3, atol=1e-6
    )


def test_known_answer_of_the_probabilistic_form():
    points = torch.tensor([[0.25, 0.25, 0.25], [1.25, 0.25, 0.25], [0.25, 40.0, 0.25]])
    p = math.exp(-0.5)
    expected = torch.zeros(3, 18)
    expected[0, [0, 3, 4]] = torch.tensor([0.2, 0.2, 0.6])
    expected[1, [0, 3, 4, 17]] = torch.tensor([0.2 * p, 0.2 * p, 0.6 * p, 1 - p])
    expected[2, 17] = 1.0
    torch.testing.assert_close(one().occupancy(points), expected)
    log_probs = one().log_probs(points)
    torch.testing.assert_close(log_probs[1, [3, 4, 17]].exp(), torch.tensor([0.25 * p, 0.75 * p, 1 - p]))
    assert log_probs[2, 17] > -1e-5


def test_known_answer_of_the_additive_form():
    points = torch.tensor([[0.25, 0.25, 0.25], [1.25, 0.25, 0.25]])
    scores = torch.zeros(1, 18)
    scores[0, [4, 17]] = torch.tensor([2.0, 6.0])
    found = one(semantics=scores, form="additive").occupancy(points)
    torch.testing.assert_close(found[0], 0.5 * scores[0])
    torch.testing.assert_close(found[1], 0.5 * math.exp(-0.5) * scores[0])


def test_rotation_is_transposed_from_3d_gaussian_splatting():
    # R turns x onto y; the covariance R^T S^2 R is long where R^T takes the local x axis: along -y
    quarter = (math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5))
    points = torch.tensor([[0.25, 2.25, 0.25], [2.25, 0.25, 0.25]])
    along_y, along_x = 1 - one((2.0, 0.5, 0.5), quarter).occupancy(points)[:, 17]
    assert along_y == pytest.approx(math.exp(-0.5)) and along_x < 1e-3
    # an eighth tells R from its transpose
    eighth = (math.cos(math.pi / 8), 0.0, 0.0, math.sin(math.pi / 8))
    points = torch.tensor([[1.25, -0.75, 0.25], [1.25, 1.25, 0.25]])
    falling, rising = 1 - one((2.0, 0.5, 0.5), eighth).occupancy(points)[:, 17]
    assert falling == pytest.approx(math.exp(-0.25)) and rising < 0.05


def test_noise_alone_becomes_any_class():
    noise = torch.zeros(1, 18)
    noise[0, 0] = 1.0
    log_probs = one(semantics=noise).log_probs(torch.tensor([[1.25, 0.25, 0.25]]))
    torch.testing.assert_close(log_probs[0, 1:17].exp(), torch.full((16,), math.exp(-0.5) / 16))
    torch.testing.assert_close(log_probs[0, 17].exp(), torch.tensor(1 - math.exp(-0.5)))


def test_reach_ends_a_gaussian_in_whole_cells():
    # ceil(0.3 * 2 / 0.5) = 2 cells
    points = torch.stack([torch.tensor([0.25 + 0.5 * k, 0.25, 0.25]) for k in range(-3, 4)])
    occupied = one((0.3, 0.3, 0.3), reach=2.0).occupancy(points)[:, 17] < 1
    assert occupied.tolist() == [False, True, True, True, True, True, False]


def test_flat_gaussians_break_upstreams_determinant_only():
    flat = make(1, 400, scales=(0.01, 0.01))
    flat = replace(flat, scales_G3=flat.scales_G3.index_fill(1, torch.tensor([1, 2]), 1.8))
    points = flat.means_G3
    expected = definition(flat, points)
    torch.testing.assert_close(flat.occupancy(points), expected, rtol=1e-3, atol=1e-3)
    upstream = replace(flat, det="upstream").occupancy(points)
    occupied = 1 - upstream[:, 17:]
    any_class = ((upstream[:, :17] - occupied / 17).abs() < 1e-6).all(1)
    assert any_class.float().mean() > 0.05 and not any_class.all()
    # geometry is spared
    torch.testing.assert_close(upstream[:, 17], expected[:, 17], rtol=1e-3, atol=1e-3)
    assert replace(flat, det="upstream").log_probs(points).isfinite().all()


def test_no_gaussians_mean_free_space():
    nothing = make(0, count=0)
    log_probs = nothing.log_probs(torch.zeros(5, 3))
    assert (log_probs.argmax(1) == 17).all() and (log_probs[:, 17] > -1e-5).all()
    assert nothing.log_probs(torch.zeros(0, 3)).shape == (0, 18)


def test_the_probabilistic_form_covers_the_box_it_was_trained_for():
    """Gaussians or not: where none is, it says that the space is free."""
    low, high = -50.0, 50.0
    points = [
        [low, low, -5.0],
        [0, 0, 0],
        [49.99, 49.99, 2.99],
        [high, 0, 0],
        [0, high, 0],
        [0, 0, 3.0],
        [0, -50.01, 0],
    ]
    for gaussians in (make(0), make(0, count=0)):
        covered = gaussians.told(torch.tensor(points))[1]
        assert covered.tolist() == [True, True, True, False, False, False, False]
        assert gaussians.told(torch.from_numpy(SURROUNDOCC.centres()).reshape(-1, 3).float())[1].all()
        assert 0.5 < gaussians.told(occ3d_points())[1].float().mean() < 1


def test_a_teacher_of_another_space_knows_that_space_and_ends_in_its_cells():
    """A Gaussian that reaches 1 m from its cell, along x: of 1 m it covers -1 to 2 m, of 0.5 m -1 to 1.5 m."""
    space = VoxelGrid("small", "lidar", (-8.0, -8.0, -2.0), 1.0, (16, 16, 4))
    points = torch.tensor([[x, 0.25, 0.25] for x in (-1.1, -0.9, 1.4, 1.6, 2.1)])
    for cell, reached in ((space, [False, True, True, True, False]), (SURROUNDOCC, [False, True, True, False, False])):
        assert (one(reach=1.0, space=cell).occupancy(points)[:, 17] < 1).tolist() == reached
    corners = torch.tensor([[-8.0, -8.0, -2.0], [7.9, 7.9, 1.9], [8.1, 0.0, 0.0], [0.0, 0.0, 2.1]])
    assert one(space=space).told(corners)[1].tolist() == [True, True, False, False]
    assert one().told(corners)[1].all()


def test_the_additive_form_covers_what_its_gaussians_speak_of():
    """A disc, 1 m wide and 0.1 m thin, that ends 2 m from its cell: beyond, and far to its side, it says nothing."""
    disc = one(scales=(1.0, 1.0, 0.1), form="additive", reach=2.0, semantics=torch.linspace(-4, 5, 18)[None])
    along = torch.tensor([[0.25 + x, 0.25, 0.25] for x in (0.0, 2.2, 2.3)])
    aside = torch.tensor([[0.25, 0.25, 0.25 + z] for z in (0.5, 0.6, 1.3)])
    assert disc.told(along)[1].tolist() == [True, True, False]
    assert disc.told(aside)[1].tolist() == [True, False, False]
    assert not make(0, 0, "additive").told(along)[1].any()
    # nor beyond the range it was trained for, whatever it says there
    rim = replace(disc, means_G3=torch.tensor([[49.9, 0.25, 0.25]]))
    points = torch.tensor([[49.9, 0.25, 0.25], [50.1, 0.25, 0.25]])
    assert (rim.log_probs(points).argmax(1) == 17).all()
    assert rim.told(points)[1].tolist() == [True, False]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), thinnest=st.sampled_from([0.05, 0.3]))
def test_an_additive_model_is_covered_where_it_says_more_than_nothing(seed, thinnest):
    gaussians = make(seed, 40, "additive", scales=(thinnest, 0.8))
    near = gaussians.means_G3.repeat_interleave(25, 0)
    points = near + 3 * torch.randn(near.shape, generator=torch.Generator().manual_seed(seed))
    inside = ((points >= LOWER) & (points < torch.tensor(SURROUNDOCC.upper))).all(1)
    log_probs, covered = gaussians.told(points)
    nothing = make(0, 0, "additive").log_probs(points)
    torch.testing.assert_close(log_probs[inside & ~covered], nothing[inside & ~covered], rtol=0, atol=2e-6)
    told = definition(gaussians, points).abs().amax(1)
    assert covered[inside & (told > 1e-5)].all()
    assert not covered[~inside].any() and not covered[told == 0].any()
    assert (inside & ~covered & (told > 0)).any()  # where scores are too faint for a softmax


def test_a_gaussian_of_free_space_speaks_of_the_whole_range():
    small = make(0, 5, "additive", scales=(0.1, 0.2))
    free = torch.zeros(1, 18)
    free[0, 17] = 10.0
    whole = one((100.0, 100.0, 8.0), form="additive", semantics=free)
    names = ("means_G3", "scales_G3", "rotations_G4", "opacities_G", "semantics_GS")
    both = replace(small, **{name: torch.cat([getattr(small, name), getattr(whole, name)]) for name in names})
    assert both.told(torch.from_numpy(SURROUNDOCC.centres()).reshape(-1, 3).float())[1].all()


def test_moving_to_a_device_moves_every_tensor_and_keeps_the_rest():
    gaussians = one(reach=5.0, det="upstream")
    moved = gaussians.to("meta")
    tensors = [name for name, value in vars(gaussians).items() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5 and all(getattr(moved, name).is_meta for name in tensors)
    assert (moved.form, moved.reach, moved.det) == ("probabilistic", 5.0, "upstream")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("det", ["stable", "upstream"])
@pytest.mark.parametrize("form", ["probabilistic", "additive"])
def test_gpu_matches_cpu(form, det):
    gaussians, points = make(2, 500, form, det), occ3d_points()
    found = gaussians.to("cuda").log_probs(points.cuda()).cpu()
    torch.testing.assert_close(found.exp(), gaussians.log_probs(points).exp(), rtol=1e-3, atol=1e-5)
