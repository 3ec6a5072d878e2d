import math

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf

from distill.bev import bev_log_probs
from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.errors import InputError
from distill.gaussians import Gaussians
from distill.grids import OCC3D, VoxelGrid
from distill.losses import (
    Distillation,
    Supervision,
    cross_entropy,
    depth_cross_entropy,
    distillation_kl,
    lovasz_softmax,
)
from distill.networks.prediction import Occupancy
from distill.teaching import render

B, X, Y, Z, C = 2, 4, 3, 2, 18
FREE = OCC3D_CLASSES.free
# its highest layer lies above what a Gaussian teacher has modelled
GRID = VoxelGrid("tiny", "ego", (-2.0, -1.5, 2.5), 0.5, (X, Y, Z))


@pytest.fixture
def batch():
    """Two labelled, taught frames; the teacher is stored as codes of a uniform table."""
    random = torch.Generator().manual_seed(0)
    codes_BXYZC = torch.randint(0, 256, (B, X, Y, Z, C), dtype=torch.uint8, generator=random)
    table_256 = torch.linspace(-4, 0, 256)
    voxel_BXYZC = table_256[codes_BXYZC.long()].log_softmax(-1)
    return {
        "semantics": torch.randint(0, C, (B, X, Y, Z), dtype=torch.uint8, generator=random),
        "mask_camera": torch.rand(B, X, Y, Z, generator=random) < 0.5,
        "mask_lidar": torch.rand(B, X, Y, Z, generator=random) < 0.5,
        "labelled": torch.tensor([True, True]),
        "taught": torch.tensor([True, True]),
        "teacher_voxel": codes_BXYZC,
        "teacher_table": table_256.repeat(B, 1),
        "teacher_covered": torch.ones(B, X, Y, Z, dtype=torch.bool),
        "teacher_bev": bev_log_probs(voxel_BXYZC, FREE).exp(),
    }


@pytest.fixture
def logits():
    return torch.randn(B, X, Y, Z, C, generator=torch.Generator().manual_seed(1)).requires_grad_()


def teacher_logits(batch):
    """What the codes of `batch` stand for, and as which the student is perfect."""
    return batch["teacher_table"][0][batch["teacher_voxel"].long()].requires_grad_()


def supervision(mask="camera", **weights):
    return Supervision(
        **{"ce_weight": 0.0, "lovasz_weight": 0.0, "depth_weight": 0.0} | weights,
        balance="log",
        mask=mask,
        classes=OCC3D_CLASSES,
    )


def distillation(mask="camera", voxel_weight=1.0, bev_weight=1.0, temperature=2.0):
    return Distillation(voxel_weight, bev_weight, temperature, mask, GRID, OCC3D_CLASSES)


def taught_voxels(loss, logits, batch):
    """The voxels that a loss looks at, bool (B, X, Y, Z)."""
    return (value_and_gradient(loss, logits, batch)[1] != 0).any(-1)


def gaussians_near_the_origin(seed):
    random = torch.Generator().manual_seed(seed)
    count = 30 + seed
    return Gaussians(
        torch.rand(count, 3, generator=random) * 4 - 2 + torch.tensor([0.0, 0.0, 2.0]),
        torch.rand(count, 3, generator=random) * 0.3 + 0.1,
        torch.nn.functional.normalize(torch.randn(count, 4, generator=random), dim=1),
        torch.rand(count, generator=random),
        F.pad(torch.randn(count, 17, generator=random).softmax(1), (0, 1)),
        "probabilistic",
        4.0,
        "stable",
    )


def kl_by_hand(student_VC, teacher_VC):
    """T^2 times the mean KL at T = 2."""
    teacher_VC, student_VC = (teacher_VC / 2).log_softmax(-1), (student_VC / 2).log_softmax(-1)
    return 4 * (teacher_VC.exp() * (teacher_VC - student_VC)).sum() / len(teacher_VC)


def value_and_gradient(loss, logits, batch):
    value = torch.stack(list(loss(Occupancy(logits), batch).values())).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


LOSSES = {
    "ce": supervision(ce_weight=1.0),
    "lovasz": supervision(lovasz_weight=1.0),
    "kd_voxel": distillation(bev_weight=0.0),
    "kd_bev": distillation(voxel_weight=0.0),
    "kd_occupied": distillation(mask="occupied", bev_weight=0.0),
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
    def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(self, batch, mask):
        student = teacher_logits(batch)
        for term in distillation(mask)(Occupancy(student), batch).values():
            (gradient,) = torch.autograd.grad(term, student)
            assert abs(term.item()) < 1e-5
            assert gradient.abs().max() < 1e-6

    def test_voxel_term_is_the_formula(self, batch, logits):
        mask = batch["mask_camera"]
        teacher_VC = (teacher_logits(batch)[mask] / 2).log_softmax(-1)
        student_VC = (logits[mask] / 2).log_softmax(-1)
        expected = 4 * (teacher_VC.exp() * (teacher_VC - student_VC)).sum() / mask.sum()
        torch.testing.assert_close(distillation()(Occupancy(logits), batch)["kd_voxel"], expected)

    def test_bev_term_is_the_formula(self, batch, logits):
        columns = batch["mask_camera"].any(-1)
        teacher_VC = (batch["teacher_bev"][columns].log() / 2).log_softmax(-1)
        student_VC = (bev_log_probs(logits.log_softmax(-1), FREE)[columns] / 2).log_softmax(-1)
        expected = 4 * (teacher_VC.exp() * (teacher_VC - student_VC)).sum() / columns.sum()
        torch.testing.assert_close(distillation()(Occupancy(logits), batch)["kd_bev"], expected)

    def test_weights_scale_terms_and_zero_removes_them(self, batch, logits):
        once = distillation()(Occupancy(logits), batch)
        twice = distillation(voxel_weight=2.0, bev_weight=0.0)(Occupancy(logits), batch)
        assert twice.keys() == {"kd_voxel"}
        torch.testing.assert_close(twice["kd_voxel"], 2 * once["kd_voxel"])

    def test_frames_may_come_from_stores_with_different_tables(self, batch, logits):
        """Codes reversed along with their table are the same teacher."""
        expected = distillation()(Occupancy(logits), batch)["kd_voxel"]
        batch["teacher_voxel"][1] = 255 - batch["teacher_voxel"][1]
        batch["teacher_table"][1] = batch["teacher_table"][1].flip(0)
        torch.testing.assert_close(distillation()(Occupancy(logits), batch)["kd_voxel"], expected)

    def test_a_teacher_bev_of_exact_zeros_and_ones_is_finite(self, batch, logits):
        batch["teacher_bev"] = F.one_hot(batch["teacher_bev"].argmax(-1), C).half()
        value, gradient = value_and_gradient(distillation(voxel_weight=0.0), logits, batch)
        assert value.isfinite()
        assert gradient.isfinite().all()

    def test_frames_without_labels_use_every_voxel(self, batch, logits):
        batch["labelled"][1] = False
        batch["mask_camera"][1] = batch["mask_lidar"][1] = False
        for mask in ("camera", "lidar"):
            valid_BXYZ = taught_voxels(distillation(mask, bev_weight=0.0), logits, batch)
            assert torch.equal(valid_BXYZ[0], batch[f"mask_{mask}"][0])
            assert valid_BXYZ[1].all()

    @pytest.mark.parametrize("mask", ["camera", "lidar", "occupied", "all"])
    def test_frames_without_a_teacher_count_for_nothing(self, batch, logits, mask):
        batch["taught"][1] = False
        valid_BXYZ = taught_voxels(distillation(mask), logits, batch)
        assert valid_BXYZ[0].any()
        assert not valid_BXYZ[1].any()

    def test_occupied_is_label_or_teacher_within_the_camera_mask(self, batch, logits):
        teacher_free = teacher_logits(batch).argmax(-1) == FREE
        batch["semantics"][0] = FREE
        expected = batch["mask_camera"] & ~((batch["semantics"] == FREE) & teacher_free)
        assert torch.equal(taught_voxels(distillation("occupied", bev_weight=0.0), logits, batch), expected)

    @pytest.mark.parametrize("mask", ["camera", "lidar", "occupied", "all"])
    def test_voxels_that_the_teacher_has_not_modelled_count_for_nothing(self, batch, logits, mask):
        """Not as free, not in their columns: whatever the student says there."""
        batch["teacher_covered"] = torch.rand(B, X, Y, Z, generator=torch.Generator().manual_seed(2)) < 0.6
        batch["teacher_covered"][:, 2, 1] = False
        before = value_and_gradient(distillation(mask), logits, batch)
        changed = torch.where(batch["teacher_covered"].unsqueeze(-1), logits, 7.0 * torch.ones_like(logits).cumsum(-1))
        batch["teacher_voxel"][~batch["teacher_covered"]] = 9
        batch["teacher_bev"][:, 2, 1] = 1 / C
        after = value_and_gradient(distillation(mask), changed.detach().requires_grad_(), batch)
        torch.testing.assert_close(before, after)
        assert not before[1][~batch["teacher_covered"]].any()
        assert before[1][batch["teacher_covered"]].any()

    def test_bev_term_over_what_is_covered_is_the_formula(self, batch, logits):
        batch["teacher_covered"][..., 0] = torch.rand(B, X, Y, generator=torch.Generator().manual_seed(2)) < 0.5
        columns = (batch["mask_camera"] & batch["teacher_covered"]).any(-1)
        teacher_VC = (batch["teacher_bev"][columns].log() / 2).log_softmax(-1)
        student_VC = bev_log_probs(logits.log_softmax(-1), FREE, batch["teacher_covered"])[columns]
        student_VC = (student_VC / 2).log_softmax(-1)
        expected = 4 * (teacher_VC.exp() * (teacher_VC - student_VC)).sum() / columns.sum()
        torch.testing.assert_close(distillation()(Occupancy(logits), batch)["kd_bev"], expected)

    @pytest.mark.parametrize("mask", ["camera", "lidar", "occupied", "all"])
    @pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
    def test_gaussians_teach_what_the_voxels_rendered_from_them_say(self, batch, logits, mask, weights):
        poses_B44 = torch.eye(4).repeat(B, 1, 1)
        poses_B44[1, 2, 3] = -0.1
        batch["teacher_gaussians"] = [gaussians_near_the_origin(seed) for seed in range(B)]
        batch["lidar2ego"] = poses_B44
        rendered = [
            render(gaussians, GRID, pose_44, torch.arange(X * Y * Z))
            for gaussians, pose_44 in zip(batch["teacher_gaussians"], poses_B44, strict=True)
        ]
        voxel_BXYZC = torch.stack([log_probs_VC for log_probs_VC, _ in rendered]).view(B, X, Y, Z, C)
        covered_BXYZ = torch.stack([covered_V for _, covered_V in rendered]).view(B, X, Y, Z)
        assert covered_BXYZ[..., 0].all()
        assert not covered_BXYZ[..., 1].any()

        valid_BXYZ = covered_BXYZ & (torch.ones_like(covered_BXYZ) if mask == "all" else batch["mask_camera"])
        if mask == "lidar":
            valid_BXYZ = covered_BXYZ & batch["mask_lidar"]
        if mask == "occupied":
            valid_BXYZ &= (batch["semantics"] != FREE) | (voxel_BXYZC.argmax(-1) != FREE)
        columns = valid_BXYZ.any(-1)
        terms = distillation(mask, *weights)(Occupancy(logits), batch)
        assert terms.keys() == {name for name, weight in zip(("kd_voxel", "kd_bev"), weights, strict=True) if weight}
        if weights[0]:
            torch.testing.assert_close(terms["kd_voxel"], kl_by_hand(logits[valid_BXYZ], voxel_BXYZC[valid_BXYZ]))
        if weights[1]:
            student_BXYC, teacher_BXYC = (
                bev_log_probs(values, FREE, covered_BXYZ) for values in (logits.log_softmax(-1), voxel_BXYZC)
            )
            torch.testing.assert_close(terms["kd_bev"], kl_by_hand(student_BXYC[columns], teacher_BXYC[columns]))

    def test_flipping_everything_changes_nothing(self, batch, logits):
        expected = distillation()(Occupancy(logits), batch)
        for name in ("semantics", "mask_camera", "mask_lidar", "teacher_voxel", "teacher_covered", "teacher_bev"):
            batch[name] = batch[name].flip(1, 2)
        flipped = distillation()(Occupancy(logits.flip(1, 2)), batch)
        assert flipped.keys() == expected.keys()
        for name, value in flipped.items():
            torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("name", LOSSES)
class TestMasks:
    def test_masked_voxels_change_neither_loss_nor_gradient(self, name, batch, logits):
        """Whole columns are masked, as a BEV column counts with all its voxels once one of them is valid."""
        batch["mask_camera"][:, 0] = False
        before = value_and_gradient(LOSSES[name], logits, batch)
        changed = logits.detach().clone()
        changed[:, 0] = 5.0
        batch["teacher_voxel"][:, 0] = 7
        batch["teacher_bev"][:, 0] = 1 / C
        batch["semantics"][:, 0] = 3
        after = value_and_gradient(LOSSES[name], changed.requires_grad_(), batch)
        torch.testing.assert_close(before, after)
        assert not before[1][:, 0].any()
        assert before[1][:, 1:].any()

    def test_an_empty_mask_gives_zero_and_zero_gradient(self, name, batch, logits):
        batch["mask_camera"][:] = False
        value, gradient = value_and_gradient(LOSSES[name], logits, batch)
        assert value == 0
        assert not gradient.any()

    def test_half_precision_logits_are_widened(self, name, batch, logits):
        half = logits.detach().bfloat16().requires_grad_()
        value, gradient = value_and_gradient(LOSSES[name], half, batch)
        expected, _ = value_and_gradient(LOSSES[name], half.detach().float().requires_grad_(), batch)
        assert value == expected
        assert gradient.dtype == torch.bfloat16


class TestSupervision:
    def test_cross_entropy_is_the_weighted_mean(self, batch, logits):
        mask = batch["mask_camera"]
        expected = F.cross_entropy(
            logits[mask], batch["semantics"][mask].long(), weight=torch.from_numpy(OCC3D_CLASSES.weights("log"))
        )
        torch.testing.assert_close(supervision(ce_weight=1.0)(Occupancy(logits), batch)["ce"], expected)

    def test_golden_class_weights(self):
        """docs/formulas.md 2.4."""
        assert OCC3D_CLASSES.weights("log")[[2, FREE]] == pytest.approx([0.0838, 0.0468], abs=5e-5)
        rooted = OCC3D_CLASSES.weights("sqrt")
        assert rooted[4] / rooted[FREE] == pytest.approx((1892500630 / 16957802) ** 0.5)

    def test_class_weights_balance(self):
        """One rare voxel of weight 3 counts like three of weight 1."""
        log_probs_VC = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
        value = cross_entropy(log_probs_VC, torch.tensor([0, 1]), torch.tensor([3.0, 1.0]))
        assert value.item() == pytest.approx((-3 * math.log(0.9) - math.log(0.8)) / 4, rel=1e-5)

    def test_unlabelled_frames_count_for_nothing(self, batch, logits):
        batch["labelled"][1] = False
        loss = supervision("all", ce_weight=1.0, lovasz_weight=1.0)
        _, gradient = value_and_gradient(loss, logits, batch)
        assert gradient[0].any()
        assert not gradient[1].any()

    def test_mask_policy_chooses_the_voxels(self, batch, logits):
        for mask, voxels in (("lidar", batch["mask_lidar"]), ("all", torch.ones(B, X, Y, Z, dtype=torch.bool))):
            _, gradient = value_and_gradient(supervision(mask, ce_weight=1.0), logits, batch)
            assert torch.equal(gradient.any(-1), voxels)


def test_labels_that_say_nothing_are_left_out_of_all_on_labelled_frames(batch, logits):
    """SurroundOcc: 0 is noise. The second frame has no labels, so nothing is noise there."""
    batch["labelled"][1] = False
    batch["semantics"][1] = SURROUNDOCC_CLASSES.free
    noise_BXYZ = batch["semantics"] == 0
    assert 0 < noise_BXYZ[0].sum() < noise_BXYZ[0].numel() / 2
    taught = Distillation(1.0, 0.0, 2.0, "all", GRID, SURROUNDOCC_CLASSES)
    assert torch.equal(taught_voxels(taught, logits, batch), ~noise_BXYZ)
    trained = Supervision(1.0, 0.0, 0.0, "log", "all", SURROUNDOCC_CLASSES)
    expected = ~noise_BXYZ & batch["labelled"][:, None, None, None]
    assert torch.equal(taught_voxels(trained, logits, batch), expected)


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

    def test_term_of_a_network_with_depth(self, batch, logits):
        batch["depth"] = torch.full((B, 6, 2, 3), 5.0)
        prediction = Occupancy(logits, torch.zeros(B, 6, 8, 2, 3), (1.0, 45.0))
        assert supervision(depth_weight=0.5)(prediction, batch)["depth"].item() == pytest.approx(0.5 * math.log(8))
        assert supervision(depth_weight=0.5)(Occupancy(logits), batch) == {}

    @pytest.mark.parametrize("shape", [None, (B, 6, 4, 6)])
    def test_a_depth_map_on_other_cells_is_refused(self, batch, logits, shape):
        if shape:
            batch["depth"] = torch.zeros(shape)
        with pytest.raises(InputError, match="depth_stride"):
            supervision(depth_weight=1.0)(Occupancy(logits, torch.zeros(B, 6, 8, 2, 3), (1.0, 45.0)), batch)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: distillation("lidra"), "camera, lidar, occupied, all"),
        (lambda: distillation(temperature=0.0), "temperature"),
        (lambda: distillation(voxel_weight=-1.0), "negative"),
        (lambda: supervision("occupied"), "camera, lidar, all"),
        (lambda: supervision(ce_weight=-1.0), "negative"),
    ],
)
def test_mistakes_in_the_configuration_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_hydra_builds_a_loss():
    classes = {"_target_": "hydra.utils.get_object", "path": "distill.classes.OCC3D_CLASSES"}
    node = OmegaConf.create(
        {
            "_target_": "distill.losses.Distillation",
            "voxel_weight": 1.0,
            "bev_weight": 1.0,
            "temperature": 2.0,
            "mask": "camera",
            "grid": {"_target_": "hydra.utils.get_object", "path": "distill.grids.OCC3D"},
            "classes": classes,
        }
    )
    assert instantiate(node) == Distillation(1.0, 1.0, 2.0, "camera", OCC3D, OCC3D_CLASSES)
