import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.classes import OCC3D_CLASSES, SURROUNDOCC_CLASSES
from distill.errors import InputError
from distill.metrics.calibration import Calibration

FREE, CAR = 17, 4


def plain_ece(confidences, right, bins):
    """Percent, voxel by voxel."""
    members = [[] for _ in range(bins)]
    for confidence, correct in zip(confidences, right, strict=True):
        b = next(b for b in range(bins) if confidence <= (b + 1) / bins)
        members[b].append((confidence, correct))
    gaps = [abs(sum(c for _, c in m) - sum(p for p, _ in m)) for m in members if m]
    return 100 * sum(gaps) / len(confidences) if confidences else float("nan")


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), bins=st.integers(1, 20), classes=st.sampled_from([OCC3D_CLASSES, SURROUNDOCC_CLASSES])
)
def test_matches_a_plain_implementation(seed, bins, classes):
    random = np.random.default_rng(seed)
    metric, voxels = Calibration(classes, bins), []
    for _ in range(2):
        sharpness = random.choice([0.2, 3.0])
        probabilities = random.dirichlet(np.full(18, 0.05 * sharpness), (4, 3, 2)).astype(np.float32)
        semantics = random.choice([0, 3, CAR, FREE, 255], (4, 3, 2)).astype(np.uint8)
        mask = random.random(semantics.shape) < 0.8
        metric.update(probabilities, semantics, mask)
        for p, s, m in zip(probabilities.reshape(-1, 18), semantics.flat, mask.flat, strict=True):
            if m and s < 18 and s != classes.ignored:
                voxels.append((float(p.max()), p.argmax() == s, p.argmax()))
    result = metric.compute()
    groups = {"ECE": voxels, "ECE occupied": [voxel for voxel in voxels if voxel[2] != FREE]}
    for name, group in groups.items():
        expected = plain_ece([v[0] for v in group], [v[1] for v in group], bins)
        assert result[name] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    for c in range(18):
        group = [voxel for voxel in voxels if voxel[2] == c]
        expected = plain_ece([v[0] for v in group], [v[1] for v in group], bins)
        assert result["ECE per class"][c] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert result["reliability voxels"].sum() == len(voxels)
    assert result["reliability voxels occupied"].sum() == len(groups["ECE occupied"])


def keyframe(confidence, right, voxels=100):
    """`voxels` predicted as car with one confidence, of which `right` are car."""
    probabilities = np.full((voxels, 1, 1, 18), (1 - confidence) / 17)
    probabilities[..., CAR] = confidence
    semantics = np.full((voxels, 1, 1), FREE, np.uint8)
    semantics[:right] = CAR
    return probabilities, semantics, np.ones(semantics.shape, bool)


def test_by_hand():
    metric = Calibration(OCC3D_CLASSES, 10)
    metric.update(*keyframe(0.75, 75))
    assert metric.compute()["ECE"] == pytest.approx(0, abs=1e-6)
    metric.update(*keyframe(0.95, 45))
    result = metric.compute()
    assert result["ECE"] == pytest.approx(25)  # half of the voxels are 50 % off
    assert result["reliability accuracy"][[7, 9]].tolist() == pytest.approx([75, 45])
    assert result["reliability confidence"][[7, 9]].tolist() == pytest.approx([75, 95])
    assert result["reliability voxels"].tolist() == [0, 0, 0, 0, 0, 0, 0, 100, 0, 100]
    assert result["reliability accuracy"][:7].isnan().all()
    assert result["ECE per class"][CAR] == pytest.approx(25) and result["ECE per class"][FREE].isnan()


def test_a_confidence_of_one_is_in_the_last_bin_and_an_edge_in_the_bin_below():
    metric = Calibration(OCC3D_CLASSES, 4)
    for confidence in (1.0, 0.75, 0.5):
        metric.update(*keyframe(confidence, 10, voxels=10))
    assert metric.compute()["reliability voxels"].tolist() == [0, 10, 10, 10]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    probabilities, semantics, mask = keyframe(0.75, 75)
    metric = Calibration(OCC3D_CLASSES, 10)
    metric.update(torch.from_numpy(probabilities).to(dtype), semantics, mask)
    assert metric.compute()["ECE"] == pytest.approx(0, abs=1e-6)


def test_what_is_no_probability_is_refused_where_it_is_counted():
    probabilities, semantics, mask = keyframe(0.75, 75)
    metric = Calibration(OCC3D_CLASSES, 10)
    for wrong in (np.log(probabilities), 2 * probabilities, np.full_like(probabilities, np.nan)):
        with pytest.raises(InputError, match="100 of 100 voxels hold no probabilities"):
            metric.update(wrong, semantics, mask)
        metric.update(wrong, semantics, ~mask)
    with pytest.raises(InputError, match="18 classes"):
        metric.update(probabilities[..., :17], semantics, mask)
    assert metric.voxels_CB.sum() == 0
