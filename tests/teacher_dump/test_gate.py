import numpy as np
import pytest

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.errors import InputError
from teacher_dump.gate import Gate

LABELS = np.array([4, 4, 10, 17, 0, 0], dtype=np.uint8)
EVERYWHERE = np.ones(6, dtype=bool)


def street(free):
    """uint8 (20, 20, 10): a road with cars and trees; `free` is the id of all else."""
    scene = np.full((20, 20, 10), free, dtype=np.uint8)
    scene[..., 0], scene[5:8, 5:8, 1:3], scene[15:, :, 1:6] = 11, 4, 16
    return scene


COVERED, NOWHERE = np.ones((20, 20, 10), dtype=bool), np.zeros((20, 20, 10), dtype=bool)


@pytest.mark.parametrize("classes", [OCC3D_CLASSES, SURROUNDOCC_CLASSES])
@pytest.mark.parametrize("free", [0, 10])
def test_a_teacher_that_numbers_its_classes_otherwise_is_recognised(classes, free):
    gate = Gate(0.0, 20, classes)
    gate.check_classes("abc", street(17), COVERED, NOWHERE)
    with pytest.raises(InputError, match=rf"sample abc: .* are class {free} .* here it is 17: .*Nothing was written"):
        gate.check_classes("abc", street(free), COVERED, NOWHERE)


def test_what_the_label_calls_free_gives_it_away_where_the_whole_does_not():
    """A teacher that has modelled little: half of it is free even under wrong ids."""
    gate, said = Gate(0.0, 20, OCC3D_CLASSES), street(17)
    label_free = said == 17
    said[label_free & (np.arange(10) < 5)] = 16
    gate.check_classes("abc", said, COVERED, NOWHERE)
    gate.check_classes("abc", said, COVERED, label_free)
    with pytest.raises(
        InputError, match=r"100% of the voxels that cameras see and the label calls free are class 16 \("
    ):
        gate.check_classes("abc", said, COVERED, label_free & (np.arange(10) < 5))


def test_what_is_not_covered_says_nothing_about_the_classes():
    gate, said = Gate(0.0, 20, OCC3D_CLASSES), street(0)
    gate.check_classes("abc", said, NOWHERE, COVERED)
    # where it has modelled something it says many things, none of them most of the time
    said[:, :, 5:] = np.arange(1000).reshape(20, 10, 5).repeat(2, 1) % 18
    gate.check_classes("abc", said, COVERED & (np.arange(10) > 4), COVERED)


def test_noise_may_be_dumped():
    """With gate.min_miou=0, to try the rest out."""
    noise = np.random.default_rng(0).integers(0, 18, (20, 20, 10)).astype(np.uint8)
    Gate(0.0, 20, OCC3D_CLASSES).check_classes("abc", noise, COVERED, COVERED)


def test_the_verdict_says_whether_there_was_one():
    gate, good = Gate(10.0, 2, OCC3D_CLASSES), LABELS.copy()
    assert "none of them has a label" in gate.verdict()
    gate.judge(np.full(6, 17, dtype=np.uint8), LABELS, EVERYWHERE)
    assert "mIoU 0.00 " in gate.verdict()
    assert "on the 1 labelled ones, below: too few to be judged by gate.min_miou=10.0 (gate.after=2)" in gate.verdict()
    gate.judge(good, LABELS, EVERYWHERE)
    gate.judge(good, LABELS, EVERYWHERE)
    assert "on the 3 labelled ones, judged on the first 2" in gate.verdict()


def test_a_teacher_that_finds_nothing_is_said_even_without_labels():
    gate, empty = Gate(10.0, 2, OCC3D_CLASSES), np.full((20, 20, 10), 17, dtype=np.uint8)
    gate.check_classes("abc", street(17), COVERED, NOWHERE)
    assert "suspicious" not in gate.verdict()
    for _ in range(99):  # 918 of the voxels of a street are not free
        gate.check_classes("abc", empty, COVERED, NOWHERE)
    assert gate.verdict().endswith("; suspicious: it calls 99.77% of the voxels free")


def test_labels_that_say_nothing_cannot_judge():
    gate = Gate(0.0, 1, OCC3D_CLASSES)
    with pytest.raises(InputError, match="check their mask_camera"):
        gate.judge(LABELS, LABELS, ~EVERYWHERE)


def test_the_class_set_says_what_is_judged():
    """A teacher that is wrong on voxels labelled 0 alone: others in Occ3D, noise that nobody scores in SurroundOcc."""
    prediction = np.where(LABELS == 0, 4, LABELS).astype(np.uint8)
    good, weak = Gate(99.0, 1, SURROUNDOCC_CLASSES), Gate(99.0, 1, OCC3D_CLASSES)
    good.judge(prediction, LABELS, EVERYWHERE)
    assert (good.labelled, good.miou) == (1, 100.0)
    with pytest.raises(
        InputError,
        match=r"mIoU \(Occ3D-17, classes that occur\) on its first 1 labelled samples, less than gate.min_miou=99",
    ):
        weak.judge(prediction, LABELS, EVERYWHERE)


def test_a_weak_teacher_is_stopped_after_its_trial_and_not_before():
    gate = Gate(10.0, 3, SURROUNDOCC_CLASSES)
    nothing = np.full(6, 17, dtype=np.uint8)
    for _ in range(2):
        gate.judge(nothing, LABELS, EVERYWHERE)
    assert gate.confusion.score().miou > 80  # most classes have no labels
    with pytest.raises(InputError, match=r"scores 0\.00 mIoU \(SurroundOcc-16, "):
        gate.judge(nothing, LABELS, EVERYWHERE)
