"""Multi-scale fusion-to-single distillation: 2DPASS's numbers, and who gets gradient from what."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made import GRID, B, C, X, Y, Z, listening, taught_frame
from torch import nn

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import stack
from distill.grids import VoxelGrid
from distill.losses.fusion import FusedSegmentation, segmentation
from distill.losses.logits import VoxelKL, distillation_kl
from distill.losses.objective import Lesson, Objective
from distill.networks import fusion_branch
from distill.networks.fusion_branch import GatedFusion
from distill.networks.prediction import FeatureMap, Occupancy
from distill.teaching import Pupil
from distill.teaching.branch import FusionBranch
from distill.teaching.predicted import mean_log_probs

SETTINGS = {"full": (1, 0.05), "no_kl": (1, 0), "no_2d": (0, 0.05), "seg3d": (0, 0)}  # weights of fused heads, of KL
SCALES = {"one": [1], "four": [1, 2, 4, 8]}
CLASSES, HIDDEN = 7, 8


class Upstream:
    """Inputs of a number of scales, and what is built of them with our parts."""

    def __init__(self, folder, inputs, name: str) -> None:
        self.inputs = inputs
        self.golden, self.name = np.load(folder / "pass_msfskd.npz"), name
        self.shapes = json.loads((folder / "state_dict_keys.json").read_text())["pass_msfskd"][name]
        seed = int(self.golden["seed"])
        self.case = self.inputs.case_points(seed)
        self.visible = self.case["visible"]
        self.parameters = {
            key: torch.tensor(self.inputs.weights(f"msfskd.{key}", shape, seed), requires_grad=True)
            for key, shape in self.shapes.items()
        }
        self.voxel_of_point = [self._voxels(scale) for scale in SCALES[name]]
        count = int(self.visible.sum())
        self.points, self.images = (
            [
                torch.tensor(self.inputs.bell(f"msfskd/{kind}{i}", (rows or of_P.max() + 1, HIDDEN), seed))
                for i, of_P in enumerate(self.voxel_of_point)
            ]
            for kind, rows in (("pts", None), ("img", count))
        )
        for features in (*self.points, *self.images):
            features.requires_grad_()

    def _voxels(self, scale: int) -> np.ndarray:
        """The voxel of each point, in the order (b, x, y, z)."""
        size = np.ceil(np.array([40, 40, 8]) / scale)
        place = np.trunc(size * (self.case["xyz"] - [-10, -10, -2]) / [20, 20, 4])
        rows = np.concatenate([self.case["batch"][:, None], place], 1)
        return np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)

    def linear(self, key: str, features):
        return nn.functional.linear(features, self.parameters[f"{key}.weight"], self.parameters[f"{key}.bias"])

    def head(self, key: str, features):
        return self.linear(f"{key}.2", self.linear(f"{key}.0", features).relu())

    def fused(self, level: int, features):
        """By our `GatedFusion`, with upstream's weights."""
        module = GatedFusion(HIDDEN, HIDDEN, HIDDEN).double()
        names = {"learner": "leaners", "mix": "fcs1", "gate": "fcs2"}
        weights = {
            f"{ours}.{kind}": self.parameters[f"{theirs}.{level}.0.{kind}"]
            for ours, theirs in names.items()
            for kind in ("weight", "bias")
        }
        return torch.func.functional_call(module, weights, (features, self.images[level]))

    def terms(self):
        """The sums over scales of: segmentation of voxels, of fused points, KL; and the joint one."""
        labels = torch.tensor(self.case["labels"][self.visible])
        seg3d, seg2d, kl, all_fused = [], [], [], []
        for level, of_P in enumerate(self.voxel_of_point):
            voxel_labels = torch.tensor(self.golden[f"{self.name}_scale{level}_voxlabel"])
            index_M = torch.tensor(of_P[self.visible])
            logits = self.head(f"multihead_3d_classifier.{level}", self.points[level])
            all_fused.append(self.fused(level, self.points[level][index_M]))
            fused_logits = self.head(f"multihead_fuse_classifier.{level}", all_fused[-1])
            seg3d.append(known(logits, voxel_labels))
            seg2d.append(known(fused_logits, labels))
            kl.append(distillation_kl(logits[index_M], fused_logits, 1.0) / CLASSES)
        joint = known(self.head("classifier", torch.cat(all_fused, 1)), labels)
        return sum(seg3d), sum(seg2d) / len(seg2d), sum(kl) / len(kl), joint


def known(logits, labels):
    """On what is labelled; 0 says nothing."""
    return segmentation(logits[labels > 0], labels[labels > 0], torch.ones(CLASSES, dtype=torch.float64))


@pytest.fixture(scope="module", params=SCALES)
def upstream(request, shared, inputs):
    return Upstream(shared / "fixtures/signals", inputs, request.param)


class TestUpstream:
    @pytest.mark.parametrize("setting", SETTINGS)
    def test_values_and_gradients(self, upstream, setting):
        of_fused, of_kl = SETTINGS[setting]
        seg3d, seg2d, kl, joint = upstream.terms()
        value = seg3d + of_fused * seg2d + of_kl * kl + joint
        key = f"{upstream.name}_{setting}"
        assert value.item() == pytest.approx(upstream.golden[key].item(), rel=1e-12)
        leaves = [*upstream.points, *upstream.images, *upstream.parameters.values()]
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        gradients = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]
        count = len(upstream.points)
        for kind, part in (("pts", gradients[:count]), ("img", gradients[count : 2 * count])):
            for level, gradient in enumerate(part):
                expected = upstream.golden[f"{key}_g_{kind}{level}"]
                gradient = gradient.numpy() if expected.ndim > 1 else upstream.inputs.probe(gradient.numpy())
                np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-14)
        probes = [upstream.inputs.probe(gradient.numpy()) for gradient in gradients[2 * count :]]
        np.testing.assert_allclose(np.stack(probes), upstream.golden[f"{key}_g_params"], rtol=1e-9, atol=1e-14)

    def test_the_divergence_trains_the_student_alone(self, upstream):
        """Neither images nor learner, gate and heads of the fused branch."""
        _, _, kl, joint = upstream.terms()
        if upstream.name == "one":
            assert kl.item() == pytest.approx(upstream.golden["one_kl_term"].item(), rel=1e-12)
        leaves = {f"pts{i}": leaf for i, leaf in enumerate(upstream.points)}
        leaves |= {f"img{i}": leaf for i, leaf in enumerate(upstream.images)} | upstream.parameters
        reached = {
            what: {
                name
                for name, gradient in zip(
                    leaves, torch.autograd.grad(value, [*leaves.values()], allow_unused=True), strict=True
                )
                if gradient is not None and gradient.any()
            }
            for what, value in (("kl", kl), ("joint", joint))
        }
        assert reached["kl"] == {name for name in leaves if name.startswith(("pts", "multihead_3d"))}
        assert reached["joint"] == {name for name in leaves if not name.startswith("multihead")}


SQUARE = VoxelGrid("square", "ego", (-4.0, -4.0, -1.0), 1.0, (8, 8, 4))


def branch(grid: VoxelGrid, **values):
    given = {"student_channels": 5, "bev_stride": 1, "point_channels": 3, "slices": 2, "channels": 6}
    return {**given, "head_channels": 4, "scales": 1, "grid": grid, "classes": OCC3D_CLASSES, **values}


def points_of(seed: int, count: int):
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) * 6 - 3


class TestBranch:
    @pytest.mark.parametrize("bev_stride", [1, 2])
    def test_every_scale_answers_for_every_voxel(self, bev_stride):
        module = fusion_branch.FusionBranch(**branch(SQUARE, bev_stride=bev_stride, scales=3))
        bev = torch.randn(2, 5, 8 // bev_stride, 8 // bev_stride, requires_grad=True)
        heads = module([points_of(0, 40), points_of(1, 0)], FeatureMap(bev, "grid", bev_stride))
        assert [tuple(logits.shape) for logits in heads] == [(2, *SQUARE.shape, C)] * 3
        for logits in heads:
            (gradient,) = torch.autograd.grad(logits.square().sum(), bev, retain_graph=True)
            assert gradient[0].any() and gradient[1].any()
            assert gradient.isfinite().all()

    def test_what_the_lidar_sees_matters(self):
        module = fusion_branch.FusionBranch(**branch(SQUARE, scales=2)).eval()
        bev = FeatureMap(torch.randn(1, 5, 8, 8), "grid", 1)
        for one, other in zip(module([points_of(0, 40)], bev), module([points_of(1, 40)], bev), strict=True):
            assert not torch.equal(one, other)

    def test_other_features_are_refused(self):
        module = fusion_branch.FusionBranch(**branch(SQUARE))
        with pytest.raises(InputError, match=r"made for BEV features \(C, X, Y\) of \(5, 8, 8\), the student has \(4,"):
            module([points_of(0, 9)], FeatureMap(torch.zeros(1, 4, 8, 8), "grid", 1))

    def test_scales_that_do_not_divide_the_grid_are_refused(self):
        with pytest.raises(InputError, match="cells of 16, which do not divide 8 x 8 columns: use fewer scales"):
            fusion_branch.FusionBranch(**branch(SQUARE, scales=5))


def test_the_mean_of_heads_teaches_what_the_heads_do():
    """The gradient of KL(mean || student) is the mean of those of the heads' KLs."""
    random = torch.Generator().manual_seed(0)
    heads = torch.randn(3, 9, C, dtype=torch.float64, generator=random)
    student = torch.randn(9, C, dtype=torch.float64, generator=random, requires_grad=True)
    mean = mean_log_probs([*heads])
    torch.testing.assert_close(mean.exp(), heads.softmax(-1).mean(0))
    of_mean = torch.autograd.grad(distillation_kl(student, mean, 1.0), student)[0]
    of_heads = torch.autograd.grad(sum(distillation_kl(student, logits, 1.0) for logits in heads) / 3, student)[0]
    torch.testing.assert_close(of_mean, of_heads)


class Setting:
    """A lesson with a branch as teacher: the first frame is labelled; the second one's label is hidden."""

    def __init__(self, counts=(30, 20), labelled=(True, False)) -> None:
        pupil = Pupil(nn.Identity(), GRID, OCC3D_CLASSES, {"voxels", "heads"}, (), (False, False), (), ())
        values = {key: value for key, value in branch(GRID).items() if key not in ("grid", "classes")}
        self.teacher = FusionBranch("it", 1.0, pupil, **values)
        frame = taught_frame()
        points = [points_of(row, count) for row, count in enumerate(counts)]
        told = stack([self.teacher.told(token) for token in frame.token])
        self.frame = replace(frame, points=points, labelled=torch.tensor(labelled), teachers={"it": told})
        random = torch.Generator().manual_seed(2)
        self.logits = torch.randn(B, X, Y, Z, C, generator=random, requires_grad=True)
        self.bev = torch.randn(B, 5, X, Y, generator=random, requires_grad=True)
        self.prediction = Occupancy(self.logits, {"bev": FeatureMap(self.bev, "grid", 1)})
        self.taught = self.teacher.taught(self.frame, self.prediction)
        terms = {
            "kd": VoxelKL(temperature=2.0, confidence="none", **listening()),
            "fused": FusedSegmentation(1.0, "it", "log", "camera", OCC3D_CLASSES),
        }
        self.objective = Objective(terms, warmup_steps=10)
        self.terms = self.objective(Lesson(self.frame, self.prediction, {"it": self.taught}, step=5))

    def gradients(self, name: str):
        """Of a term: to the student's logits, to its BEV features, to the branch."""
        leaves = [self.logits, self.bev, *self.teacher.parameters()]
        found = torch.autograd.grad(self.terms[name][0], leaves, allow_unused=True, retain_graph=True)
        return found[0], found[1], found[2:]


class TestTeaching:
    def test_who_gets_gradient(self):
        setting = Setting()
        logits, bev, of_branch = setting.gradients("kd")
        assert logits[0].any() and logits[1].any()
        assert bev is None and not any(gradient is not None for gradient in of_branch)
        logits, bev, of_branch = setting.gradients("fused")
        assert logits is None
        assert bev[0].any()
        assert all(gradient is not None for gradient in of_branch)
        assert sum(gradient.abs().sum() for gradient in of_branch) > 0

    def test_the_branch_learns_at_full_weight_while_what_it_teaches_warms_up(self):
        terms = Setting().terms
        assert torch.equal(terms["fused"][1], terms["fused"][0])
        assert torch.equal(terms["kd"][1], 0.5 * terms["kd"][0])

    def test_the_objective_asks_it_for_both(self):
        objective = Setting().objective
        assert objective.asked("it") == {"voxels", "heads"}
        assert objective.listeners("it") == ["kd", "fused"]
        with pytest.raises(InputError, match="the term fused listens to it, but there are stored"):
            objective.check_teachers(["stored"])

    def test_its_segmentation_is_that_of_labels(self):
        setting = Setting()
        index_V = (setting.frame.mask_camera & setting.frame.labelled[:, None, None, None]).flatten().nonzero()[:, 0]
        (logits_VC,) = setting.taught.ask("heads")(index_V)
        labels_V = setting.frame.semantics.flatten()[index_V].long()
        expected = segmentation(logits_VC, labels_V, setting.objective.terms["fused"].weights_C)
        torch.testing.assert_close(setting.terms["fused"][0], expected)

    @pytest.mark.parametrize(("counts", "labelled"), [((0, 20), (True, False)), ((30, 20), (False, False))])
    def test_without_points_or_labels_it_is_zero_with_zero_gradient(self, counts, labelled):
        setting = Setting(counts, labelled)
        _, bev, of_branch = setting.gradients("fused")
        assert setting.terms["fused"][0].item() == 0
        assert not bev.any()
        assert not any(gradient.any() for gradient in of_branch)

    def test_of_a_frame_without_points_it_says_nothing(self):
        setting = Setting((0, 20))
        assert setting.taught.taught_B.tolist() == [False, True]
        logits, _, _ = setting.gradients("kd")
        assert not logits[0].any()
        assert logits[1].any()

    def test_a_branch_that_nothing_trains_is_refused(self):
        pupil = Pupil(nn.Identity(), GRID, OCC3D_CLASSES, {"voxels"}, (), (False, False), (), ())
        values = {key: value for key, value in branch(GRID).items() if key not in ("grid", "classes")}
        with pytest.raises(InputError, match=r"teachers.it learns from nobody: give objective.terms.fused.weight"):
            FusionBranch("it", 1.0, pupil, **values)


def test_segmentation_of_nothing_is_zero():
    logits = torch.zeros(0, C, requires_grad=True)
    value = segmentation(logits, torch.zeros(0, dtype=torch.int64), torch.ones(C))
    assert value.item() == 0
    assert torch.autograd.grad(value, logits)[0].shape == (0, C)


def test_segmentation_by_hand():
    """One voxel of two classes with even odds: ln 2, and an error of one half."""
    value = segmentation(torch.zeros(1, 2), torch.tensor([0]), torch.ones(2))
    assert value.item() == pytest.approx(math.log(2) + 0.5)
