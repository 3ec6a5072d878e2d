"""What each frame counts by its teacher: known answers, frames that have nothing to measure, and the terms' sums."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from made import FREE, B, C, X, Y, Z, lesson, listening, taught, taught_frame

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.losses.confidence import frame_confidence
from distill.losses.logits import BalancedVoxelKL, BevKL, VoxelKL
from distill.losses.objective import Objective
from distill.losses.pseudo import PseudoCrossEntropy

CAR, ROAD = 4, 11
SHARES = {"balance": 0.5, "balance_by": "class", "occupied_share": 0.5, "near": None}


@pytest.fixture
def frame():
    return taught_frame()


@pytest.fixture
def logits():
    random = torch.Generator().manual_seed(1)
    return torch.randn(B, X, Y, Z, C, generator=random, dtype=torch.float64).requires_grad_()


def saying(frame, codes):
    """The frame, of which the teacher says what the codes stand for: 255 the likeliest."""
    told = frame.teachers["stored"]
    signals = {**told.signals, "voxels": replace(told.signals["voxels"], codes=codes)}
    return replace(frame, teachers={"stored": replace(told, signals=signals)})


def calling(frame, called_BXYZ):
    """The frame, of which the teacher calls these classes."""
    return saying(frame, 255 * torch.nn.functional.one_hot(called_BXYZ.long(), C).byte())


def term(kind, confidence, mask="camera", classes=OCC3D_CLASSES):
    of_kind = {
        VoxelKL: {"temperature": 2.0},
        BevKL: {"temperature": 2.0},
        BalancedVoxelKL: {"temperature": 2.0, **SHARES},
        PseudoCrossEntropy: {"balance": "log", "threshold": 0.1, "frames": "all"},
    }[kind]
    return kind(confidence=confidence, **of_kind, **listening(mask, classes=classes))


def confidence(kind, frame, mask="camera", classes=OCC3D_CLASSES):
    asked = lesson(frame, torch.zeros(B, X, Y, Z, C))
    found_B = frame_confidence(term(VoxelKL, kind, mask, classes), kind, asked, asked.teachers["stored"])
    return found_B.tolist()


def test_none_is_one(frame):
    assert confidence("none", frame) == [1.0, 1.0]


class TestEntropy:
    def test_by_hand(self, frame):
        """Even odds in the first frame; in the second the table's ends, e^4 : 1 once and 17 times."""
        codes = torch.zeros(B, X, Y, Z, C, dtype=torch.uint8)
        codes[1, ..., CAR] = 255
        likely = math.exp(4) / (math.exp(4) + 17)
        rest = (1 - likely) / 17
        entropy = -likely * math.log(likely) - 17 * rest * math.log(rest)
        assert confidence("entropy", saying(frame, codes)) == pytest.approx([0.0, 1 - entropy / math.log(18)], abs=1e-6)

    def test_is_the_mean_over_the_region(self, frame):
        probs_BXYZC = taught(frame).voxels(torch.arange(B * X * Y * Z)).view(B, X, Y, Z, C).double().softmax(-1)
        unsure_BXYZ = -(probs_BXYZC * probs_BXYZC.log()).sum(-1) / math.log(C)
        expected = [(1 - unsure_BXYZ[b][frame.mask_camera[b]].mean()).item() for b in range(B)]
        assert expected[0] != pytest.approx(expected[1], abs=1e-3)
        assert confidence("entropy", frame) == pytest.approx(expected, abs=1e-6)

    def test_certainty_is_one_and_classes_of_no_probability_do_not_matter(self, frame):
        frame = saying(frame, 255 * torch.ones(B, X, Y, Z, C, dtype=torch.uint8))
        table = torch.full((B, 256), -1000.0)
        told = frame.teachers["stored"]
        codes = torch.zeros(B, X, Y, Z, C, dtype=torch.uint8)
        codes[..., CAR], table[:, 255] = 255, 0.0
        signals = {**told.signals, "voxels": replace(told.signals["voxels"], codes=codes, table=table)}
        frame = replace(frame, teachers={"stored": replace(told, signals=signals)})
        assert confidence("entropy", frame) == [1.0, 1.0]


class TestAgreement:
    def in_first_column(self, frame, labels, called):
        """Both voxels of the first columns are labelled and called so, all else is free and called free."""
        frame.semantics[:] = FREE
        frame.mask_camera[:] = True
        called_BXYZ = torch.full((B, X, Y, Z), FREE)
        frame.semantics[:, :2, 0] = torch.tensor(labels, dtype=torch.uint8).view(B, 2, 2)
        called_BXYZ[:, :2, 0] = torch.tensor(called).view(B, 2, 2)
        return calling(frame, called_BXYZ)

    def test_by_hand(self, frame):
        """First frame: one right, missed, made up and called wrong each: 1 of 4; second: 2 of 3, as free is free."""
        labels = [CAR, CAR, FREE, ROAD, CAR, ROAD, FREE, ROAD]
        called = [CAR, FREE, ROAD, CAR, CAR, ROAD, FREE, CAR]
        frame = self.in_first_column(frame, labels, called)
        assert confidence("agreement", frame) == pytest.approx([1 / 4, 2 / 3])
        frame.mask_camera[0, 0, 0, 0] = False  # the one that was right
        assert confidence("agreement", frame) == pytest.approx([0, 2 / 3])

    def test_frames_without_labels_take_the_mean_of_the_others(self, frame):
        frame = self.in_first_column(frame, [CAR] * 8, [CAR, FREE, FREE, FREE, CAR, CAR, CAR, CAR])
        assert confidence("agreement", frame) == pytest.approx([1 / 4, 1])
        frame.labelled[1] = False
        assert confidence("agreement", frame) == pytest.approx([1 / 4, 1 / 4])

    def test_one_where_nothing_has_labels(self, frame):
        frame.labelled[:] = False
        assert confidence("agreement", frame) == [1.0, 1.0]

    def test_frames_with_nothing_to_compare_are_as_those_without_labels(self, frame):
        """All is free and called so; or the teacher does not teach it."""
        frame = self.in_first_column(frame, [CAR] * 4 + [FREE] * 4, [CAR, CAR, CAR, FREE] + [FREE] * 4)
        assert confidence("agreement", frame) == pytest.approx([3 / 4, 3 / 4])
        frame.teachers["stored"].taught[0] = False
        assert confidence("agreement", frame) == [1.0, 1.0]

    def test_labels_that_say_nothing_are_not_compared(self, frame):
        """SurroundOcc's noise is 0."""
        frame = self.in_first_column(frame, [CAR, CAR, 0, 0] * 2, [CAR, ROAD, CAR, FREE] * 2)
        assert confidence("agreement", frame, classes=SURROUNDOCC_CLASSES) == pytest.approx([1 / 2, 1 / 2])
        assert confidence("agreement", frame) == pytest.approx([1 / 4, 1 / 4])


@pytest.mark.parametrize("kind", [VoxelKL, BevKL, BalancedVoxelKL, PseudoCrossEntropy])
@pytest.mark.parametrize("by", ["entropy", "agreement"])
class TestTerms:
    def test_each_frame_pulls_by_its_confidence(self, frame, logits, kind, by):
        """Against the gradient of the same term without; what is left out of one frame is not given to the other."""
        called_BXYZ = frame.semantics.clone()
        called_BXYZ[0, :2], called_BXYZ[1, :1] = CAR, CAR
        frame = calling(frame, called_BXYZ)
        frame.mask_camera[:] = True
        told = frame.teachers["stored"]
        told.signals["voxels"].codes[0] //= 2  # surely said, and half as surely
        plain, weighted = (term(kind, each)(lesson(frame, logits)) for each in ("none", by))
        expected, found = (torch.autograd.grad(value, logits)[0] for value in (plain, weighted))
        first, second = confidence(by, frame)
        assert 0 < first < 1 and 0 < second < 1 and abs(first - second) > 1e-2
        torch.testing.assert_close(found[0], first * expected[0], rtol=1e-5, atol=1e-12)
        torch.testing.assert_close(found[1], second * expected[1], rtol=1e-5, atol=1e-12)
        assert expected[0].any() and expected[1].any()

    def test_an_empty_mask_is_zero_with_zero_gradient(self, frame, logits, kind, by):
        frame.mask_camera[:] = False
        value = term(kind, by)(lesson(frame, logits))
        assert value == 0
        assert not torch.autograd.grad(value, logits)[0].any()

    def test_needs_what_the_teacher_says_of_voxels(self, frame, logits, kind, by):
        columns = {"columns"} if kind is BevKL else set()
        assert Objective({"it": term(kind, by)}).asked("anyone") == {"voxels"} | columns


def test_it_is_worked_out_once(frame, logits):
    """Three terms of one region look at their voxels, and the teacher is measured once beside."""
    asked = lesson(frame, logits)
    calls, teacher = [], asked.teachers["stored"]
    voxels, kept = teacher.voxels, teacher.kept
    teacher.voxels = lambda index: calls.append(len(index)) or voxels(index)
    teacher.kept = lambda question, index: (question == "voxels" and calls.append(index)) or kept(question, index)
    for kind in (VoxelKL, BevKL, BalancedVoxelKL):
        term(kind, "entropy")(asked)
    assert len(calls) == 3
    term(VoxelKL, "agreement")(asked)
    assert len(calls) == 5
