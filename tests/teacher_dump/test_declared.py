"""Arrays of other people's, taken as they are declared: known answers, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.point_sets import VoxelRule
from distill.signals import PointKind
from teacher_dump.declared import Declared

CPU = torch.device("cpu")
NAMES = OCC3D_CLASSES.names
SHAPE = (200, 200, 16)
DENSE = {"kind": "logits", "axes": "XYZC", "grid": "occ3d", "frame": "ego", "classes": "occ3d"}
HARD = {**DENSE, "kind": "classes", "axes": "XYZ", "confidence": 0.9}
RULE = {"reach": 3.0, "threshold": 0.5, "most": 10, "power": 1.0}
LOGITS_XYZC = np.random.default_rng(0).normal(size=(*SHAPE, 18)).astype(np.float32)
LOG_PROBS_XYZC = torch.from_numpy(LOGITS_XYZC).log_softmax(-1)


def said(facts, **arrays):
    """Log-probabilities of the one keyframe of an answer."""
    prediction = Declared.of(facts, "here").prediction(arrays, CPU)
    (voxel_XYZC,) = prediction.voxel_log_probs_BXYZC
    return voxel_XYZC


@pytest.mark.parametrize("axes", ["XYZC", "CXYZ", "CZYX", "ZCXY"])
def test_axes_are_those_that_are_declared(axes):
    laid_out = LOGITS_XYZC.transpose(["XYZC".index(axis) for axis in axes])
    torch.testing.assert_close(said({**DENSE, "axes": axes}, voxels=laid_out), LOG_PROBS_XYZC)
    torch.testing.assert_close(said({**DENSE, "axes": axes}, voxels=laid_out[None]), LOG_PROBS_XYZC)


@pytest.mark.parametrize(
    ("kind", "values", "tolerance"),
    [
        ("logits", LOGITS_XYZC + 3, 1e-5),
        ("log_probs", LOG_PROBS_XYZC.numpy(), 0),
        ("probs", LOG_PROBS_XYZC.exp().numpy(), 1e-4),
        ("probs", LOG_PROBS_XYZC.exp().numpy().astype(np.float16), 0.05),
    ],
)
def test_numbers_are_of_the_kind_that_is_declared(kind, values, tolerance):
    torch.testing.assert_close(said({**DENSE, "kind": kind}, voxels=values), LOG_PROBS_XYZC, rtol=0, atol=tolerance)


def test_channels_of_another_order_are_brought_to_ours_and_absent_classes_are_impossible():
    theirs = [*NAMES[:0:-1]]  # free first, without others
    facts = {**DENSE, "classes": theirs}
    found = said(facts, voxels=LOGITS_XYZC[..., :0:-1].copy())
    assert torch.isneginf(found[..., 0]).all()
    torch.testing.assert_close(found[..., 1:], torch.from_numpy(LOGITS_XYZC[..., 1:]).log_softmax(-1))


def test_class_ids_get_the_confidence_that_is_stated():
    ids_XYZ = np.full(SHAPE, 16, np.uint8)  # free in OpenOcc, which has no others
    ids_XYZ[1, 2, 3] = 0
    openocc = [*NAMES[1:]]
    found = said({**HARD, "classes": openocc}, voxels=ids_XYZ)
    assert (found.argmax(-1) == 17).sum() == math.prod(SHAPE) - 1
    assert found[1, 2, 3].argmax() == NAMES.index("barrier")
    np.testing.assert_allclose(found[0, 0, 0].exp(), [*[0.1 / 17] * 17, 0.9], rtol=1e-6)


def test_of_sparse_answers_all_else_is_free():
    facts = {**HARD, "kind": "sparse", "axes": "ZYX"}
    found = said(facts, places=np.array([[3, 2, 1], [15, 199, 0]]), classes=np.array([4, 11], np.uint8)).argmax(-1)
    assert (found[1, 2, 3], found[0, 199, 15]) == (4, 11)
    assert (found != 17).sum() == 2
    nothing = said(facts, places=np.zeros((0, 3), int), classes=np.zeros(0, int))
    assert (nothing.argmax(-1) == 17).all()


def test_points_become_voxels_by_the_rule_and_stay_points():
    points_QRN = np.zeros((2, 1, 3 + 17), np.float32)
    points_QRN[0, 0, :3] = -39.8, -39.8, -0.8  # the first voxel
    points_QRN[0, 0, 3 + 4] = 0.75
    points_QRN[1, 0, :3] = 39.9, -39.9, 5.3
    points_QRN[1, 0, 3 + 2] = 0.25  # below the threshold
    facts = {**DENSE, "kind": "points", "axes": "XYZ", "points": {"count": 2, **RULE}}
    declared = Declared.of(facts, "here")
    assert declared.points == PointKind(2, VoxelRule(**RULE))
    prediction = declared.prediction({"points": points_QRN}, CPU)
    found_XYZC = prediction.voxel_log_probs_BXYZC[0]
    # odds 3 against even ones
    assert float(found_XYZC[0, 0, 0, 4] - found_XYZC[0, 0, 0, 17]) == pytest.approx(math.log(3), rel=1e-5)
    assert (found_XYZC.argmax(-1) != 17).sum() == 1
    np.testing.assert_array_equal(prediction.more["points"][0], points_QRN)


def test_coverage_follows_the_axes():
    covered = np.zeros(SHAPE[::-1], bool)
    covered[15, 199, 0] = True
    facts = {**HARD, "axes": "ZYX"}
    prediction = Declared.of(facts, "here").prediction(
        {"voxels": np.full(SHAPE[::-1], 17, np.uint8), "covered": covered}, CPU
    )
    assert prediction.covered_BXYZ.nonzero().tolist() == [[0, 0, 199, 15]]


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"kind": "scores"}, r"here: kind='scores': choose one of log_probs, probs"),
        ({"grid": None}, "grid=None: choose one of occ3d, surroundocc"),
        ({"frame": "lidar"}, "frame='lidar', but occ3d lies in the ego frame"),
        ({"axes": "XYZ"}, "axes='XYZ': name the axes of logits in their order, XYZC or"),
        ({"axes": ["X", "Y"]}, "axes="),
        ({"classes": None}, "classes=None: .* give occ3d or"),
        ({"classes": ["free", "tree"]}, "'tree' is none of them"),
        ({"classes": ["car", "bus"]}, "free space among them"),
        ({"classes": ["free", "free"]}, "each once"),
        ({"confidence": 0.9}, "confidence=0.9: logits have their own"),
        ({"kind": "classes", "axes": "XYZ"}, "class ids say nothing of it: state one"),
        ({**HARD, "confidence": 0.01}, "should be a probability above 1/18"),
        ({"kind": "points", "axes": "XYZ"}, "say how many there are"),
        ({"kind": "points", "axes": "XYZ", "points": {"count": 3}}, "give count, reach, threshold, most"),
        ({"points": {"count": 3}}, "logits have none"),
    ],
)
def test_what_cannot_be_declared(facts, told):
    with pytest.raises(InputError, match=told):
        Declared.of({**DENSE, **facts}, "here")


NAN = LOGITS_XYZC.copy()
NAN[5, 5, 5, 5] = np.nan


@pytest.mark.parametrize(
    ("facts", "arrays", "told"),
    [
        (DENSE, {"voxels": NAN}, "logits hold NaN or infinity"),
        (DENSE, {"voxels": LOGITS_XYZC[..., :17]}, r"has the shape \(200, 200, 16, 17\): declared are the axes XYZC"),
        (DENSE, {"voxels": LOGITS_XYZC.transpose(3, 0, 1, 2)}, r"has the shape \(18, 200, 200, 16\)"),
        (DENSE, {"voxels": LOGITS_XYZC.astype(np.int32)}, "logits are int32"),
        (DENSE, {}, "an answer of logits without voxels"),
        ({**DENSE, "kind": "probs"}, {"voxels": LOGITS_XYZC}, "declared are probabilities, but the least of them is -"),
        ({**DENSE, "kind": "probs"}, {"voxels": np.ones((*SHAPE, 18), np.float32)}, r"sum to 18 \.\. 18"),
        (HARD, {"voxels": np.full(SHAPE, 18)}, "class ids from 18 to 18, 18 are declared"),
        (HARD, {"voxels": np.full(SHAPE, 1.0)}, "class ids are float64"),
        (
            {**HARD, "kind": "sparse"},
            {"places": np.array([[0, 0, 16]]), "classes": np.array([1])},
            "outside of the grid of",
        ),
        ({**HARD, "kind": "sparse"}, {"places": np.zeros((2, 3)), "classes": np.zeros(2, int)}, "places are float64"),
        (
            {**DENSE, "kind": "points", "axes": "XYZ", "points": {"count": 3, **RULE}},
            {"points": np.full((1, 1, 20), 2, np.float32)},
            "are they logits",
        ),
        (
            {**DENSE, "kind": "points", "axes": "XYZ", "points": {"count": 3, **RULE}},
            {"points": np.zeros((1, 1, 21), np.float32)},
            r"give floating-point numbers \(Q, R, 20\)",
        ),
    ],
)
def test_what_is_not_as_declared(facts, arrays, told):
    with pytest.raises(InputError, match=told):
        Declared.of(facts, "here").prediction(arrays, CPU)
