"""Terms of the objective: values, gradients and where they look."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import FREE, GRID, B, C, X, Y, Z, gaussians, lesson, listening, taught_frame, told_by_gaussians

from distill.bev import bev_log_probs
from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.errors import InputError
from distill.frame import Mirror
from distill.losses.affinity import PrototypeAffinity
from distill.losses.channelwise import ChannelwiseKL
from distill.losses.jaccard import SoftJaccard
from distill.losses.logits import BalancedVoxelKL, BevKL, DecoupledVoxelKL, VoxelKL, distillation_kl
from distill.losses.objective import Objective
from distill.losses.pseudo import PseudoCrossEntropy, PseudoGeometricScal, PseudoLovasz, PseudoSemanticScal
from distill.losses.supervised import (
    CrossEntropy,
    DecoupledCrossEntropy,
    FocalLoss,
    GeometricScal,
    LidarDepth,
    LidarSILog,
    LovaszSoftmax,
    SemanticScal,
    cross_entropy,
    depth_cross_entropy,
    lovasz_softmax,
    silog,
)
from distill.losses.termination import RayTerminationKL
from distill.networks.prediction import DepthBins
from distill.signals.bev import BevProbs
from distill.signals.gaussians import render


@pytest.fixture
def frame():
    return taught_frame()


@pytest.fixture
def logits():
    return torch.randn(B, X, Y, Z, C, generator=torch.Generator().manual_seed(1)).requires_grad_()


def codes(frame):
    return frame.teachers["stored"].signals["voxels"].codes


def table(frame):
    return frame.teachers["stored"].signals["voxels"].table


def columns(frame):
    return frame.teachers["stored"].signals["bev"].probs


def covered(frame):
    return frame.teachers["stored"].covered


def teacher_logits(frame):
    """What the codes of a frame stand for, and as which the student is perfect."""
    return table(frame)[0][codes(frame).long()].requires_grad_()


def supervision(mask="camera", **weights):
    built = {
        "ce": lambda weight: CrossEntropy(weight, "log", mask, OCC3D_CLASSES),
        "lovasz": lambda weight: LovaszSoftmax(weight, mask, OCC3D_CLASSES),
        "semantic_scal": lambda weight: SemanticScal(weight, mask, OCC3D_CLASSES),
        "geometric_scal": lambda weight: GeometricScal(weight, mask, OCC3D_CLASSES),
        "focal": lambda weight: FocalLoss(2.0, weight=weight, balance="log", mask=mask, classes=OCC3D_CLASSES),
        "decoupled_ce": lambda weight: DecoupledCrossEntropy(
            1.0, 1.0, weight=weight, balance="log", mask=mask, classes=OCC3D_CLASSES
        ),
        "depth": LidarDepth,
        "silog": LidarSILog,
    }
    return Objective({name: built[name](weight) for name, weight in weights.items()})


def distillation(
    mask="camera", voxel_weight=1.0, bev_weight=1.0, temperature=2.0, classes=OCC3D_CLASSES, confidence="none"
):
    terms = {"kd_voxel": (VoxelKL, voxel_weight), "kd_bev": (BevKL, bev_weight)}
    return Objective(
        {
            name: kind(temperature=temperature, confidence=confidence, **listening(mask, weight, classes=classes))
            for name, (kind, weight) in terms.items()
            if weight
        }
    )


def balanced(**how):
    shares = {"balance": 0.5, "occupied_share": 0.5, **how}
    return Objective({"it": BalancedVoxelKL(temperature=2.0, confidence="none", **shares, **listening())})


def pseudo(kind, **how):
    return Objective({"it": kind(threshold=0.2, frames="all", **how, **listening())})


def terms(objective, logits, frame, **of_lesson):
    """The weighted terms by name."""
    return {name: value for name, (_, value) in objective(lesson(frame, logits, **of_lesson)).items()}


def looked_at(objective, logits, frame):
    """The voxels that an objective looks at, bool (B, X, Y, Z)."""
    return (value_and_gradient(objective, logits, frame)[1] != 0).any(-1)


def kl_by_hand(student_VC, teacher_VC):
    """T^2 times the mean KL at T = 2."""
    teacher_VC, student_VC = (teacher_VC / 2).log_softmax(-1), (student_VC / 2).log_softmax(-1)
    return 4 * (teacher_VC.exp() * (teacher_VC - student_VC)).sum() / len(teacher_VC)


def value_and_gradient(objective, logits, frame):
    value = torch.stack(list(terms(objective, logits, frame).values())).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


OBJECTIVES = {
    "ce": supervision(ce=1.0),
    "lovasz": supervision(lovasz=1.0),
    "kd_voxel": distillation(bev_weight=0.0),
    "kd_bev": distillation(voxel_weight=0.0),
    "kd_occupied": distillation(mask="occupied", bev_weight=0.0),
    "kd_entropy": distillation(confidence="entropy"),
    "focal": supervision(focal=1.0),
    "decoupled_ce": supervision(decoupled_ce=1.0),
    "semantic_scal": supervision(semantic_scal=1.0),
    "geometric_scal": supervision(geometric_scal=1.0),
    "balanced": balanced(balance_by="class", near=None),
    "balanced_by_mass": balanced(balance_by="mass", near=1.5),
    "decoupled": Objective(
        {"it": DecoupledVoxelKL(**listening(), temperature=2.0, confidence="none", free_weight=1.0, class_weight=2.0)}
    ),
    "channelwise": Objective({"it": ChannelwiseKL(**listening(), temperature=4.0)}),
    "affinity": Objective({"it": PrototypeAffinity(**listening())}),
    "rays": Objective({"it": RayTerminationKL(columns=9, **listening())}),
    "jaccard": Objective({"it": SoftJaccard(**listening())}),
    "pseudo_ce": pseudo(PseudoCrossEntropy, balance="log", confidence="entropy"),
    "pseudo_lovasz": pseudo(PseudoLovasz),
    "pseudo_semantic_scal": pseudo(PseudoSemanticScal),
    "pseudo_geometric_scal": pseudo(PseudoGeometricScal),
}


class TestDistillationKl:
    def test_equal_logits_give_zero_and_no_gradient(self):
        student_VC = torch.randn(7, C, dtype=torch.float64, requires_grad=True)
        loss = distillation_kl(student_VC, student_VC.detach().clone(), 2.0)
        loss.backward()
        assert abs(loss.item()) < 1e-14
        assert student_VC.grad.abs().max() < 1e-14

    def test_a_constant_added_to_a_voxel_changes_nothing(self):
        student_VC, teacher_VC = torch.randn(2, 7, C, dtype=torch.float64)
        shifted = distillation_kl(student_VC + torch.arange(7.0)[:, None], teacher_VC - 3, 2.0)
        torch.testing.assert_close(shifted, distillation_kl(student_VC, teacher_VC, 2.0))

    def test_against_pytorch_reductions(self):
        """Per voxel = 18 times PyTorch's 'mean', and 'batchmean' over one volume = |V| times the per-voxel value."""
        student_VC, teacher_VC = torch.randn(2, 60, C, dtype=torch.float64)
        per_voxel = distillation_kl(student_VC, teacher_VC, 1.0)
        arguments = student_VC.log_softmax(-1), teacher_VC.softmax(-1)
        torch.testing.assert_close(per_voxel, C * F.kl_div(*arguments, reduction="none").mean())
        volume = [values_VC.T[None] for values_VC in arguments]
        torch.testing.assert_close(60 * per_voxel, F.kl_div(*volume, reduction="batchmean"))

    def test_log_probabilities_are_as_good_as_logits_at_any_temperature(self):
        student_VC, teacher_VC = torch.randn(2, 7, C, dtype=torch.float64)
        from_probs = distillation_kl(student_VC.log_softmax(-1), teacher_VC.log_softmax(-1), 3.0)
        torch.testing.assert_close(from_probs, distillation_kl(student_VC, teacher_VC, 3.0))

    def test_known_value_with_temperature(self):
        """T = 2 turns the odds 9 : 1 into 3 : 1; 4 KL((3/4, 1/4) || (1/2, 1/2)) by hand."""
        value = distillation_kl(torch.zeros(1, 2), torch.tensor([[0.9, 0.1]]).log(), 2.0)
        assert value.item() == pytest.approx(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-5)

    def test_direction_is_teacher_to_student(self):
        """A student that spreads over the teacher's class pays little, one that misses it pays much."""
        sure, spread = torch.tensor([[8.0, 0.0, 0.0]]), torch.zeros(1, 3)
        assert distillation_kl(spread, sure, 1.0) < distillation_kl(sure, spread, 1.0)

    def test_gradient_flows_to_the_student_alone(self):
        student_VC, teacher_VC = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        assert torch.autograd.gradcheck(lambda s: distillation_kl(s, teacher_VC, 2.0), student_VC)
        distillation_kl(student_VC, teacher_VC, 2.0).backward()
        assert teacher_VC.grad is None


class TestDistillation:
    @pytest.mark.parametrize("mask", ["camera", "lidar", "occupied", "all"])
    def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(self, frame, mask):
        student = teacher_logits(frame)
        for term in terms(distillation(mask), student, frame).values():
            (gradient,) = torch.autograd.grad(term, student)
            assert abs(term.item()) < 1e-5
            assert gradient.abs().max() < 1e-6

    def test_voxel_term_is_the_formula(self, frame, logits):
        mask = frame.mask_camera
        teacher_VC = (teacher_logits(frame)[mask] / 2).log_softmax(-1)
        student_VC = (logits[mask] / 2).log_softmax(-1)
        expected = 4 * (teacher_VC.exp() * (teacher_VC - student_VC)).sum() / mask.sum()
        torch.testing.assert_close(terms(distillation(), logits, frame)["kd_voxel"], expected)

    def test_bev_term_is_the_formula(self, frame, logits):
        valid_BXY = frame.mask_camera.any(-1)
        teacher_VC = (columns(frame)[valid_BXY].log() / 2).log_softmax(-1)
        student_VC = (bev_log_probs(logits.log_softmax(-1), FREE)[valid_BXY] / 2).log_softmax(-1)
        expected = 4 * (teacher_VC.exp() * (teacher_VC - student_VC)).sum() / valid_BXY.sum()
        torch.testing.assert_close(terms(distillation(), logits, frame)["kd_bev"], expected)

    def test_weights_scale_terms_and_zero_removes_them(self, frame, logits):
        once = terms(distillation(), logits, frame)
        twice = terms(distillation(voxel_weight=2.0, bev_weight=0.0), logits, frame)
        assert twice.keys() == {"kd_voxel"}
        torch.testing.assert_close(twice["kd_voxel"], 2 * once["kd_voxel"])

    def test_frames_may_come_from_stores_with_different_tables(self, frame, logits):
        """Codes reversed along with their table are the same teacher."""
        expected = terms(distillation(), logits, frame)["kd_voxel"]
        codes(frame)[1] = 255 - codes(frame)[1]
        table(frame)[1] = table(frame)[1].flip(0)
        torch.testing.assert_close(terms(distillation(), logits, frame)["kd_voxel"], expected)

    def test_a_teacher_bev_of_exact_zeros_and_ones_is_finite(self, frame, logits):
        bev = BevProbs(probs=F.one_hot(columns(frame).argmax(-1), C).half())
        told = frame.teachers["stored"]
        frame = replace(frame, teachers={"stored": replace(told, signals={**told.signals, "bev": bev})})
        value, gradient = value_and_gradient(distillation(voxel_weight=0.0), logits, frame)
        assert value.isfinite()
        assert gradient.isfinite().all()

    def test_frames_without_labels_use_every_voxel(self, frame, logits):
        frame.labelled[1] = False
        frame.mask_camera[1] = frame.mask_lidar[1] = False
        for mask in ("camera", "lidar"):
            valid_BXYZ = looked_at(distillation(mask, bev_weight=0.0), logits, frame)
            assert torch.equal(valid_BXYZ[0], frame[f"mask_{mask}"][0])
            assert valid_BXYZ[1].all()

    @pytest.mark.parametrize("mask", ["camera", "lidar", "occupied", "all"])
    def test_frames_without_a_teacher_count_for_nothing(self, frame, logits, mask):
        frame.teachers["stored"].taught[1] = False
        valid_BXYZ = looked_at(distillation(mask), logits, frame)
        assert valid_BXYZ[0].any()
        assert not valid_BXYZ[1].any()

    def test_occupied_is_label_or_teacher_within_the_camera_mask(self, frame, logits):
        teacher_free = teacher_logits(frame).argmax(-1) == FREE
        frame.semantics[0] = FREE
        expected = frame.mask_camera & ~((frame.semantics == FREE) & teacher_free)
        assert torch.equal(looked_at(distillation("occupied", bev_weight=0.0), logits, frame), expected)

    @pytest.mark.parametrize("mask", ["camera", "lidar", "occupied", "all"])
    def test_voxels_that_the_teacher_has_not_modelled_count_for_nothing(self, frame, logits, mask):
        """Not as free, not in their columns: whatever the student says there."""
        covered(frame)[:] = torch.rand(B, X, Y, Z, generator=torch.Generator().manual_seed(2)) < 0.6
        covered(frame)[:, 2, 1] = False
        before = value_and_gradient(distillation(mask), logits, frame)
        changed = torch.where(covered(frame).unsqueeze(-1), logits, 7.0 * torch.ones_like(logits).cumsum(-1))
        codes(frame)[~covered(frame)] = 9
        columns(frame)[:, 2, 1] = 1 / C
        after = value_and_gradient(distillation(mask), changed.detach().requires_grad_(), frame)
        torch.testing.assert_close(before, after)
        assert not before[1][~covered(frame)].any()
        assert before[1][covered(frame)].any()

    def test_bev_term_over_what_is_covered_is_the_formula(self, frame, logits):
        covered(frame)[..., 0] = torch.rand(B, X, Y, generator=torch.Generator().manual_seed(2)) < 0.5
        valid_BXY = (frame.mask_camera & covered(frame)).any(-1)
        teacher_VC = (columns(frame)[valid_BXY].log() / 2).log_softmax(-1)
        student_VC = bev_log_probs(logits.log_softmax(-1), FREE, covered(frame))[valid_BXY]
        student_VC = (student_VC / 2).log_softmax(-1)
        expected = 4 * (teacher_VC.exp() * (teacher_VC - student_VC)).sum() / valid_BXY.sum()
        torch.testing.assert_close(terms(distillation(), logits, frame)["kd_bev"], expected)

    @pytest.mark.parametrize("mask", ["camera", "lidar", "occupied", "all"])
    @pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
    def test_gaussians_teach_what_the_voxels_rendered_from_them_say(self, frame, logits, mask, weights):
        poses_B44 = torch.eye(4).repeat(B, 1, 1)
        poses_B44[1, 2, 3] = -0.1
        told = [gaussians(seed, 30 + seed, (4.0, 4.0, 4.0), (0.0, 0.0, 2.0)) for seed in range(B)]
        frame = replace(frame, lidar2ego=poses_B44, teachers={"stored": told_by_gaussians(told)})
        rendered = [
            render(of_one, GRID, pose_44, torch.arange(X * Y * Z))
            for of_one, pose_44 in zip(told, poses_B44, strict=True)
        ]
        voxel_BXYZC = torch.stack([log_probs_VC for log_probs_VC, _ in rendered]).view(B, X, Y, Z, C)
        covered_BXYZ = torch.stack([covered_V for _, covered_V in rendered]).view(B, X, Y, Z)
        assert covered_BXYZ[..., 0].all()
        assert not covered_BXYZ[..., 1].any()

        valid_BXYZ = covered_BXYZ & (torch.ones_like(covered_BXYZ) if mask == "all" else frame.mask_camera)
        if mask == "lidar":
            valid_BXYZ = covered_BXYZ & frame.mask_lidar
        if mask == "occupied":
            valid_BXYZ &= (frame.semantics != FREE) | (voxel_BXYZC.argmax(-1) != FREE)
        valid_BXY = valid_BXYZ.any(-1)
        found = terms(distillation(mask, *weights), logits, frame)
        assert found.keys() == {name for name, weight in zip(("kd_voxel", "kd_bev"), weights, strict=True) if weight}
        if weights[0]:
            torch.testing.assert_close(found["kd_voxel"], kl_by_hand(logits[valid_BXYZ], voxel_BXYZC[valid_BXYZ]))
        if weights[1]:
            student_BXYC, teacher_BXYC = (
                bev_log_probs(values, FREE, covered_BXYZ) for values in (logits.log_softmax(-1), voxel_BXYZC)
            )
            torch.testing.assert_close(found["kd_bev"], kl_by_hand(student_BXYC[valid_BXY], teacher_BXYC[valid_BXY]))

    def test_flipping_everything_changes_nothing(self, frame, logits):
        expected = terms(distillation(), logits, frame)
        flipped = terms(distillation(), logits.flip(1, 2), frame.mirrored(Mirror(x=True, y=True)))
        assert flipped.keys() == expected.keys()
        for name, value in flipped.items():
            torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("name", OBJECTIVES)
class TestMasks:
    def test_masked_voxels_change_neither_loss_nor_gradient(self, name, frame, logits):
        """Whole columns are masked, as a BEV column counts with all its voxels once one of them is valid."""
        frame.mask_camera[:, 0] = False
        before = value_and_gradient(OBJECTIVES[name], logits, frame)
        changed = logits.detach().clone()
        changed[:, 0] = 5.0
        codes(frame)[:, 0] = 7
        columns(frame)[:, 0] = 1 / C
        frame.semantics[:, 0] = 3
        after = value_and_gradient(OBJECTIVES[name], changed.requires_grad_(), frame)
        torch.testing.assert_close(before, after)
        assert not before[1][:, 0].any()
        assert before[1][:, 1:].any()

    def test_an_empty_mask_gives_zero_and_zero_gradient(self, name, frame, logits):
        frame.mask_camera[:] = False
        value, gradient = value_and_gradient(OBJECTIVES[name], logits, frame)
        assert value == 0
        assert not gradient.any()

    def test_half_precision_logits_are_widened(self, name, frame, logits):
        half = logits.detach().bfloat16().requires_grad_()
        value, gradient = value_and_gradient(OBJECTIVES[name], half, frame)
        expected, _ = value_and_gradient(OBJECTIVES[name], half.detach().float().requires_grad_(), frame)
        assert value == expected
        assert gradient.dtype == torch.bfloat16


class TestSupervision:
    def test_cross_entropy_is_the_weighted_mean(self, frame, logits):
        mask = frame.mask_camera
        expected = F.cross_entropy(
            logits[mask], frame.semantics[mask].long(), weight=torch.from_numpy(OCC3D_CLASSES.weights("log"))
        )
        torch.testing.assert_close(terms(supervision(ce=1.0), logits, frame)["ce"], expected)

    def test_golden_class_weights(self):
        """docs/formulas.md 2.4."""
        assert OCC3D_CLASSES.weights("log")[[2, FREE]] == pytest.approx([0.0838, 0.0468], abs=5e-5)
        rooted = OCC3D_CLASSES.weights(0.5)
        assert rooted[4] / rooted[FREE] == pytest.approx((1892500630 / 16957802) ** 0.5)

    def test_class_weights_balance(self):
        """One rare voxel of weight 3 counts like three of weight 1."""
        log_probs_VC = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
        value = cross_entropy(log_probs_VC, torch.tensor([0, 1]), torch.tensor([3.0, 1.0]))
        assert value.item() == pytest.approx((-3 * math.log(0.9) - math.log(0.8)) / 4, rel=1e-5)

    def test_unlabelled_frames_count_for_nothing(self, frame, logits):
        frame.labelled[1] = False
        weights = dict.fromkeys(("ce", "focal", "decoupled_ce", "lovasz", "semantic_scal", "geometric_scal"), 1.0)
        loss = supervision("all", **weights)
        _, gradient = value_and_gradient(loss, logits, frame)
        assert gradient[0].any()
        assert not gradient[1].any()

    def test_mask_policy_chooses_the_voxels(self, frame, logits):
        for mask, voxels in (("lidar", frame.mask_lidar), ("all", torch.ones(B, X, Y, Z, dtype=torch.bool))):
            _, gradient = value_and_gradient(supervision(mask, ce=1.0), logits, frame)
            assert torch.equal(gradient.any(-1), voxels)


def test_labels_that_say_nothing_are_left_out_of_all_on_labelled_frames(frame, logits):
    """SurroundOcc: 0 is noise. The second frame has no labels, so nothing is noise there."""
    frame.labelled[1] = False
    frame.semantics[1] = SURROUNDOCC_CLASSES.free
    noise_BXYZ = frame.semantics == 0
    assert 0 < noise_BXYZ[0].sum() < noise_BXYZ[0].numel() / 2
    taught = distillation("all", bev_weight=0.0, classes=SURROUNDOCC_CLASSES)
    assert torch.equal(looked_at(taught, logits, frame), ~noise_BXYZ)
    trained = Objective({"ce": CrossEntropy(1.0, "log", "all", SURROUNDOCC_CLASSES)})
    expected = ~noise_BXYZ & frame.labelled[:, None, None, None]
    assert torch.equal(looked_at(trained, logits, frame), expected)


class TestLovasz:
    def test_right_and_wrong(self):
        labels_V = torch.tensor([0, 1, 2, 2])
        assert lovasz_softmax(F.one_hot(labels_V, 4).float(), labels_V) == 0
        assert lovasz_softmax(F.one_hot((labels_V + 1) % 4, 4).float(), labels_V) == 1

    def test_hard_predictions_give_one_minus_iou_of_present_classes(self):
        """Class 0: 2 of 3 right, one false positive, IoU 2/4; class 1: 1 of 2 right, one false positive, IoU 1/3."""
        labels_V, predicted_V = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 0])
        value = lovasz_softmax(F.one_hot(predicted_V, 5).double(), labels_V)
        assert value.item() == pytest.approx(1 - (2 / 4 + 1 / 3) / 2)

    def test_soft_predictions_by_hand(self):
        """One class of two voxels, errors 0.4 (foreground) and 0.1 (background) for class 0: 0.4 + 0.1 * (1 - 1); the
        same errors for class 1 in the order background, foreground: 0.4 * 1/2 + 0.1 * 1/2."""
        probs_VC = torch.tensor([[0.6, 0.4], [0.1, 0.9]])
        value = lovasz_softmax(probs_VC, torch.tensor([0, 1]))
        assert value.item() == pytest.approx((0.4 + 0.25) / 2)

    def test_gradient(self):
        torch.manual_seed(0)
        logits_VC = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
        labels_V = torch.randint(0, 3, (12,))
        assert torch.autograd.gradcheck(lambda x: lovasz_softmax(x.softmax(-1), labels_V), logits_VC)


class TestDepth:
    def test_bins_are_equal_parts_of_the_range(self):
        """4 bins over [2, 10): 2 m starts bin 0, 9.99 m ends bin 3; 1, 10 and 0 m are left out."""
        depth_BNHW = torch.tensor([2.0, 3.99, 4.0, 9.99, 1.0, 10.0, 0.0]).view(1, 1, 1, 7)
        logits_BNDHW = torch.full((1, 1, 4, 1, 7), -50.0)
        for cell, bin_ in enumerate([0, 0, 1, 3]):
            logits_BNDHW[0, 0, bin_, 0, cell] = 50.0
        assert depth_cross_entropy(logits_BNDHW, depth_BNHW, 2.0, 10.0) == 0

    def test_mean_over_returns(self):
        depth_BNHW = torch.tensor([5.0, 0.0, 7.0]).view(1, 1, 1, 3)
        value = depth_cross_entropy(torch.zeros(1, 1, 8, 1, 3), depth_BNHW, 1.0, 45.0)
        assert value.item() == pytest.approx(math.log(8), rel=1e-5)

    def test_no_return_gives_zero(self):
        logits_BNDHW = torch.randn(1, 1, 8, 1, 3, requires_grad=True)
        value = depth_cross_entropy(logits_BNDHW, torch.zeros(1, 1, 1, 3), 1.0, 45.0)
        value.backward()
        assert value == 0
        assert not logits_BNDHW.grad.any()

    def test_the_term_asks_the_bins_of_the_network(self, frame, logits):
        frame = replace(frame, depth=torch.full((B, 6, 2, 3), 5.0))
        bins = DepthBins(torch.zeros(B, 6, 8, 2, 3), 1.0, 45.0, 16)
        assert terms(supervision(depth=0.5), logits, frame, depth=bins)["depth"].item() == pytest.approx(
            0.5 * math.log(8)
        )

    def test_silog_of_upstream(self, shared, inputs):
        """MonoOcc clamps what is predicted, and looks at the depth nearest to each cell."""
        golden = np.load(shared / "fixtures/signals/monoocc_losses.npz")
        case = inputs.case_silog(int(golden["seed"]))
        predicted, depth = torch.tensor(case["pred"], requires_grad=True), torch.tensor(case["gt"])[::2, ::2]
        hit = (depth > 1e-6) & (depth < 80)
        value = 10 * silog(predicted.clamp(1e-6, 80)[0, 0, 0][hit], depth[hit])
        (gradient,) = torch.autograd.grad(value, predicted)
        assert value.item() == pytest.approx(golden["silog"].item(), rel=1e-12)
        np.testing.assert_allclose(gradient.numpy(), golden["silog_grad"], rtol=1e-9, atol=1e-15)

    @pytest.mark.parametrize("count", [0, 5])
    def test_silog_of_no_depth_and_of_right_depth_is_zero_with_zero_gradient(self, count):
        predicted_M = torch.linspace(1, 9, count).requires_grad_()
        value = silog(predicted_M, predicted_M.detach())
        assert value == 0
        assert not torch.autograd.grad(value, predicted_M)[0].any()

    def test_silog_is_of_the_mean_depth_of_the_bins(self, frame, logits):
        """Two bins over [2, 10) that are even: 6 m, where the LiDAR says 3 e m, 6 m, and twice nothing in range."""
        frame = replace(frame, depth=torch.tensor([6 * math.e / 2, 6.0, 0.0, 11.0]).view(1, 1, 2, 2))
        bins = DepthBins(torch.zeros(1, 1, 2, 2, 2), 2.0, 10.0, 16)
        apart = 1 - math.log(2)
        expected = 10 * math.sqrt(apart**2 / 2 - 0.85 * (apart / 2) ** 2)
        found = terms(supervision(silog=0.5), logits, frame, depth=bins)["silog"]
        assert found.item() == pytest.approx(0.5 * expected, rel=1e-5)

    @pytest.mark.parametrize("shape", [None, (B, 6, 4, 6)])
    def test_a_depth_map_on_other_cells_is_refused(self, frame, logits, shape):
        frame = replace(frame, depth=shape and torch.zeros(shape))
        bins = DepthBins(torch.zeros(B, 6, 8, 2, 3), 1.0, 45.0, 16)
        with pytest.raises(InputError, match="depth_stride"):
            terms(supervision(depth=1.0), logits, frame, depth=bins)
