"""The soft IoU of teacher and student: known answers, where it is zero, and which classes count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from made import B, C, X, Y, Z, lesson, listening, taught, taught_frame

from distill.losses.jaccard import SoftJaccard, soft_jaccard
from distill.losses.objective import Objective


def distributions(seed, voxels=20, classes=3):
    """A student's logits and a teacher's probabilities."""
    random = torch.Generator().manual_seed(seed)
    student_VC, teacher_VC = torch.randn(2, voxels, classes, dtype=torch.float64, generator=random)
    return student_VC.requires_grad_(), teacher_VC.softmax(-1)


class TestSoftJaccard:
    def test_by_hand(self):
        """Class 0: |p + q| = 2.6 and |p - q| = 0.6, so 1 - 2 / 3.2; of class 1 the teacher says
        0.8 of a voxel: it does not count."""
        student_VC = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
        teacher_VC = torch.tensor([[0.7, 0.3], [0.5, 0.5]], dtype=torch.float64)
        value = soft_jaccard(student_VC, teacher_VC)
        # class 0: p 1.4, q 1.2, apart 0.6
        assert value.item() == pytest.approx(1 - (2.6 - 0.6) / (2.6 + 0.6), rel=1e-12)
        more = torch.tensor([[0.5, 0.5]], dtype=torch.float64)  # on which both agree
        value = soft_jaccard(torch.cat([student_VC, more]), torch.cat([teacher_VC, more]))
        expected = (1 - (3.6 - 0.6) / (3.6 + 0.6) + 1 - (2.4 - 0.6) / (2.4 + 0.6)) / 2
        assert value.item() == pytest.approx(expected, rel=1e-12)

    def test_hard_distributions_give_one_minus_iou(self):
        """Class 0: 2 of 3 right, one false positive, IoU 2/4; class 1: 1 of 2 right, one false positive, IoU 1/3."""
        called_V, said_V = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 0])
        value = soft_jaccard(F.one_hot(said_V, 5).double(), F.one_hot(called_V, 5).double())
        assert value.item() == pytest.approx(1 - (2 / 4 + 1 / 3) / 2, rel=1e-12)

    @given(seed=st.integers(0, 999))
    @settings(max_examples=50, deadline=None)
    def test_zero_with_zero_gradient_where_both_say_the_same_and_nowhere_else(self, seed):
        student_VC, teacher_VC = distributions(seed)
        same_VC = teacher_VC.clone().requires_grad_()
        value = soft_jaccard(same_VC, teacher_VC)
        assert value == 0
        assert not torch.autograd.grad(value, same_VC)[0].any()
        value = soft_jaccard(student_VC.softmax(-1), teacher_VC)
        assert 0 < value < 1
        assert torch.autograd.grad(value, student_VC)[0].any()

    def test_a_class_of_less_than_a_voxel_has_no_gradient_of_its_own(self):
        teacher_VC = torch.tensor([[0.8, 0.2, 0.0]] * 4, dtype=torch.float64)
        student_VC = torch.tensor([[0.5, 0.2, 0.3]] * 4, dtype=torch.float64).requires_grad_()
        (gradient,) = torch.autograd.grad(soft_jaccard(student_VC, teacher_VC), student_VC)
        assert (gradient[:, 0] < 0).all()
        assert not gradient[:, 1:].any()

    def test_nothing_said_is_zero_with_zero_gradient(self):
        logits_VC = torch.randn(1, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        for rows in (0, 1):  # of one voxel no class has all
            value = soft_jaccard(logits_VC[:rows].softmax(-1), torch.full((rows, 3), 1 / 3))
            assert value == 0
            assert not torch.autograd.grad(value, logits_VC)[0].any()

    def test_gradient_flows_to_the_student_alone(self):
        student_VC, teacher_VC = distributions(0)
        teacher_VC.requires_grad_()
        assert torch.autograd.gradcheck(lambda x: soft_jaccard(x.softmax(-1), teacher_VC.detach()), student_VC)
        soft_jaccard(student_VC.softmax(-1), teacher_VC).backward()
        assert teacher_VC.grad is None


@pytest.mark.parametrize("mask", ["camera", "lidar", "occupied", "all"])
def test_a_student_equal_to_its_teacher_has_no_loss(mask):
    frame = taught_frame()
    student = taught(frame).voxels(torch.arange(B * X * Y * Z)).view(B, X, Y, Z, C).double().requires_grad_()
    value = SoftJaccard(**listening(mask))(lesson(frame, student))
    assert abs(value.item()) < 1e-6  # teachers speak in float32


def test_the_term_is_the_formula_on_the_region():
    frame = taught_frame()
    frame.labelled[1] = False
    logits = torch.randn(B, X, Y, Z, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    region = frame.mask_camera.clone()
    region[1] = True
    index_V = region.flatten().nonzero().squeeze(1)
    expected = soft_jaccard(logits[region].softmax(-1), taught(frame).voxels(index_V).softmax(-1).double())
    torch.testing.assert_close(SoftJaccard(**listening())(lesson(frame, logits)), expected, rtol=1e-6, atol=0)


def test_it_asks_for_voxels():
    assert Objective({"kd": SoftJaccard(**listening())}).asked("anyone") == {"voxels"}
