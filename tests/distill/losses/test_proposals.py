"""What stage 1 of MonoOcc is told: by labels and by teachers, and what of it is left out."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_module

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame, Mirror
from distill.losses.objective import Lesson, Needs
from distill.losses.proposals import Proposals, TaughtProposals, proposal_loss
from distill.networks.prediction import Occupancy
from kernels.pooled_labels import UNKNOWN, pooled_labels
from student.learner import make_objective

B, SHAPE, FREE = 2, (16, 8, 8), OCC3D_CLASSES.free
SCALES = (2, 4, 8)
PARTS = {"free_weight": 0.3, "occupied_weight": 0.7, "decay": 0.9, "classes": OCC3D_CLASSES}


@pytest.fixture
def frame():
    random = torch.Generator().manual_seed(0)
    semantics = torch.randint(0, 18, (B, *SHAPE), dtype=torch.uint8, generator=random)
    semantics[torch.rand(semantics.shape, generator=random) < 0.9] = FREE
    return Frame(
        token=["a", "b"],
        semantics=semantics,
        mask_camera=torch.rand(semantics.shape, generator=random) < 0.5,
        mask_lidar=torch.ones_like(semantics, dtype=torch.bool),
        labelled=torch.tensor([True, True]),
    )


@pytest.fixture
def scores():
    random = torch.Generator().manual_seed(1)
    return {s: torch.randn(B, *(n // s for n in SHAPE), 2, generator=random).requires_grad_() for s in SCALES}


def lesson(frame, scores):
    return Lesson(frame, Occupancy(torch.zeros(B, *SHAPE, 18), proposals=scores), {}, 0)


class Teacher:
    """Is sure of a class in each voxel."""

    def __init__(self, found_BXYZ, taught=(True, True)):
        self.name, self.weight, self.found_K = "stored", 1.0, found_BXYZ.flatten().long()
        self.taught_B = torch.tensor(taught)

    def voxels(self, index_V):
        return torch.eye(18)[self.found_K[index_V]]

    def called(self, index_V):
        return self.voxels(index_V).argmax(-1)

    def covered(self, index_V):
        return torch.ones_like(index_V, dtype=torch.bool)


def by_labels(mask="camera"):
    return Proposals(weight=1.0, mask=mask, **PARTS)


def by_teacher(unlabelled="all"):
    return TaughtProposals(weight=1.0, teachers=None, mask="camera", unlabelled=unlabelled, **PARTS)


def listened(term, frame, scores, teacher):
    return term.listen(lesson(frame, scores), teacher)


@pytest.mark.parametrize("mask", ["camera", "all"])
def test_labels_are_pooled_from_the_full_resolution(frame, scores, mask):
    seen = frame.mask_camera if mask == "camera" else torch.ones_like(frame.mask_camera)
    labels = torch.where(seen, frame.semantics, UNKNOWN)
    coarse = {scale: pooled_labels(labels, scale, FREE) for scale in SCALES}
    value = by_labels(mask)(lesson(frame, scores))
    torch.testing.assert_close(value, proposal_loss(scores, coarse, FREE, (0.3, 0.7), 0.9))
    assert all(gradient.any() for gradient in torch.autograd.grad(value, [*scores.values()]))


def test_others_count_as_occupied(frame, scores):
    """Upstream takes them for empty space."""
    frame = replace(frame, semantics=torch.zeros_like(frame.semantics))
    sure = {scale: torch.tensor([-30.0, 30.0]).expand_as(value) for scale, value in scores.items()}
    assert by_labels()(lesson(frame, sure)) == 0


def test_mirrored_frames_mirror_the_targets(frame, scores):
    mirrored = {scale: value.flip((1, 2)) for scale, value in scores.items()}
    found = by_labels()(lesson(frame.mirrored(Mirror(x=True, y=True)), mirrored))
    torch.testing.assert_close(found, by_labels()(lesson(frame, scores)))


def test_unlabelled_frames_and_empty_masks_count_for_nothing(frame, scores):
    one = replace(frame, labelled=torch.tensor([True, False]))
    for gradient in torch.autograd.grad(by_labels()(lesson(one, scores)), [*scores.values()]):
        assert gradient[0].any() and not gradient[1].any()
    empty = replace(frame, mask_camera=torch.zeros_like(frame.mask_camera))
    value = by_labels()(lesson(empty, scores))
    assert value == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, [*scores.values()]))


def test_a_teacher_who_says_the_labels_teaches_what_they_do(frame, scores):
    value = listened(by_teacher(), frame, scores, Teacher(frame.semantics))
    torch.testing.assert_close(value, by_labels()(lesson(frame, scores)))


def test_a_teacher_speaks_of_frames_without_labels_of_all_voxels(frame, scores):
    unlabelled = replace(frame, labelled=torch.tensor([False, False]))
    value = listened(by_teacher(), unlabelled, scores, Teacher(frame.semantics))
    torch.testing.assert_close(value, by_labels("all")(lesson(frame, scores)))


def test_frames_that_nobody_teaches_count_for_nothing(frame, scores):
    value = listened(by_teacher(), frame, scores, Teacher(frame.semantics, (True, False)))
    for gradient in torch.autograd.grad(value, [*scores.values()]):
        assert gradient[0].any() and not gradient[1].any()
    silent = listened(by_teacher(), frame, scores, Teacher(frame.semantics, (False, False)))
    assert silent == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(silent, [*scores.values()]))


def test_nothing_is_loaded_but_what_the_teacher_says_of_voxels():
    assert by_labels().needs == Needs(proposals=True)
    assert by_teacher().needs == Needs(answers=frozenset({"voxels"}), hidden_unlabelled=True)
    assert by_teacher("seen").needs.answers_unlabelled == {"seen"}


def test_a_network_that_proposes_nothing_cannot_be_taught_to(frame):
    with pytest.raises(InputError, match="this network does not make: take student=monoocc, or another kd"):
        listened(by_teacher(), frame, {}, Teacher(frame.semantics))


@pytest.mark.parametrize(("proposes", "expected"), [(True, ["proposals", "ce", "lovasz"]), (False, ["ce", "lovasz"])])
def test_without_a_stage_1_its_term_is_left_out(proposes, expected):
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("train", overrides=["student=monoocc", "kd=none"])
    objective = make_objective(config, SimpleNamespace(depth_stride=None, proposes=proposes))
    assert [name for name, _ in objective.items()] == expected
