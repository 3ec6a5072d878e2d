"""Heads at coarser resolutions: what they are told, what is trained, and what is mirrored."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame, Mirror
from distill.grids import VoxelGrid
from distill.losses.multi_scale import MultiScale
from distill.losses.objective import Lesson, Needs, Objective
from distill.losses.supervised import cross_entropy, geometric_scal, lovasz_softmax, semantic_scal
from distill.networks.prediction import FeatureMap, Occupancy
from kernels.pooled_labels import UNKNOWN, pooled_labels

B, C, FREE = 2, 6, OCC3D_CLASSES.free
GRID = VoxelGrid("even", "ego", (-4.0, -2.0, 0.0), 0.5, (16, 8, 8))
PARTS = {"ce_weight": 1.0, "lovasz_weight": 1.0, "scal_weight": 0.0}


@pytest.fixture
def frame():
    """Mostly free space, and half of it seen."""
    random = torch.Generator().manual_seed(0)
    semantics = torch.randint(0, 18, (B, *GRID.shape), dtype=torch.uint8, generator=random)
    semantics[torch.rand(semantics.shape, generator=random) < 0.8] = FREE
    return Frame(
        token=["a", "b"],
        semantics=semantics,
        mask_camera=torch.rand(semantics.shape, generator=random) < 0.5,
        mask_lidar=torch.ones_like(semantics, dtype=torch.bool),
        labelled=torch.tensor([True, True]),
    )


def term(scales=(2, 4), channels=C, mask="camera", **parts):
    torch.manual_seed(0)
    return MultiScale(
        1.0, scales, **{**PARTS, **parts}, balance="log", channels=channels, hidden_channels=5, mask=mask, grid=GRID,
        classes=OCC3D_CLASSES,
    )  # fmt: skip


@pytest.fixture
def bev():
    """On cells of two voxel columns."""
    return torch.randn(B, C, 8, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()


def lesson(frame, bev, stride=2):
    features = {"image": FeatureMap(bev, "image", 8), "bev": FeatureMap(bev, "grid", stride)}
    return Lesson(frame, Occupancy(torch.zeros(B, *GRID.shape, 18), features), {}, 0)


def test_each_scale_is_told_its_pooled_labels(frame, bev):
    built = term()
    labels = torch.where(frame.mask_camera, frame.semantics, UNKNOWN)
    weights_C = torch.from_numpy(OCC3D_CLASSES.weights("log"))
    expected = []
    for scale, features in ((2, bev), (4, F.avg_pool2d(bev, 2))):
        coarse = pooled_labels(labels, scale, FREE)
        logits = built.heads[str(scale)](features)
        assert logits.shape == (B, 16 // scale, 8 // scale, 8 // scale, 18)
        log_probs_VC, labels_V = logits[coarse != UNKNOWN].log_softmax(-1), coarse[coarse != UNKNOWN].long()
        expected.append(cross_entropy(log_probs_VC, labels_V, weights_C) + lovasz_softmax(log_probs_VC.exp(), labels_V))
    torch.testing.assert_close(built(lesson(frame, bev)), sum(expected) / 2)


def test_scal_may_stand_in_for_lovasz(frame, bev):
    built = term(scales=[8], ce_weight=0.0, lovasz_weight=0.0, scal_weight=0.5, mask="all")
    coarse_V = pooled_labels(frame.semantics, 8, FREE).flatten().long()
    probs_VC = built.heads["8"](F.avg_pool2d(bev, 4)).flatten(0, -2).softmax(-1)
    expected = 0.5 * (semantic_scal(probs_VC, coarse_V) + geometric_scal(probs_VC, coarse_V, FREE))
    torch.testing.assert_close(built(lesson(frame, bev)), expected)


def test_features_and_heads_are_trained_together(frame, bev):
    objective = Objective({"multi_scale": term()})
    _, weighted = objective(lesson(frame, bev))["multi_scale"]
    weighted.backward()
    assert bev.grad.flatten(2).any(-1).all()
    assert all(parameter.grad.any() for parameter in objective.parameters())
    assert {name.split(".")[3] for name in objective.state_dict()} == {"2", "4"}


def test_it_loads_nothing_of_its_own():
    assert term().needs == Needs()


@pytest.mark.parametrize("mirror", [Mirror(x=True), Mirror(y=True), Mirror(x=True, y=True)])
def test_labels_are_pooled_as_the_mirrored_frame_shows_them(frame, bev, mirror):
    """A head that knows no left and right says the same of the mirrored features."""
    built = term()
    for head in built.heads.values():
        weight = head.conv[0].weight
        weight.data = torch.where(torch.arange(9).view(3, 3) == 4, weight.data, 0)
    axes = [axis for axis, flips in ((2, mirror.x), (3, mirror.y)) if flips]
    expected = built(lesson(frame, bev))
    torch.testing.assert_close(built(lesson(frame.mirrored(mirror), bev.flip(axes))), expected)


def test_unlabelled_frames_and_empty_masks_count_for_nothing(frame, bev):
    frame.labelled[1] = False
    built = term().eval()  # so that frames do not meet in batch norm
    (gradient,) = torch.autograd.grad(built(lesson(frame, bev)), bev)
    assert gradient[0].any()
    assert not gradient[1].any()
    frame.mask_camera[:] = False
    value = built(lesson(frame, bev))
    assert value == 0
    assert not torch.autograd.grad(value, bev)[0].any()


def test_features_in_half_precision_are_widened(frame, bev):
    half = bev.detach().bfloat16()
    built = term()
    assert built(lesson(frame, half)) == built(lesson(frame, half.float()))


@pytest.mark.parametrize(
    ("given", "stride", "said"),
    [
        ({"channels": 7}, 2, "wants a feature map bev of 7 channels .*, the network has 6 channels at stride 2"),
        ({}, 4, "whose stride divides 2, the network has 6 channels at stride 4: set its channels or scales"),
    ],
)
def test_features_that_do_not_fit_are_named(frame, bev, given, stride, said):
    with pytest.raises(InputError, match=said):
        term(**given)(lesson(frame, bev, stride))


def test_a_network_without_bev_features_is_named(frame):
    without = Lesson(frame, Occupancy(torch.zeros(B, *GRID.shape, 18)), {}, 0)
    with pytest.raises(InputError, match=r"the network has no such map \(none\)"):
        term()(without)


def test_what_cannot_be_built_is_named():
    with pytest.raises(InputError, match="channels must be given"):
        term(channels=None)
    with pytest.raises(InputError, match=r"blocks of 16 \^ 3 voxels do not fill the grid even"):
        term(scales=[16])
