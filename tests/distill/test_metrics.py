import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

import distill.metrics
from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES, ClassSet
from distill.errors import InputError
from distill.metrics import Confusion, OccupancyScore

FREE = OCC3D_CLASSES.free
SHAPE = (4, 4, 2)
EVERYWHERE = np.ones(SHAPE, dtype=bool)


def volume(seed: int, classes: int = 18) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, SHAPE, dtype=np.uint8)


def count(*keyframes: tuple[np.ndarray, np.ndarray, np.ndarray], classes: ClassSet = OCC3D_CLASSES) -> Confusion:
    total = Confusion(classes)
    for keyframe in keyframes:
        total.update(*keyframe)
    return total


def test_a_perfect_prediction_scores_100():
    semantics = volume(0)
    result = count((semantics, semantics, EVERYWHERE)).score()
    assert result.miou == result.geometric_iou == 100.0


def test_a_free_prediction_scores_0_on_present_classes_and_skips_absent_ones():
    semantics = np.full(SHAPE, FREE, dtype=np.uint8)
    semantics[0] = 4
    result = count((np.full_like(semantics, FREE), semantics, EVERYWHERE)).score()
    assert result.miou == result.geometric_iou == 0.0
    assert result.per_class_iou[4] == 0.0
    assert np.isnan(result.per_class_iou[[0, 1, 16]]).all()
    assert result.per_class_iou[FREE] == pytest.approx(75.0)


def test_by_hand():
    """Car: 2 hits, 1 taken for truck, 1 for free, 1 free voxel taken for car: 2 / 5. Truck: no hit."""
    semantics = np.array([4, 4, 4, 4, 17, 17], dtype=np.uint8).reshape(1, 1, 6)
    prediction = np.array([4, 4, 10, 17, 4, 17], dtype=np.uint8).reshape(1, 1, 6)
    result = count((prediction, semantics, np.ones((1, 1, 6), dtype=bool))).score()
    assert result.per_class_iou[4] == pytest.approx(40.0)
    assert result.per_class_iou[10] == 0.0
    assert result.miou == pytest.approx(20.0)
    assert result.geometric_iou == pytest.approx(60.0)


def test_flashocc_m1():
    """FlashOCC M1: its per-class IoU averages to its mIoU; others counts, free does not (docs/formulas.md 3.2)."""
    percent = [6.74, 37.65, 10.26, 39.55, 44.36, 14.88, 13.40, 15.79, 15.38, 27.44, 31.73, 78.82, 37.98, 48.70]
    percent += [52.50, 37.89, 32.24]
    semantics = np.repeat(np.arange(17, dtype=np.uint8), 10_000)
    hit = np.arange(10_000) < np.round(100 * np.array(percent))[:, None]
    prediction = np.where(hit.ravel(), semantics, FREE).astype(np.uint8)
    result = count((prediction, semantics, np.ones(170_000, dtype=bool))).score()
    assert result.per_class_iou[:17] == pytest.approx(percent)
    assert result.miou == pytest.approx(32.077, abs=5e-4)
    assert result.per_class_iou[1:17].mean() == pytest.approx(33.661, abs=5e-4)


def test_one_global_matrix_is_not_the_mean_of_keyframes():
    """A keyframe with 1 car voxel (missed) and one with 31 (found): 31 / 32 together, 50 on average."""
    one = np.full(SHAPE, FREE, dtype=np.uint8)
    one[0, 0, 0] = 4
    many = np.where(one == 4, FREE, 4).astype(np.uint8)
    missed = (np.full_like(one, FREE), one, EVERYWHERE)
    found = (many, many, EVERYWHERE)
    assert count(missed, found).score().miou == pytest.approx(100 * 31 / 32)
    assert (count(missed).score().miou + count(found).score().miou) / 2 == 50.0


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_voxels_outside_the_mask_do_not_count_and_order_does_not_matter(seed):
    mask = np.random.default_rng(seed).random(SHAPE) < 0.5
    semantics, prediction = volume(seed), volume(seed + 1)
    changed = np.where(mask, prediction, volume(seed + 2))
    other = (volume(seed + 3), volume(seed + 4), EVERYWHERE)
    first = count((prediction, semantics, mask), other)
    second = count(other, (changed, semantics, mask))
    assert np.array_equal(first.counts_CC, second.counts_CC)
    assert first.counts_CC.sum() == mask.sum() + EVERYWHERE.sum()


def test_unknown_labels_do_not_count():
    semantics = volume(0)
    semantics[0] = 255
    assert count((volume(1), semantics, EVERYWHERE)).counts_CC.sum() == 24


def test_a_prediction_of_another_class_set_is_refused():
    with pytest.raises(InputError, match="class 18"):
        count((np.full(SHAPE, 18, dtype=np.uint8), volume(0), EVERYWHERE))


@pytest.mark.parametrize("classes", [OCC3D_CLASSES, SURROUNDOCC_CLASSES])
def test_without_keyframes_there_is_no_number(classes):
    result = Confusion(classes).score()
    assert np.isnan([result.miou, result.occurring_miou, result.geometric_iou]).all()


def test_the_torchmetrics_metric_says_the_same():
    keyframes = [(volume(i), volume(i + 10), volume(i + 20, 2).astype(bool)) for i in range(3)]
    confusion, metric = count(*keyframes), OccupancyScore(OCC3D_CLASSES)
    for keyframe in keyframes:
        metric.update(*keyframe)
    found, expected = metric.compute(), confusion.score()
    assert torch.equal(found["confusion"], confusion.counts_CC)
    assert found["confusion"].sum() == sum(mask.sum() for _, _, mask in keyframes)
    assert (found["Occ3D-17 mIoU"], found["Occ3D-17 geometric IoU"]) == (expected.miou, expected.geometric_iou)


def test_what_the_package_names_is_there_and_nothing_else():
    for name in distill.metrics.__all__:
        assert getattr(distill.metrics, name) is not None
    with pytest.raises(AttributeError, match="no attribute Nonsense"):
        distill.metrics.Nonsense  # noqa: B018


def test_dump_and_training_start_without_torchmetrics():
    """It takes longer to import than torch; timm, which brings torchvision, waits for a network."""
    programs = "import sys, student.train, teacher_dump.main; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", programs], capture_output=True, text=True, check=True)
    modules = ended.stdout.split()
    assert "distill.metrics" in modules
    assert not {"torchmetrics", "torchvision", "timm", "nuscenes", "matplotlib"} & set(modules)


# --- SurroundOcc-16


def test_surroundocc_by_hand():
    """Labels of noise do not count, predictions of noise are occupied but no hit, and noise is not averaged."""
    semantics = np.array([4, 4, 4, 10, 17, 17, 0, 0], dtype=np.uint8)
    prediction = np.array([4, 0, 17, 10, 0, 17, 4, 17], dtype=np.uint8)
    result = count((prediction, semantics, np.ones(8, dtype=bool)), classes=SURROUNDOCC_CLASSES).score()
    assert result.per_class_iou[4] == pytest.approx(100 / 3)
    assert result.per_class_iou[10] == 100.0
    assert np.isnan(result.per_class_iou[0])
    assert result.occurring_miou == pytest.approx((100 / 3 + 100) / 2)
    assert result.miou == pytest.approx((100 / 3 + 100 + 14 * 100) / 16)  # 14 classes have no labels
    assert result.geometric_iou == pytest.approx(60.0)
    assert result.per_class_iou[17] == pytest.approx(100 / 3)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_surroundocc_is_the_mean_of_16_sums_over_the_split(seed):
    """Against docs/formulas.md 3.1, where every class has labels."""
    rng = np.random.default_rng(seed)
    semantics = [np.concatenate([np.arange(18), rng.integers(0, 18, 400)]).astype(np.uint8) for _ in range(3)]
    prediction = [
        np.where(rng.random(418) < 0.6, labels, rng.integers(0, 18, 418)).astype(np.uint8) for labels in semantics
    ]
    pairs = [(p[s != 0], s[s != 0]) for p, s in zip(prediction, semantics, strict=True)]

    def iou(predicted, labelled):
        hits = sum((predicted(p) & labelled(s)).sum() for p, s in pairs)
        return hits / (sum(predicted(p).sum() + labelled(s).sum() for p, s in pairs) - hits)

    per_class = [iou(lambda p, c=c: p == c, lambda s, c=c: s == c) for c in range(1, 17)]
    everywhere = np.ones(418, dtype=bool)
    keyframes = [(p, s, everywhere) for p, s in zip(prediction, semantics, strict=True)]
    result = count(*keyframes, classes=SURROUNDOCC_CLASSES).score()
    assert result.miou == result.occurring_miou == pytest.approx(100 * np.mean(per_class))
    assert result.geometric_iou == pytest.approx(100 * iou(lambda p: p != 17, lambda s: s != 17))
    assert count(*keyframes).score().miou != pytest.approx(result.miou)


def _score_on_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mine = count(*[(volume(i), volume(i + 10), EVERYWHERE) for i in range(5)[rank::2]])
    mine.all_reduce()
    np.save(folder / f"{rank}.npy", np.append(mine.counts_CC, mine.keyframes))
    dist.destroy_process_group()


def test_two_processes_count_what_one_does(tmp_path):
    single = count(*[(volume(i), volume(i + 10), EVERYWHERE) for i in range(5)])
    mp.start_processes(_score_on_rank, (tmp_path,), nprocs=2, start_method="fork")
    for rank in range(2):
        assert np.array_equal(np.load(tmp_path / f"{rank}.npy"), np.append(single.counts_CC, 5))
