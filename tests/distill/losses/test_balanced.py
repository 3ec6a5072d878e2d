"""The balanced KL on voxels: what each voxel counts, and that rare classes keep their share."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import FREE, GRID, B, C, X, Y, Z, lesson, listening, taught, taught_frame

from distill.classes import OCC3D_CLASSES
from distill.grids import OCC3D, SURROUNDOCC
from distill.losses.logits import BalancedVoxelKL, VoxelKL, distillation_kl, nearness, shared_kl, voxel_shares
from distill.losses.objective import Objective

PEDESTRIAN, ROAD = OCC3D_CLASSES.names.index("pedestrian"), OCC3D_CLASSES.names.index("driveable_surface")
ROOTED = torch.from_numpy(OCC3D_CLASSES.weights(0.5)).double()
WEIGHTS_3 = torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64)  # the last of three classes is free


def scene():
    """990 free, 9 road and 1 pedestrian voxels, of which the teacher is sure; the student says their shares."""
    called_V = torch.tensor([FREE] * 990 + [ROAD] * 9 + [PEDESTRIAN])
    teacher_VC = torch.full((1000, C), -30.0, dtype=torch.float64)
    teacher_VC[torch.arange(1000), called_V] = 0.0
    prior_C = torch.full((C,), 1e-9, dtype=torch.float64)
    prior_C[[FREE, ROAD, PEDESTRIAN]] = torch.tensor([0.99, 0.009, 0.001], dtype=torch.float64)
    return called_V, teacher_VC, prior_C.log().repeat(1000, 1).requires_grad_()


def pulls(loss, student_VC, called_V):
    """The share of each class in the absolute gradient."""
    (gradient_VC,) = torch.autograd.grad(loss, student_VC)
    pull_V = gradient_VC.abs().sum(-1)
    return {
        class_id: (pull_V[called_V == class_id].sum() / pull_V.sum()).item() for class_id in (FREE, ROAD, PEDESTRIAN)
    }


def shares(called_V, weights_C, free, occupied_share):
    """Of voxels of which a class is called."""
    return voxel_shares(weights_C[called_V], (called_V != free).to(weights_C.dtype), occupied_share)


class TestToyScene:
    def test_under_the_plain_kl_a_pedestrian_is_drowned(self):
        called_V, teacher_VC, student_VC = scene()
        share = pulls(distillation_kl(student_VC, teacher_VC, 2.0), student_VC, called_V)
        assert share[PEDESTRIAN] < 0.01
        assert share[FREE] > 0.9

    def test_under_the_balanced_one_it_keeps_its_share(self):
        """Half of the sum is of what is occupied, and of that 6.94e-4 / (6.94e-4 + 9 * 7.54e-5) = 0.506 of a
        pedestrian: 0.253; of the pull it has more, as of free space the student knows nearly all."""
        called_V, teacher_VC, student_VC = scene()
        shares_V = shares(called_V, ROOTED, FREE, 0.5)
        pedestrian, road = 2074468**-0.5, 9 * 175883646**-0.5
        stated = 0.5 * pedestrian / (pedestrian + road)
        assert stated == pytest.approx(0.253, abs=5e-4)
        assert shares_V[called_V == PEDESTRIAN].sum().item() == pytest.approx(stated, rel=1e-6)
        assert shares_V[called_V == ROAD].sum().item() == pytest.approx(0.5 - stated, rel=1e-6)
        assert shares_V[called_V == FREE].sum().item() == pytest.approx(0.5, rel=1e-12)
        share = pulls(shared_kl(student_VC, teacher_VC, 2.0, shares_V), student_VC, called_V)
        assert share[PEDESTRIAN] > stated
        assert share[FREE] < 0.5

    @pytest.mark.parametrize("by", ["class", "mass"])
    def test_an_unsure_teacher_takes_no_more_than_half_of_it(self, by):
        """That gives the pedestrian 0.6 and free space the rest. Under the plain KL it has less than 0.01 still."""
        called_V, teacher_VC, student_VC = scene()
        teacher_VC[-1, [FREE, PEDESTRIAN]] = torch.tensor([0.4, 0.6], dtype=torch.float64).log()
        term = BalancedVoxelKL(
            temperature=2.0,
            confidence="none",
            balance=0.5,
            balance_by=by,
            occupied_share=0.5,
            near=None,
            **listening(),
        ).double()
        shares_V = voxel_shares(*term.balanced(teacher_VC), 0.5)
        assert shares_V.sum().item() == pytest.approx(1, rel=1e-6)
        share = pulls(shared_kl(student_VC, teacher_VC, 2.0, shares_V), student_VC, called_V)
        plain = pulls(distillation_kl(student_VC, teacher_VC, 2.0), student_VC, called_V)
        assert plain[PEDESTRIAN] < 0.01
        assert share[PEDESTRIAN] > 0.25 / 2

    def test_more_free_space_takes_nothing_from_it(self):
        called_V, _, _ = scene()
        more_V = torch.cat([called_V, torch.full((9000,), FREE)])
        few, many = (shares(each_V, ROOTED, FREE, 0.5) for each_V in (called_V, more_V))
        torch.testing.assert_close(few[990:], many[990:1000], rtol=1e-12, atol=0)


class TestVoxelShares:
    def test_by_hand(self):
        """Two of class 0 (weight 1), one of class 1 (weight 4), two free: 0.6 in sixths, 1 1 4, and 0.4 in halves."""
        shares_V = shares(torch.tensor([0, 2, 1, 0, 2]), WEIGHTS_3, 2, 0.6)
        expected_V = torch.tensor([0.1, 0.2, 0.4, 0.1, 0.2], dtype=torch.float64)
        torch.testing.assert_close(shares_V, expected_V, rtol=1e-14, atol=0)

    @pytest.mark.parametrize(("called", "total"), [([2, 2], 0.4), ([0, 1], 0.6), ([], 0.0)])
    def test_a_part_without_voxels_adds_nothing_and_the_other_keeps_its_share(self, called, total):
        shares_V = shares(torch.tensor(called, dtype=torch.long), WEIGHTS_3, 2, 0.6)
        assert shares_V.sum().item() == pytest.approx(total)

    @given(called=st.lists(st.integers(0, 2), max_size=30), share=st.floats(0, 1), scale=st.floats(1e-6, 1e6))
    @settings(max_examples=60, deadline=None)
    def test_weights_count_relative_to_each_other_and_shares_add_up(self, called, share, scale):
        called_V = torch.tensor(called, dtype=torch.long)
        shares_V = shares(called_V, WEIGHTS_3, 2, share)
        torch.testing.assert_close(shares(called_V, scale * WEIGHTS_3, 2, share), shares_V)
        expected = share * any(each != 2 for each in called) + (1 - share) * (2 in called)
        assert shares_V.sum().item() == pytest.approx(expected, abs=1e-12)
        assert (shares_V >= 0).all()

    @given(called=st.lists(st.integers(0, 2), min_size=1, max_size=30), seed=st.integers(0, 99))
    @settings(max_examples=60, deadline=None)
    def test_the_order_of_voxels_changes_nothing(self, called, seed):
        random = torch.Generator().manual_seed(seed)
        called_V = torch.tensor(called)
        student_VC, teacher_VC = torch.randn(2, len(called), 3, dtype=torch.float64, generator=random)
        order_V = torch.randperm(len(called), generator=random)
        straight, shuffled = (
            shared_kl(student_VC[index_V], teacher_VC[index_V], 2.0, shares(called_V[index_V], WEIGHTS_3, 2, 0.3))
            for index_V in (torch.arange(len(called)), order_V)
        )
        torch.testing.assert_close(straight, shuffled)

    @given(called=st.lists(st.integers(0, 2), min_size=1, max_size=30), seed=st.integers(0, 99))
    @settings(max_examples=60, deadline=None)
    def test_classes_of_weight_zero_are_as_if_they_were_not_there(self, called, seed):
        called_V = torch.tensor(called)
        student_VC, teacher_VC = torch.randn(
            2, len(called), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        weights_C = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
        left_V = called_V != 1
        found, expected = (
            shared_kl(student_VC[index_V], teacher_VC[index_V], 2.0, shares(called_V[index_V], weights_C, 2, 0.3))
            for index_V in (torch.ones_like(left_V), left_V)
        )
        assert found.isfinite()
        torch.testing.assert_close(found, expected)

    def test_what_is_partly_occupied_counts_in_both_parts(self):
        """Weights 3 and 1, occupied by 1/2 and 1: of 0.6 3/2 : 1, that is 0.36 and 0.24, and of 0.4 all and none."""
        weights_V, occupied_V = torch.tensor([[3.0, 1.0], [0.5, 1.0]], dtype=torch.float64)
        shares_V = voxel_shares(weights_V, occupied_V, 0.6)
        torch.testing.assert_close(shares_V, torch.tensor([0.76, 0.24], dtype=torch.float64), rtol=1e-14, atol=0)


class TestNearness:
    def test_by_hand(self):
        """Voxel centres of GRID lie at x = -1.75 ... -0.25 m and y = -1.25 ... -0.25 m; height does not matter."""
        near_XYZ = nearness(GRID, 2.0).view(X, Y, Z)
        assert near_XYZ[0, 0].tolist() == pytest.approx([1 / (1 + math.hypot(1.75, 1.25) / 2)] * Z)
        assert near_XYZ[3, 2].tolist() == pytest.approx([1 / (1 + math.hypot(0.25, 0.25) / 2)] * Z)

    @pytest.mark.parametrize("grid", [OCC3D, SURROUNDOCC])
    def test_half_at_its_metres_and_the_same_in_a_mirrored_world(self, grid):
        near_XYZ = nearness(grid, 10.0).view(grid.shape)
        torch.testing.assert_close(near_XYZ, near_XYZ.flip(0))
        torch.testing.assert_close(near_XYZ, near_XYZ.flip(1))
        distance_XYZ = torch.from_numpy(grid.centres()[..., :2]).norm(dim=-1)
        at_ten = near_XYZ[(distance_XYZ - 10).abs() < 0.05]
        assert len(at_ten) > 0
        assert at_ten.sub(0.5).abs().max() < 2e-3


class TestSharedKl:
    def test_equal_logits_give_zero_and_no_gradient(self):
        student_VC = torch.randn(7, C, dtype=torch.float64, requires_grad=True)
        loss = shared_kl(student_VC, student_VC.detach().clone(), 2.0, torch.rand(7, dtype=torch.float64))
        loss.backward()
        assert abs(loss.item()) < 1e-14
        assert student_VC.grad.abs().max() < 1e-14

    def test_known_value_with_temperature(self):
        """T = 2 turns the odds 9 : 1 into 3 : 1; the second voxel is right and counts for nothing."""
        teacher_VC = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64).log()
        value = shared_kl(torch.zeros_like(teacher_VC), teacher_VC, 2.0, torch.tensor([0.25, 0.75]))
        assert value.item() == pytest.approx(0.25 * 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-12)

    def test_even_shares_are_the_plain_kl(self):
        student_VC, teacher_VC = torch.randn(2, 60, C, dtype=torch.float64)
        even_V = torch.full((60,), 1 / 60, dtype=torch.float64)
        torch.testing.assert_close(
            shared_kl(student_VC, teacher_VC, 3.0, even_V), distillation_kl(student_VC, teacher_VC, 3.0)
        )

    def test_gradient_flows_to_the_student_alone(self):
        student_VC, teacher_VC = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        shares_V = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda s: shared_kl(s, teacher_VC, 2.0, shares_V), student_VC)
        shared_kl(student_VC, teacher_VC, 2.0, shares_V).backward()
        assert teacher_VC.grad is None


class TestTerm:
    def term(self, mask="camera", occupied_share=0.5, balance=0.5, balance_by="class", near=None, temperature=2.0):
        balanced = {"balance": balance, "balance_by": balance_by, "occupied_share": occupied_share, "near": near}
        return BalancedVoxelKL(temperature=temperature, confidence="none", **balanced, **listening(mask))

    @pytest.fixture
    def frame(self):
        return taught_frame()

    @pytest.fixture
    def logits(self):
        random = torch.Generator().manual_seed(1)
        return torch.randn(B, X, Y, Z, C, generator=random, dtype=torch.float64).requires_grad_()

    @pytest.mark.parametrize("mask", ["camera", "lidar", "all"])
    def test_is_the_formula(self, frame, logits, mask):
        index_V = frame[f"mask_{mask}"].flatten().nonzero().squeeze(1) if mask != "all" else torch.arange(B * X * Y * Z)
        teacher_VC = taught(frame).voxels(index_V).double()
        called_V = teacher_VC.argmax(-1)
        student_VC = (logits.flatten(0, -2)[index_V] / 2).log_softmax(-1)
        soft_VC = (teacher_VC / 2).log_softmax(-1)
        kl_V = (soft_VC.exp() * (soft_VC - student_VC)).sum(-1)
        occupied_V = called_V != FREE
        weights_V = ROOTED[called_V] * occupied_V
        assert occupied_V.any()
        assert occupied_V.all() == (mask == "lidar")  # where there is no free voxel
        free = (kl_V * ~occupied_V).sum() / max(int((~occupied_V).sum()), 1)
        expected = 4 * (0.7 * (weights_V * kl_V).sum() / weights_V.sum() + 0.3 * free)
        found = self.term(mask, 0.7)(lesson(frame, logits))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("mask", ["camera", "lidar", "occupied", "all"])
    def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(self, frame, mask):
        student = taught(frame).voxels(torch.arange(B * X * Y * Z)).view(B, X, Y, Z, C).double().requires_grad_()
        value = self.term(mask)(lesson(frame, student))
        (gradient,) = torch.autograd.grad(value, student)
        assert abs(value.item()) < 1e-6  # teachers speak in float32
        assert gradient.abs().max() < 1e-6

    def test_occupied_share_of_one_or_zero_looks_at_one_part(self, frame, logits):
        called = taught(frame).voxels(torch.arange(B * X * Y * Z)).argmax(-1).view(B, X, Y, Z)
        for share, part in ((1.0, called != FREE), (0.0, called == FREE)):
            (gradient,) = torch.autograd.grad(self.term("all", share)(lesson(frame, logits)), logits)
            assert torch.equal((gradient != 0).any(-1), part)

    def test_by_mass_is_the_formula(self, frame, logits):
        """Every voxel is of all classes by their probability, and occupied as far as it is not free."""
        student_VC, teacher_VC = logits.flatten(0, -2), taught(frame).voxels(torch.arange(B * X * Y * Z)).double()
        probs_VC = teacher_VC.softmax(-1)
        weights_V, free_V = probs_VC @ ROOTED, probs_VC[:, FREE]
        occupied = weights_V * (1 - free_V) / (weights_V * (1 - free_V)).sum()
        free = weights_V * free_V / (weights_V * free_V).sum()
        expected = shared_kl(student_VC, teacher_VC, 2.0, 0.7 * occupied + 0.3 * free)
        found = self.term("all", 0.7, balance_by="mass")(lesson(frame, logits))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)

    def test_by_mass_a_sure_teacher_is_balanced_as_by_class(self, frame, logits):
        codes = frame.teachers["stored"].signals["voxels"].codes
        codes[:] = 255 * torch.nn.functional.one_hot(codes.argmax(-1), C)
        frame.teachers["stored"].signals["voxels"].table[:] = torch.linspace(-200, 0, 256)
        by_class, by_mass = (self.term("all", balance_by=by)(lesson(frame, logits)) for by in ("class", "mass"))
        torch.testing.assert_close(by_mass, by_class, rtol=1e-6, atol=0)

    def test_nearer_voxels_count_more_within_their_part(self, frame, logits):
        """By the ratio of their weights; the parts keep their shares."""
        asked = lesson(frame, logits)
        gradients = [torch.autograd.grad(self.term("all", near=near)(asked), logits)[0] for near in (None, 1.5)]
        ratio_BXYZ = (gradients[1] / gradients[0]).mean(-1)
        near_XYZ = nearness(GRID, 1.5).view(X, Y, Z).double()
        occupied = taught(frame).voxels(torch.arange(B * X * Y * Z)).argmax(-1).view(B, X, Y, Z) != FREE
        for part in (occupied, ~occupied):
            factor = (ratio_BXYZ / near_XYZ)[part]
            assert factor.numel() > 1
            torch.testing.assert_close(factor, factor[:1].expand_as(factor), rtol=1e-5, atol=0)
        teacher_VC = taught(frame).voxels(torch.arange(B * X * Y * Z))
        called_V, near_V = teacher_VC.argmax(-1), near_XYZ.flatten().repeat(B)
        shares_V = voxel_shares(ROOTED[called_V] * near_V, (called_V != FREE).double(), 0.5)
        found = self.term("all", near=1.5)(asked)
        torch.testing.assert_close(
            found, shared_kl(logits.flatten(0, -2), teacher_VC.double(), 2.0, shares_V), rtol=1e-6, atol=0
        )

    def test_frames_without_labels_count_with_every_voxel(self, frame, logits):
        frame.labelled[1] = False
        frame.mask_camera[1] = False
        (gradient,) = torch.autograd.grad(self.term()(lesson(frame, logits)), logits)
        assert torch.equal((gradient != 0).any(-1)[0], frame.mask_camera[0])
        assert (gradient != 0).any(-1)[1].all()

    def test_asks_for_voxels_as_the_plain_one_does(self):
        plain = VoxelKL(temperature=2.0, confidence="none", **listening())
        assert Objective({"kd": self.term()}).asked("anyone") == Objective({"kd": plain}).asked("anyone") == {"voxels"}
