"""The conventions against plain versions of the scorers that made them, on the voxels themselves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.metrics.conventions import MONOOCC_16, OCC3D_17, SURROUNDOCC_16, conventions
from distill.metrics.counting import count_confusion

FREE = 17
# FlashOcc's published IoU per class, others to vegetation, and its mIoU with and without others (docs/formulas.md 3.2).
M0 = [
    6.21,
    39.56,
    11.27,
    36.31,
    43.96,
    16.25,
    14.74,
    16.89,
    15.76,
    28.56,
    30.91,
    78.16,
    37.52,
    47.42,
    51.35,
    36.79,
    31.42,
]
M1 = [
    6.74,
    37.65,
    10.26,
    39.55,
    44.36,
    14.88,
    13.40,
    15.79,
    15.38,
    27.44,
    31.73,
    78.82,
    37.98,
    48.70,
    52.50,
    37.89,
    32.24,
]


def confusion(prediction, semantics, mask, classes=OCC3D_CLASSES):
    volumes = [torch.from_numpy(np.asarray(a)) for a in (prediction, semantics, mask)]
    return count_confusion(*volumes, classes)[0]


@pytest.mark.parametrize(("iou", "miou_17", "miou_16"), [(M0, 31.946, None), (M1, 32.077, 33.661)])
def test_flashocc_tables(iou, miou_17, miou_16):
    """Each class has 10 000 voxels, the share `iou` of them found and the others called free."""
    confusion_CC = torch.zeros(18, 18, dtype=torch.int64)
    found_C = (100 * torch.tensor(iou)).round().long()
    confusion_CC[range(17), range(17)] = found_C
    confusion_CC[:17, FREE] = 10_000 - found_C
    score = OCC3D_17.score(confusion_CC)
    assert score.per_class_iou[:17].tolist() == pytest.approx(iou)
    assert score.miou == pytest.approx(miou_17, abs=5e-4)
    assert MONOOCC_16.score(confusion_CC).miou == pytest.approx(miou_16 or np.mean(iou[1:]), abs=5e-4)


def occ3d_scorer(prediction, semantics, mask):
    p, g = prediction[mask], semantics[mask]
    with np.errstate(invalid="ignore"):
        iou = [np.sum((p == c) & (g == c)) / np.float64(np.sum((p == c) | (g == c))) for c in range(17)]
    return np.nanmean(iou), np.sum((p != FREE) & (g != FREE)) / np.sum((p != FREE) | (g != FREE))


def monoocc_scorer(prediction, semantics, mask):
    # upstream adds 1e-5 to the union, which would show on this few voxels
    target, predicted = semantics.astype(int), prediction.astype(int)
    target[semantics == 0], target[~mask], target[target == FREE] = 255, 255, 0
    predicted[prediction == 0], predicted[prediction == FREE] = 99, 0  # something that MonoOcc cannot say; empty
    predicted[target == 255], target[target == 255] = 0, 0
    p, g = predicted, target
    iou = [np.sum((p == c) & (g == c)) / (np.sum((p == c) | (g == c)) + 1e-12) for c in range(1, 17)]
    return np.mean(iou), np.sum((p > 0) & (g > 0)) / np.sum((p > 0) | (g > 0))


def gaussianformer_scorer(prediction, semantics, mask):
    p, g = prediction[semantics != 0], semantics[semantics != 0]
    iou = []
    for c in range(1, 17):
        seen, correct, positive = np.sum(g == c), np.sum((g == c) & (p == c)), np.sum(p == c)
        iou.append(1.0 if seen == 0 else correct / (seen + positive - correct))
    return np.mean(iou), np.sum((p != FREE) & (g != FREE)) / np.sum((p != FREE) | (g != FREE))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), present=st.integers(2, 18), agree=st.floats(0, 1))
def test_each_convention_is_its_scorer(seed, present, agree):
    random = np.random.default_rng(seed)
    names = np.append(random.permutation(17)[: present - 1], FREE)
    semantics, other = (random.choice(names, (6, 5, 4)).astype(np.uint8) for _ in range(2))
    prediction = np.where(random.random(semantics.shape) < agree, semantics, other)
    mask = random.random(semantics.shape) < 0.7
    semantics[0, 0, 0], prediction[0, 0, 0], mask[0, 0, 0] = 1, 1, True  # nothing divides by zero
    everywhere = np.ones_like(mask)
    for convention, scorer, counted in (
        (OCC3D_17, occ3d_scorer, mask),
        (MONOOCC_16, monoocc_scorer, mask),
        (SURROUNDOCC_16, gaussianformer_scorer, everywhere),
    ):
        score = convention.score(confusion(prediction, semantics, counted, convention.classes))
        miou, geometric_iou = scorer(prediction.copy(), semantics.copy(), counted)
        assert score.miou == pytest.approx(100 * miou)
        assert score.geometric_iou == pytest.approx(100 * geometric_iou)


def test_labels_score_100_and_free_scores_0_on_what_is_present():
    semantics = np.full((4, 4, 2), FREE, np.uint8)
    semantics[0], semantics[1] = 4, 11
    mask = np.ones(semantics.shape, bool)
    perfect = OCC3D_17.score(confusion(semantics, semantics, mask))
    assert perfect.miou == perfect.geometric_iou == 100
    free = OCC3D_17.score(confusion(np.full_like(semantics, FREE), semantics, mask))
    assert free.miou == free.geometric_iou == 0
    assert free.per_class_iou[[4, 11]].eq(0).all() and free.per_class_iou.isnan().sum() == 15
    assert free.per_class_iou[FREE] == 50


def test_conventions_differ_on_the_same_voxels():
    semantics = np.array([0, 0, 4, 4, 17, 17], np.uint8)
    prediction = np.array([0, 4, 4, 0, 17, 0], np.uint8)
    matrix = confusion(prediction, semantics, np.ones(6, bool))
    assert OCC3D_17.score(matrix).miou == pytest.approx(100 * (1 / 4 + 1 / 3) / 2)
    assert MONOOCC_16.score(matrix).miou == pytest.approx(100 * (1 / 2) / 16)
    assert MONOOCC_16.score(matrix).per_class_iou[0].isnan()
    matrix = confusion(prediction, semantics, np.ones(6, bool), SURROUNDOCC_CLASSES)
    assert SURROUNDOCC_16.score(matrix).miou == pytest.approx(100 * (15 + 1 / 2) / 16)
    for convention in (MONOOCC_16, SURROUNDOCC_16):
        assert convention.score(matrix).occurring_miou == pytest.approx(50)
        assert convention.score(matrix).per_class_iou[10].isnan()


def test_a_class_that_is_predicted_where_no_label_has_it():
    """Cars are right, free voxels are taken for bus, and nothing has the other classes."""
    semantics = np.array([4, 4, 17, 17], np.uint8)
    prediction = np.array([4, 4, 3, 17], np.uint8)
    everywhere = np.ones(4, bool)
    matrix = confusion(prediction, semantics, everywhere)
    assert OCC3D_17.score(matrix).miou == 50  # 0 for bus, and the others are left out
    assert OCC3D_17.score(matrix).per_class_iou[3] == 0
    assert OCC3D_17.score(matrix).labelled_miou == 100
    assert MONOOCC_16.score(matrix).miou == 100 / 16  # 0 for bus and for the others
    matrix = confusion(prediction, semantics, everywhere, SURROUNDOCC_CLASSES)
    assert SURROUNDOCC_16.score(matrix).miou == 100  # 100 for bus and for the others
    assert SURROUNDOCC_16.score(matrix).occurring_miou == 50


@pytest.mark.parametrize("label", [18, 100, 255])
def test_a_label_beyond_the_class_set_is_not_counted_whatever_is_predicted_there(label):
    semantics = np.array([4, 17, label, label], np.uint8)
    prediction = np.array([4, 17, 4, 255], np.uint8)
    for classes in (OCC3D_CLASSES, SURROUNDOCC_CLASSES):
        matrix = confusion(prediction, semantics, np.ones(4, bool), classes)
        assert matrix.sum() == 2 and matrix[4, 4] == matrix[17, 17] == 1


def test_one_global_matrix_is_not_the_mean_of_keyframes():
    """A keyframe with 1 car voxel (missed) and one with 31 (found): 31 / 32 together, 50 on average."""
    one, many = np.full((2, 32), FREE, np.uint8)
    one[0], many[1:] = 4, 4
    mask = np.ones(32, bool)
    missed, found = confusion(np.full_like(one, FREE), one, mask), confusion(many, many, mask)
    assert OCC3D_17.score(missed + found).miou == pytest.approx(100 * 31 / 32)
    assert OCC3D_17.score(torch.stack([missed, found])).miou.tolist() == [0, 100]


def test_the_first_convention_of_a_class_set_is_its_own():
    assert conventions(OCC3D_CLASSES) == [OCC3D_17, MONOOCC_16]
    assert conventions(SURROUNDOCC_CLASSES) == [SURROUNDOCC_16]
    assert (OCC3D_17.name, SURROUNDOCC_16.name) == ("Occ3D-17", "SurroundOcc-16")


@pytest.mark.parametrize("convention", [OCC3D_17, MONOOCC_16, SURROUNDOCC_16])
def test_nothing_counted_gives_no_number(convention):
    score = convention.score(torch.zeros(2, 18, 18, dtype=torch.int64))
    assert all(numbers.isnan().all() for numbers in score)
