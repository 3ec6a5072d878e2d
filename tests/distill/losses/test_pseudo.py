"""A teacher's classes as labels: where they count, by which threshold, and what they come to."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from made import FREE, B, C, X, Y, Z, lesson, listening, taught, taught_frame

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.errors import InputError
from distill.losses.objective import Objective
from distill.losses.pseudo import PseudoCrossEntropy, PseudoLovasz, precise_thresholds, sure_classes
from distill.losses.supervised import cross_entropy, lovasz_softmax
from distill.metrics import Calibration


@pytest.fixture
def frame():
    """The second of the two frames has no labels."""
    frame = taught_frame()
    frame.labelled[1] = False
    frame.mask_camera[1] = frame.mask_lidar[1] = False
    return frame


@pytest.fixture
def logits():
    random = torch.Generator().manual_seed(1)
    return torch.randn(B, X, Y, Z, C, generator=random, dtype=torch.float64).requires_grad_()


def pseudo(threshold=0.0, frames="unlabelled", mask="camera", classes=OCC3D_CLASSES, teachers=None):
    shared = {"threshold": threshold, "frames": frames, **listening(mask, teachers=teachers, classes=classes)}
    return Objective(
        {"ce": PseudoCrossEntropy(balance="log", confidence="none", **shared), "lovasz": PseudoLovasz(**shared)}
    )


def values(objective, frame, logits):
    return {name: raw for name, (raw, _) in objective(lesson(frame, logits)).items()}


def looked_at(objective, frame, logits):
    (gradient,) = torch.autograd.grad(torch.stack(list(values(objective, frame, logits).values())).sum(), logits)
    return (gradient != 0).any(-1)


def teacher_probs(frame):
    return taught(frame).voxels(torch.arange(B * X * Y * Z)).view(B, X, Y, Z, C).softmax(-1)


class TestSureClasses:
    def test_by_hand(self):
        """Odds 3 : 1 are 0.75: at its threshold a class is sure, below it is not; each has its own."""
        teacher_VC = torch.tensor([[3.0, 1.0], [1.0, 3.0], [9.0, 1.0]], dtype=torch.float64).log()
        labels_V, sure_V = sure_classes(teacher_VC, (0.8, 0.75))
        assert labels_V.tolist() == [0, 1, 0]
        assert sure_V.tolist() == [False, True, True]

    def test_zero_takes_all_and_one_takes_certainty_alone(self):
        teacher_VC = torch.tensor([[0.0, -200.0], [0.0, -1.0]])
        assert sure_classes(teacher_VC, (0.0, 0.0))[1].all()
        assert sure_classes(teacher_VC, (1.0, 1.0))[1].tolist() == [True, False]


def counted(*classes):
    """What a teacher calls so and is right about: of each class, by confidence."""
    return (torch.tensor([[bin_[which] for bin_ in bins] for bins in classes]) for which in (0, 1))


class TestPreciseThresholds:
    @pytest.mark.parametrize(
        ("bins", "precision", "expected"),
        [
            ([(9, 0), (2, 0), (2, 1), (4, 4)], 0.75, 0.5),  # 4 of 4, 5 of 6, 5 of 8
            ([(4, 3), (4, 3), (4, 3), (4, 3)], 0.75, 0.0),  # just so often
            ([(8, 8), (0, 0), (2, 0), (2, 2)], 0.75, 0.0),  # 1 of 1, 2 of 4, but 10 of 12
            ([(8, 0), (2, 2), (0, 0), (0, 0)], 1.0, 0.25),
            ([(1, 0), (0, 0), (0, 0), (100, 7)], 0.07, 0.25),  # 0.07 * 100 is more than 7 in floating point
            ([(5, 0), (0, 0), (1, 0), (9, 0)], 0.01, math.inf),  # never right
            ([(5, 5), (0, 0), (1, 1), (9, 5)], 0.9, math.inf),
            ([(0, 0), (0, 0), (0, 0), (0, 0)], 0.5, math.inf),  # nothing is known of any class
        ],
    )
    def test_of_one_class(self, bins, precision, expected):
        assert precise_thresholds(*counted(bins), precision) == (expected,)

    def test_a_class_that_is_found_nowhere_takes_that_of_all_together(self):
        """Of all 9 of 9 above 0.75, 10 of 12 above 0.5."""
        often = [(0, 0), (7, 0), (1, 0), (8, 8)]
        rare = [(0, 0), (0, 0), (2, 1), (1, 1)]
        absent = [(0, 0)] * 4
        assert precise_thresholds(*counted(often, absent, rare), 0.8) == (0.5, 0.5, 0.75)
        assert precise_thresholds(*counted(often, absent, rare), 0.85) == (0.5, 0.75, 0.75)

    @settings(deadline=None)
    @given(
        classes=st.lists(
            st.lists(
                st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda two: (max(two), min(two))),
                min_size=6,
                max_size=6,
            ),
            min_size=1,
            max_size=4,
        ),
        precisions=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    )
    def test_never_fall_when_the_precision_rises(self, classes, precisions):
        lower, higher = (precise_thresholds(*counted(*classes), precision) for precision in precisions)
        assert all(one <= other for one, other in zip(lower, higher, strict=True))

    @settings(deadline=None, max_examples=30)
    @given(seed=st.integers(0, 2**31), precision=st.floats(0.05, 1))
    def test_what_is_taken_on_what_they_were_measured_on_is_right_so_often(self, seed, precision):
        random = torch.Generator().manual_seed(seed)
        log_probs_VC = (4 * torch.randn(300, C, generator=random)).log_softmax(-1)
        labels_V = log_probs_VC.argmax(-1)
        labels_V = torch.where(torch.rand(300, generator=random) < 0.6, labels_V, 3).to(torch.uint8)
        metric = Calibration(OCC3D_CLASSES, 50)
        metric.update(log_probs_VC.softmax(-1), labels_V, torch.ones(300, dtype=torch.bool))
        thresholds = precise_thresholds(metric.voxels_CB, metric.right_CB, precision)
        called_V, sure_V = sure_classes(log_probs_VC, thresholds)
        for name, threshold in enumerate(thresholds):
            taken_V = sure_V & (called_V == name)
            assert taken_V.any() or threshold > 0
            assert not taken_V.any() or (labels_V == called_V)[taken_V].double().mean() >= precision


class TestWhere:
    def test_on_frames_without_labels_every_voxel_and_no_other(self, frame, logits):
        seen = looked_at(pseudo(), frame, logits)
        assert not seen[0].any()
        assert seen[1].all()

    @pytest.mark.parametrize("mask", ["camera", "lidar", "occupied", "all"])
    def test_all_frames_by_the_mask(self, frame, logits, mask):
        occupied = (frame.semantics != FREE) | (teacher_probs(frame).argmax(-1) != FREE)
        expected = {
            "camera": frame.mask_camera,
            "lidar": frame.mask_lidar,
            "occupied": frame.mask_camera,
            "all": torch.ones_like(frame.mask_camera),
        }[mask].clone()
        expected[1] = True
        if mask == "occupied":
            expected &= occupied
        assert torch.equal(looked_at(pseudo(frames="all", mask=mask), frame, logits), expected)

    def test_where_the_teacher_is_sure(self, frame, logits):
        """Of the class of the most voxels it must be surer than of the others."""
        probs, called = teacher_probs(frame)[1].max(-1)
        often = int(called.flatten().mode().values)
        middle = probs.quantile(0.5).item()
        expected = (probs >= middle) & ((called != often) | (probs >= 0.999))
        assert 0 < expected.sum() < ((probs >= middle).sum())
        thresholds = {"default": middle, OCC3D_CLASSES.names[often]: 0.999}
        seen = looked_at(pseudo(thresholds), frame, logits)
        assert torch.equal(seen[1], expected)
        assert not seen[0].any()

    def test_where_its_teacher_was_right_so_often(self, frame, logits):
        """Each teacher has thresholds of its own."""
        objective = pseudo({"precision": 1.0})
        assert objective.asks_calibration("stored")
        assert not pseudo(1.0).asks_calibration("stored")
        voxels_CB = torch.ones(C, 50, dtype=torch.int64)
        right_CB = voxels_CB.clone()
        right_CB[:, :7], right_CB[FREE] = 0, 0
        (told,) = objective.calibrate("second", voxels_CB, torch.zeros_like(voxels_CB))
        assert told.count("never") == C
        (told,) = objective.calibrate("stored", voxels_CB, right_CB)
        assert "classes of stored" in told
        assert "car 0.14" in told
        assert "free never" in told
        probs, called = teacher_probs(frame)[1].max(-1)
        expected = (probs >= 7 / 50) & (called != FREE)
        assert 0 < expected.sum() < (called != FREE).sum()
        assert torch.equal(looked_at(objective, frame, logits)[1], expected)
        frame = replace(frame, teachers={"second": frame.teachers["stored"]})
        assert not looked_at(objective, frame, logits).any()

    def test_not_where_a_teacher_says_nothing(self, frame, logits):
        frame.teachers["stored"].covered[1, 0] = False
        seen = looked_at(pseudo(), frame, logits)
        assert not seen[1, 0].any()
        assert seen[1, 1:].all()
        frame.teachers["stored"].taught[1] = False
        assert not looked_at(pseudo(), frame, logits).any()

    def test_a_class_that_says_nothing_is_no_label(self, frame, logits):
        """SurroundOcc's noise is 0; in Occ3D that is a class like others."""
        told = frame.teachers["stored"]
        codes = told.signals["voxels"].codes.clone()
        codes[1, 0], codes[1, 0, ..., 0] = 0, 255
        signals = {**told.signals, "voxels": replace(told.signals["voxels"], codes=codes)}
        frame = replace(frame, teachers={"stored": replace(told, signals=signals)})
        assert looked_at(pseudo(), frame, logits)[1].all()
        noise = teacher_probs(frame)[1].argmax(-1) == 0
        assert noise[0].all()
        assert torch.equal(looked_at(pseudo(classes=SURROUNDOCC_CLASSES), frame, logits)[1], ~noise)


class TestValues:
    def test_are_those_of_the_supervised_losses(self, frame, logits):
        called = teacher_probs(frame)[1].argmax(-1).flatten()
        log_probs_VC = logits[1].flatten(0, -2).log_softmax(-1)
        weights = torch.from_numpy(OCC3D_CLASSES.weights("log"))
        found = values(pseudo(), frame, logits)
        assert torch.equal(found["ce"], cross_entropy(log_probs_VC, called, weights))
        assert torch.equal(found["lovasz"], lovasz_softmax(log_probs_VC.exp(), called))

    def test_two_voxels_by_hand(self, logits):
        """Called car (4) and free, of which the student is sure by 0.6 and 0.9: (-w4 ln 0.6 - w17 ln 0.9) / (w4 + w17);
        Lovász of car has the errors 0.4 and 0.1, that of free 0.1 and 0.4, after which there is nothing to lose."""
        frame = taught_frame()
        frame.labelled[:] = False
        told = frame.teachers["stored"]
        codes = torch.zeros_like(told.signals["voxels"].codes)
        codes[..., 0, 0, 0, 4] = codes[..., 0, 0, 1, FREE] = 255
        signals = {**told.signals, "voxels": replace(told.signals["voxels"], codes=codes)}
        frame = replace(frame, teachers={"stored": replace(told, signals=signals)})
        student = torch.full((B, X, Y, Z, C), 1e-300, dtype=torch.float64)
        student[..., 4], student[..., FREE] = 0.6, 0.4
        student[:, 0, 0, 1, 4], student[:, 0, 0, 1, FREE] = 0.1, 0.9
        found = values(pseudo(0.5), frame, student.log())
        car, free = OCC3D_CLASSES.weights("log")[[4, FREE]].astype(np.float64)
        expected = -(car * math.log(0.6) + free * math.log(0.9)) / (car + free)
        assert found["ce"].item() == pytest.approx(expected, rel=1e-12)
        # B copies of both voxels: errors 0.4 0.4 | 0.1 0.1 and, for free, 0.4 0.4 (background) | 0.1 0.1
        assert found["lovasz"].item() == pytest.approx((0.4 + (0.4 * 0.5 + 0.1 * 0.5)) / 2, rel=1e-12)

    def test_gradient(self):
        student_VC, teacher_VC = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        student_VC.requires_grad_()
        labels_V, sure_V = sure_classes(teacher_VC, (0.3, 0.4, 0.3, 0.5))
        assert 0 < sure_V.sum() < 9
        weights_C = torch.tensor([1.0, 2.0, 3.0, 4.0])
        assert torch.autograd.gradcheck(
            lambda x: cross_entropy(x[sure_V].log_softmax(-1), labels_V[sure_V], weights_C), student_VC
        )

    @pytest.mark.parametrize("empty", ["no frame without labels", "sure of nothing"])
    def test_nothing_to_learn_is_zero_with_zero_gradient(self, frame, logits, empty):
        if empty.startswith("no"):
            frame.labelled[:] = True
        objective = pseudo(1.0 if empty.startswith("sure") else 0.0)
        found = values(objective, frame, logits)
        assert all(value == 0 for value in found.values())
        (gradient,) = torch.autograd.grad(torch.stack(list(found.values())).sum(), logits)
        assert torch.equal(gradient, torch.zeros_like(gradient))

    def test_a_student_that_says_what_the_teacher_calls_it_has_no_lovasz_loss(self, frame):
        student = 200.0 * F.one_hot(teacher_probs(frame).argmax(-1), C).double()
        found = values(pseudo(), frame, student)
        assert all(value.item() == pytest.approx(0, abs=1e-12) for value in found.values())


def test_teachers_are_asked_for_voxels_alone():
    objective = pseudo(teachers=["first"])
    assert objective.asked("first") == {"voxels"}
    assert objective.asked("second") == frozenset()


def test_both_terms_share_one_look(frame, logits):
    """And those of other thresholds look for themselves."""
    asked = lesson(frame, logits)
    calls = []
    voxels = asked.teachers["stored"].voxels
    asked.teachers["stored"].voxels = lambda index: calls.append(len(index)) or voxels(index)
    pseudo()(asked)
    assert len(calls) == 1
    pseudo(0.3)(asked)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        (
            {"default": 0.5, "pedestrain": 0.3},
            r"threshold\.pedestrain: occ3d has no such class: give default or one of",
        ),
        ({"pedestrian": 0.3}, r"threshold\.default must be given"),
    ],
)
def test_thresholds_of_no_class_are_refused(threshold, said):
    with pytest.raises(InputError, match=said):
        pseudo(threshold)
