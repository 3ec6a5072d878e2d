"""Anchors read as Gaussians: upstream's numbers, ranges, and the way back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.grids import SURROUNDOCC
from teacher_dump.teachers.gaussianformer import anchors

SCALES = (0.01, 1.8)


@pytest.mark.parametrize(
    ("case", "layer", "scale_range", "semantics"),
    [
        ("tiny_prob", 67, (0.01, 1.8), "identity"),
        ("tiny_prob_6400", 67, (0.01, 3.2), "identity"),
        ("tiny_v1", 21, (0.08, 0.64), "softplus"),
        ("tiny_v1_old", 21, (0.08, 0.64), "softplus"),
    ],
)
def test_decoding_matches_upstream(golden, case, layer, scale_range, semantics):
    upstream = golden(case)
    decoded = anchors.decode(upstream[f"enc.{layer}.refine_anchor"][0], scale_range, semantics, opacity=True)
    for name, found in zip(("means", "scales", "rotations", "opacities", "semantics"), decoded, strict=True):
        expected = upstream[f"gaussian.{name}"][0]
        torch.testing.assert_close(found.view_as(expected), expected, rtol=0, atol=1e-6)


def some_anchors(seed, columns=28, spread=1.0):
    return spread * torch.randn(50, columns, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([0.1, 1.0, 30.0, 1e30]))
def test_every_anchor_is_a_gaussian_in_range(seed, spread):
    decoded = anchors.decode(some_anchors(seed, spread=spread), SCALES, "softplus", opacity=True)
    lower, upper = torch.tensor(SURROUNDOCC.lower), torch.tensor(SURROUNDOCC.upper)
    assert ((decoded.means_G3 > lower) & (decoded.means_G3 < upper)).all()
    assert ((decoded.scales_G3 > SCALES[0]) & (decoded.scales_G3 < SCALES[1])).all()
    assert ((decoded.opacities_G >= 0) & (decoded.opacities_G <= 1)).all()
    assert (decoded.semantics_GS >= 0).all()
    if spread < 1e10:  # squares of larger numbers overflow
        torch.testing.assert_close(decoded.rotations_G4.norm(dim=1), torch.ones(50))


def test_without_opacity_every_column_behind_the_rotation_is_semantic():
    anchor_GK = some_anchors(0)
    decoded = anchors.decode(anchor_GK, SCALES, "identity", opacity=False)
    assert decoded.opacities_G.tolist() == [1.0] * 50
    assert torch.equal(decoded.semantics_GS, anchor_GK[:, 10:])


def test_the_middle_of_every_range_is_a_logit_of_zero():
    anchor_GK = torch.zeros(1, 28)
    anchor_GK[:, 6] = 2.0
    decoded = anchors.decode(anchor_GK, SCALES, "identity", opacity=True)
    assert decoded.means_G3.tolist() == [[0.0, 0.0, -1.0]]
    torch.testing.assert_close(decoded.scales_G3, torch.full((1, 3), 0.905))
    assert decoded.rotations_G4.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert decoded.opacities_G.tolist() == [0.5]


def test_position_logits_lead_back_to_the_positions():
    generator = torch.Generator().manual_seed(1)
    means_G3 = torch.rand(200, 3, generator=generator) * torch.tensor([99.9, 99.9, 7.9]) - torch.tensor([50, 50, 5.0])
    means_G3 += 0.05
    torch.testing.assert_close(anchors.means(anchors.position_logits(means_G3)), means_G3, rtol=0, atol=1e-4)


def test_positions_outside_move_to_the_border():
    logits = anchors.position_logits(torch.tensor([[70.0, -70.0, 0.0]]))
    assert logits.isfinite().all()
    torch.testing.assert_close(anchors.means(logits), torch.tensor([[49.99, -49.99, 0.0]]), rtol=0, atol=1e-4)
