import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.bev import bev_log_probs

FREE = 2


def column(*rows: list[float]) -> torch.Tensor:
    """Log-probabilities (Z, C) of a column given as probabilities, lowest voxel first."""
    return torch.tensor(rows, dtype=torch.float64).log()


def test_one_occupied_voxel_decides_the_column():
    column_ZC = column([0, 1, 0], *[[0, 0, 1]] * 15)
    torch.testing.assert_close(bev_log_probs(column_ZC, FREE).exp(), torch.tensor([0, 1, 0]).double())


def test_a_free_column_is_free():
    torch.testing.assert_close(bev_log_probs(column(*[[0, 0, 1]] * 16), FREE).exp(), torch.tensor([0, 0, 1]).double())


def test_noisy_or_by_hand():
    bev_C = bev_log_probs(column([0.5, 0.1, 0.4], [0.2, 0.3, 0.5]), FREE).exp()
    expected_C = torch.tensor([1 - 0.5 * 0.8, 1 - 0.9 * 0.7, 0.4 * 0.5]).double()
    torch.testing.assert_close(bev_C, expected_C / expected_C.sum())


def test_many_doubtful_voxels_are_one_sure_column():
    """16 voxels that are free with 90 % each: an honest height axis says occupied, a max over z would say free."""
    assert bev_log_probs(column(*[[0.1, 0, 0.9]] * 16), FREE).argmax() == 0


def test_small_probabilities_survive_float32():
    column_ZC = torch.tensor([[-40.0, -60.0, 0.0]]).repeat(16, 1)
    bev_C = bev_log_probs(column_ZC, FREE)
    torch.testing.assert_close(bev_C, torch.tensor([-40.0 + math.log(16), -60.0 + math.log(16), 0.0]))


@given(st.lists(st.lists(st.floats(-200, 200), min_size=3, max_size=3), min_size=1, max_size=16))
@settings(max_examples=50, deadline=None)
def test_values_and_gradients_are_finite_for_any_logits(rows):
    logits_ZC = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
    bev_C = bev_log_probs(logits_ZC.log_softmax(-1), FREE)
    bev_C.sum().backward()
    assert bev_C.isfinite().all()
    assert logits_ZC.grad.isfinite().all()
    torch.testing.assert_close(bev_C.exp().sum(), torch.tensor(1.0))


def test_impossible_and_certain_classes_have_finite_gradients():
    log_probs_ZC = column([0, 1, 0], [0, 0, 1]).float().requires_grad_()
    bev_log_probs(log_probs_ZC, FREE).sum().backward()
    assert log_probs_ZC.grad.isfinite().all()


def test_gradient():
    torch.manual_seed(0)
    logits_XYZC = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: bev_log_probs(x.log_softmax(-1), FREE), logits_XYZC)


def test_flipping_commutes_with_the_rule_and_height_order_does_not_matter():
    torch.manual_seed(0)
    log_probs_BXYZC = torch.randn(1, 3, 4, 5, 3).log_softmax(-1)
    bev_BXYC = bev_log_probs(log_probs_BXYZC, FREE)
    assert bev_BXYC.shape == (1, 3, 4, 3)
    torch.testing.assert_close(bev_log_probs(log_probs_BXYZC.flip(1, 2), FREE), bev_BXYC.flip(1, 2))
    torch.testing.assert_close(bev_log_probs(log_probs_BXYZC.flip(3), FREE), bev_BXYC)


def test_what_is_not_covered_is_left_out():
    torch.manual_seed(0)
    log_probs_XYZC = torch.randn(4, 5, 6, 3).log_softmax(-1)
    covered_XYZ = torch.rand(4, 5, 6) < 0.5
    covered_XYZ[..., 2] = True
    bev_XYC = bev_log_probs(log_probs_XYZC, FREE, covered_XYZ)
    for x in range(4):
        for y in range(5):
            alone_C = bev_log_probs(log_probs_XYZC[x, y][covered_XYZ[x, y]], FREE)
            torch.testing.assert_close(bev_XYC[x, y], alone_C)
    torch.testing.assert_close(
        bev_log_probs(log_probs_XYZC, FREE, torch.ones(4, 5, 6, dtype=torch.bool)), bev_log_probs(log_probs_XYZC, FREE)
    )


def test_a_column_of_which_nothing_is_known_is_uniform_and_has_no_gradient():
    logits_XZC = torch.randn(2, 6, 3).requires_grad_()
    covered_XZ = torch.tensor([[False] * 6, [True] * 3 + [False] * 3])
    bev_XC = bev_log_probs(logits_XZC.log_softmax(-1), FREE, covered_XZ)
    torch.testing.assert_close(bev_XC[0].exp(), torch.full((3,), 1 / 3))
    bev_XC.square().sum().backward()
    assert logits_XZC.grad.isfinite().all()
    assert not logits_XZC.grad[~covered_XZ].any()
    assert logits_XZC.grad[1, :3].abs().min() > 0


def test_half_precision_is_widened():
    assert bev_log_probs(torch.zeros(2, 3, dtype=torch.bfloat16).log_softmax(-1), FREE).dtype == torch.float32
