"""Terms that compare voxels apart from free space, over space, and by class: upstream's numbers and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import FREE, B, C, X, Y, Z, lesson, listening, taught_frame

from distill.frame import Mirror
from distill.grids import VoxelGrid
from distill.losses.affinity import PrototypeAffinity, prototype_affinity
from distill.losses.channelwise import ChannelwiseKL, channelwise_kl
from distill.losses.logits import DecoupledVoxelKL, decoupled_kl, distillation_kl
from distill.losses.objective import Objective
from distill.losses.termination import RayTerminationKL, camera_rays, termination_kl, terminations

TERMS = {
    "decoupled": DecoupledVoxelKL(**listening(), temperature=2.0, confidence="none", free_weight=1.0, class_weight=2.0),
    "channelwise": ChannelwiseKL(**listening(), temperature=4.0),
    "affinity": PrototypeAffinity(**listening()),
    "rays": RayTerminationKL(columns=9, **listening()),
}


@pytest.fixture(scope="module")
def upstream(shared, inputs):
    """Numbers of explicit loops, the module that makes their inputs, and these: a student's and a teacher's voxels."""
    golden = np.load(shared / "fixtures/signals/kd_forms.npz")
    case = inputs.case_kd(int(golden["seed"]))
    student, valid = torch.tensor(case["student"], requires_grad=True), torch.tensor(case["valid"])
    return golden, inputs, student, student[valid], torch.tensor(case["teacher"])[valid]


def decoupled(student_VC, teacher_VC):
    free, classes = decoupled_kl(student_VC, teacher_VC, 2.0, FREE)
    return free + 2 * classes


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("dkd_a1_b2", decoupled),
        ("cwd_T1", lambda student_VC, teacher_VC: channelwise_kl(student_VC, teacher_VC, 1.0, [len(student_VC)])),
        ("cwd_T4", lambda student_VC, teacher_VC: channelwise_kl(student_VC, teacher_VC, 4.0, [len(student_VC)])),
        ("affinity", lambda student_VC, teacher_VC: prototype_affinity(student_VC, teacher_VC, FREE)),
    ],
)
def test_values_and_gradients(upstream, name, loss):
    golden, inputs, student, student_VC, teacher_VC = upstream
    value = loss(student_VC, teacher_VC)
    gradient = torch.autograd.grad(value, student, retain_graph=True)[0].numpy()
    assert value.item() == pytest.approx(golden[name].item(), rel=1e-12)
    np.testing.assert_allclose(inputs.probe(gradient), golden[f"{name}_grad_probe"], rtol=1e-9, atol=1e-14)
    if f"{name}_grad" in golden:
        np.testing.assert_allclose(gradient, golden[f"{name}_grad"], rtol=1e-9, atol=1e-15)


def test_the_parts_of_the_decoupled_term(upstream):
    golden, _, _, student_VC, teacher_VC = upstream
    free, classes = decoupled_kl(student_VC, teacher_VC, 2.0, FREE)
    assert free.item() == pytest.approx(golden["dkd_binary"].item(), rel=1e-12)
    assert classes.item() == pytest.approx(golden["dkd_conditional_free"].item(), rel=1e-12)


@given(seed=st.integers(0, 999), temperature=st.floats(0.5, 8))
@settings(max_examples=50, deadline=None)
def test_decoupled_parts_make_up_the_whole(seed, temperature):
    """The chain rule: the classes count by how occupied a teacher calls the voxel."""
    random = torch.Generator().manual_seed(seed)
    student_VC, teacher_VC = torch.randn(2, 1, C, dtype=torch.float64, generator=random)
    free, classes = decoupled_kl(student_VC, teacher_VC, temperature, FREE)
    occupied = 1 - (teacher_VC / temperature).softmax(-1)[0, FREE]
    whole = distillation_kl(student_VC, teacher_VC, temperature)
    torch.testing.assert_close(free + occupied * classes, whole)


class TestRayTermination:
    def test_value_and_gradient(self, upstream):
        golden, inputs, student, _, _ = upstream
        case = inputs.case_kd(int(golden["seed"]))
        path_ML = torch.tensor(case["rays"]).long()
        student_E, teacher_E = (
            logits.flatten(0, 2).log_softmax(-1)[:, FREE][path_ML[path_ML >= 0]]
            for logits in (student, torch.tensor(case["teacher"]))
        )
        value = termination_kl(student_E, teacher_E, (path_ML >= 0).sum(1))
        (gradient,) = torch.autograd.grad(value, student, retain_graph=True)
        assert value.item() == pytest.approx(golden["ray_kl"].item(), rel=1e-12)
        np.testing.assert_allclose(gradient.numpy(), golden["ray_kl_grad"], rtol=1e-9, atol=1e-15)

    def test_a_ray_ends_somewhere_or_nowhere(self):
        """Occupied by 1/2 each, then surely: 1/2, 1/4, 1/4 and no rest; a second ray has a rest of 0.9."""
        ends_E, rest_M = terminations(torch.tensor([0.5, 0.5, 1e-30, 0.9]).log(), torch.tensor([3, 1]))
        torch.testing.assert_close(ends_E, torch.tensor([0.5, 0.25, 0.25, 0.1]))
        torch.testing.assert_close(rest_M, torch.tensor([0.0, 0.9]))

    def test_a_long_batch_of_rays_keeps_the_last_ones_exact(self):
        log_free_E = torch.full((100_000,), -20.0)
        log_free_E[-2:] = math.log(0.9)
        ends_E, rest_M = terminations(log_free_E, torch.tensor([99_998, 2]))
        torch.testing.assert_close(ends_E[-2:], torch.tensor([0.1, 0.09]))
        assert rest_M[1].item() == pytest.approx(0.81)

    def test_what_the_region_leaves_out_is_passed_over(self):
        """Neither a surface nor free space: the student may say there what it likes."""
        frame = taught_frame()
        _, gradient = found("rays", frame, student_logits())
        assert gradient[frame.mask_camera].any()
        assert not gradient[~frame.mask_camera].any()

    @pytest.mark.parametrize("mirror", [Mirror(x=True, y=False), Mirror(x=False, y=True), Mirror(x=True, y=True)])
    def test_rays_of_a_mirrored_world_cross_the_mirrored_voxels(self, mirror):
        grid = VoxelGrid("even", "ego", (-1.0, -0.75, 2.5), 0.5, (X, Y, Z))
        frame = taught_frame()
        index_BXYZ = torch.arange(B * X * Y * Z).view(B, X, Y, Z)
        paths = [camera_rays(each, grid, index_BXYZ.flatten(), 9) for each in (frame, frame.mirrored(mirror))]
        axes = [axis for axis, turned in ((1, mirror.x), (2, mirror.y)) if turned]
        assert len(paths[0][0]) > 60
        assert torch.equal(index_BXYZ.flip(axes).flatten()[paths[1][0]], paths[0][0])
        assert torch.equal(paths[1][1], paths[0][1])

    def test_frames_without_a_teacher_have_no_rays(self):
        frame = taught_frame()
        frame.teachers["stored"].taught[1] = False
        _, gradient = found("rays", frame, student_logits())
        assert gradient[0].any()
        assert not gradient[1].any()


class TestChannelwise:
    def test_by_hand(self):
        """One class of two voxels, odds 3 : 1 against 1 : 1; the other class, even on both sides, adds nothing."""
        student_VC, teacher_VC = torch.zeros(2, 2), torch.tensor([[math.log(3), 0], [0, 0]])
        expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
        assert channelwise_kl(student_VC, teacher_VC, 1.0, [2]).item() == pytest.approx(expected, rel=1e-6)

    def test_frames_do_not_share_a_distribution(self):
        """The mean over frames, of which one without voxels is none."""
        random = torch.Generator().manual_seed(0)
        student_VC, teacher_VC = torch.randn(2, 9, C, dtype=torch.float64, generator=random)
        parts = [
            channelwise_kl(student_VC[of], teacher_VC[of], 4.0, [n]) for of, n in ((slice(4), 4), (slice(4, 9), 5))
        ]
        torch.testing.assert_close(channelwise_kl(student_VC, teacher_VC, 4.0, [4, 0, 5]), sum(parts) / 2)

    def test_it_is_blind_to_how_likely_a_class_is_everywhere(self):
        random = torch.Generator().manual_seed(0)
        teacher_VC = torch.randn(9, C, dtype=torch.float64, generator=random)
        assert channelwise_kl(teacher_VC + torch.arange(C), teacher_VC, 4.0, [9]).item() == pytest.approx(0, abs=1e-12)


class TestAffinity:
    def test_by_hand(self):
        """Two classes of two voxels each, at right angles for the teacher, alike for the student: 2 of 4 pairs differ
        by 1; a class of one voxel is not compared."""
        teacher_VC = torch.tensor([[4.0, 0, 0, 0]] * 2 + [[0, 4.0, 0, 0]] * 2 + [[0, 0, 4.0, 0]])
        student_VC = torch.tensor([[1.0, 0, 0, 0]] * 4 + [[0, 0, 9.0, 0]])
        assert prototype_affinity(student_VC, teacher_VC, free=3).item() == pytest.approx(2 / 4)

    def test_free_space_is_not_compared(self):
        teacher_VC = torch.tensor([[4.0, 0, 0]] * 2 + [[0, 0, 4.0]] * 2)
        student_VC = torch.tensor([[1.0, 0, 0]] * 4, requires_grad=True)
        value = prototype_affinity(student_VC, teacher_VC, free=2)
        assert value.item() == 0
        assert not torch.autograd.grad(value, student_VC)[0].any()

    def test_the_same_has_no_gradient(self):
        teacher_VC = torch.randn(40, C, generator=torch.Generator().manual_seed(0))
        student_VC = teacher_VC.clone().requires_grad_()
        value = prototype_affinity(student_VC, teacher_VC, FREE)
        assert value.item() == 0
        assert not torch.autograd.grad(value, student_VC)[0].any()


@pytest.mark.parametrize("name", TERMS)
class TestTerms:
    def test_zero_with_zero_gradient_where_both_say_the_same(self, name):
        """Whatever a student adds to all logits of a voxel."""
        frame = taught_frame()
        codes = frame.teachers["stored"].signals["voxels"].codes
        table_256 = frame.teachers["stored"].signals["voxels"].table[0]
        logits = table_256[codes.long()].double() + torch.arange(Z, dtype=torch.float64).view(Z, 1)
        value, gradient = found(name, frame, logits.requires_grad_())
        assert value.item() == pytest.approx(0, abs=1e-5)
        if name != "affinity":  # an absolute difference of rounding errors has a gradient
            assert gradient.abs().max() < 1e-6

    def test_the_gradient_is_that_of_differences(self, name):
        frame = taught_frame()
        logits = student_logits()
        value, gradient = found(name, frame, logits)
        place = (0, *frame.mask_camera[0].nonzero()[0].tolist(), 2)
        for sign in (1, -1):
            moved = logits.detach().clone()
            moved[place] += sign * 1e-5
            other, _ = found(name, frame, moved.requires_grad_())
            assert (other - value).item() == pytest.approx(sign * 1e-5 * gradient[place].item(), rel=1e-3, abs=1e-12)

    def test_without_a_voxel_it_is_zero_with_zero_gradient(self, name):
        frame = taught_frame()
        frame.mask_camera[:] = False
        value, gradient = found(name, frame, student_logits())
        assert value.item() == 0
        assert not gradient.any()


def student_logits():
    random = torch.Generator().manual_seed(1)
    return torch.randn(B, X, Y, Z, C, dtype=torch.float64, generator=random).requires_grad_()


def found(name, frame, logits):
    """Value and gradient of a term."""
    value, _ = Objective({"it": TERMS[name]})(lesson(frame, logits))["it"]
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient
