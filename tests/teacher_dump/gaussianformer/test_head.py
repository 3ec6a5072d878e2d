"""The head and the splat against upstream's outputs on its own grid."""

import math

import pytest
import torch

from distill.grids import SURROUNDOCC
from kernels.splat import splat
from teacher_dump.teachers.gaussianformer.head import GaussianHead

PROBABILISTIC = dict(form="probabilistic", semantics="identity", opacity=True, empty=False, reach=4)
SOLID = dict(form="additive", scale_range=(0.08, 0.64), semantics="softplus", opacity=True, empty=True, reach=3)
BASELINE = dict(form="additive", scale_range=(0.08, 0.32), semantics="identity", opacity=False, empty=False, reach=3)
CASES = {
    "tiny_prob": ("enc.67.refine_anchor", dict(PROBABILISTIC, scale_range=(0.01, 1.8))),
    "tiny_prob_6400": ("enc.67.refine_anchor", dict(PROBABILISTIC, scale_range=(0.01, 3.2))),
    "tiny_v1": ("enc.21.refine_anchor", SOLID),
    "tiny_v1_old": ("enc.21.refine_anchor", SOLID),
}


@pytest.fixture(scope="module")
def grid():
    """Query points of upstream, in its order."""
    return torch.from_numpy(SURROUNDOCC.centres()).float().reshape(-1, 3)


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ("prob/nuscenes_gs25600.py", dict(PROBABILISTIC, scale_range=(0.01, 1.8))),
        ("nuscenes_gs25600_solid.py", SOLID),
        ("nuscenes_gs144000.py", BASELINE),
    ],
)
def test_names_and_shapes_are_upstreams(config, arguments, key_list):
    expected = {key.removeprefix("head."): shape for key, shape in key_list(config).items() if key.startswith("head.")}
    found = {key: tuple(value.shape) for key, value in GaussianHead(**arguments, det="stable").state_dict().items()}
    assert found == expected


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("det", ["upstream", "stable"])
def test_head_and_splat_match_upstream(case, det, golden, grid):
    reference, (anchor, arguments) = golden(case), CASES[case]
    with torch.inference_mode():
        gaussians = GaussianHead(**arguments, det=det)(reference[anchor][0])
        values = gaussians.occupancy(grid)
    for found, name in (
        (gaussians.means_G3, "means"),
        (gaussians.scales_G3, "scales"),
        (gaussians.opacities_G, "opas"),
        (gaussians.semantics_GS, "semantics"),
    ):
        torch.testing.assert_close(found, reference[f"agg.in.{name}"][0], rtol=1e-6, atol=1e-6)
    some = values[reference["vox_idx"].long()]
    # inverting the covariances elsewhere than upstream did moves the last bits
    torch.testing.assert_close(some, reference["pred_occ.sub"].T, rtol=0, atol=1e-5)
    agreement = (values.argmax(1) == reference["final_occ"].long()).double().mean()
    assert agreement >= 0.9999
    if case.startswith("tiny_prob"):
        assert (reference["final_occ"] != 17).float().mean() > 0.01


@pytest.mark.parametrize("case", ["tiny_prob", "tiny_prob_6400"])
def test_splat_matches_upstreams_aggregators_on_their_own_inputs(case, golden, grid):
    reference = golden(case)
    precisions, weights = reference["agg.in.cov_inv"][0], reference["agg.in.opas"][0]
    semantics, largest = reference["agg.in.semantics"][0].clone(), reference["agg.in.scales"][0].amax(1)
    semantics[:, 17] = 1.0  # sums the weights
    points = grid[reference["vox_idx"].long()]
    inputs = (points, reference["agg.in.means"][0], precisions)

    densities = weights * torch.linalg.det(precisions.double()).sqrt().float() / (2 * math.pi) ** 1.5
    mixed, empty = splat(*inputs, (largest * 4 / 0.5).ceil(), densities, semantics, SURROUNDOCC.lower, 0.5)
    assert (1 - empty - reference["agg.bin.sub"]).abs().max() <= 1e-6
    mixture = torch.where(mixed[:, 17:] > 1e-9, mixed / mixed[:, 17:], 1 / 17)
    assert (mixture[:, :17] - reference["agg.logits.sub"][:, :17]).abs().max() <= 3e-4

    mixed, _ = splat(*inputs, (largest * 3 / 0.5).ceil(), weights, semantics, SURROUNDOCC.lower, 0.5)
    torch.testing.assert_close(mixed[:, :17], reference["sum.logits.sub"][:, :17], rtol=1e-5, atol=1e-6)


def test_a_model_without_opacity_and_with_18_channels():
    anchor = torch.randn(50, 28, generator=torch.Generator().manual_seed(0))
    gaussians = GaussianHead(**BASELINE, det="stable")(anchor)
    assert (gaussians.opacities_G == 1).all() and len(gaussians.means_G3) == 50
    assert torch.equal(gaussians.semantics_GS, anchor[:, 10:])


def test_the_empty_gaussian_learns_its_score():
    head = GaussianHead(**SOLID, det="stable")
    with torch.no_grad():
        head.empty_scalar.fill_(7.5)
    gaussians = head(torch.zeros(3, 28))
    assert gaussians.semantics_GS.shape == (4, 18) and gaussians.semantics_GS[3, 17] == 7.5
    assert not gaussians.semantics_GS[3, :17].any() and not gaussians.semantics_GS[:3, 17].any()
    # it is everywhere, far from the others too
    torch.testing.assert_close(
        gaussians.occupancy(torch.tensor([[0.0, 0.0, -1.0]]))[:, 17].detach(), torch.tensor([7.5])
    )
    assert gaussians.occupancy(torch.tensor([[49.0, -49.0, 2.5]]))[0, 17] > 5
