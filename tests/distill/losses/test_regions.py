"""Where terms listen on frames without labels: to what cameras see there, to what they see as a rule, or everywhere."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from made import FREE, GRID, B, C, X, Y, Z, lesson, listening, taught_frame

from distill.classes import OCC3D_CLASSES
from distill.frame import Frame, Mirror, Told
from distill.losses.logits import BevKL, VoxelKL
from distill.losses.objective import Objective
from distill.losses.regions import taught_voxels
from distill.losses.supervised import CrossEntropy
from distill.signals import TeacherPrediction
from distill.signals.bev import BevProbs
from distill.signals.seen import Seen, SeenVoxels
from distill.signals.voxels import LOG_PROBS, VoxelCodes

SHAPE = (B, X, Y, Z)
CAR = OCC3D_CLASSES.names.index("car")


def with_seen(frame, seen_BXYZ):
    stored = frame.teachers["stored"]
    told = replace(stored, signals={**stored.signals, "seen": SeenVoxels(seen=seen_BXYZ)})
    return replace(frame, teachers={"stored": told})


@pytest.fixture
def frame():
    """The second of two frames has no label; what is seen of both is told."""
    random = torch.Generator().manual_seed(7)
    frame = taught_frame()
    frame.labelled[1] = False
    frame.semantics[1] = FREE
    return with_seen(frame, torch.rand(SHAPE, generator=random) < 0.5)


def region(frame, mask="camera", unlabelled="seen"):
    """As a mask, bool (B, X, Y, Z)."""
    asked = lesson(frame, torch.zeros(*SHAPE, C))
    index_V = taught_voxels(asked, asked.teachers["stored"], mask, unlabelled, OCC3D_CLASSES)
    assert torch.equal(index_V, index_V.unique())
    found = torch.zeros(SHAPE, dtype=torch.bool)
    found.view(-1)[index_V] = True
    return found


def seen_of(frame):
    return frame.teachers["stored"].signals["seen"].seen


@pytest.mark.parametrize("mask", ["camera", "lidar", "all"])
def test_each_frame_has_the_region_of_its_kind(frame, mask):
    labelled = {"camera": frame.mask_camera[0], "lidar": frame.mask_lidar[0], "all": torch.ones(X, Y, Z).bool()}[mask]
    others = {"seen": seen_of(frame)[1], "prior": frame.mask_camera[1], "all": torch.ones(X, Y, Z).bool()}
    for unlabelled, expected in others.items():
        found = region(frame, mask, unlabelled)
        assert torch.equal(found[0], labelled)
        assert torch.equal(found[1], expected)


def test_occupied_voxels_are_looked_for_among_those(frame):
    called = lesson(frame, torch.zeros(*SHAPE, C)).teachers["stored"].voxels(torch.arange(B * X * Y * Z)).argmax(-1)
    found = region(frame, "occupied")
    assert torch.equal(found[1], seen_of(frame)[1] & (called.view(SHAPE)[1] != FREE))


def test_what_is_not_covered_or_not_taught_is_not_seen_either(frame):
    frame.teachers["stored"].covered[1, 0] = False
    assert not region(frame)[1, 0].any() and region(frame)[1].any()
    frame.teachers["stored"].taught[1] = False
    assert not region(frame)[1].any()


def test_a_teacher_of_labelled_frames_alone_is_not_asked(frame):
    """An old store, which does not know; frames without labels that it does not teach do not matter."""
    silent = taught_frame()
    assert torch.equal(region(silent), silent.mask_camera)
    silent.labelled[1] = silent.teachers["stored"].taught[1] = False
    assert torch.equal(region(silent)[0], silent.mask_camera[0])
    assert not region(silent)[1].any()


def test_the_question_is_asked_about_frames_without_labels_alone():
    terms = {name: VoxelKL(2.0, "none", **listening(unlabelled=name)) for name in ("seen", "prior", "all")}
    for name, term in terms.items():
        objective = Objective({"kd": term})
        assert objective.asked("stored") == {"voxels"}
        assert objective.asked_unlabelled("stored") == ({"seen"} if name == "seen" else frozenset())
        assert objective.needs_prior == (name == "prior")
    named = VoxelKL(2.0, "none", **listening(unlabelled="seen", teachers=["first"]))
    assert Objective({"kd": named}).asked_unlabelled("second") == frozenset()


def test_the_prior_of_frames_without_labels_teaches_no_label(frame):
    logits = torch.zeros(*SHAPE, C, requires_grad=True)
    CrossEntropy(1.0, "log", "camera", OCC3D_CLASSES)(lesson(frame, logits)).backward()
    assert frame.mask_camera[1].any()
    assert logits.grad[0].any() and not logits.grad[1].any()


@pytest.mark.parametrize("unlabelled", ["seen", "prior"])
@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_flip_then_look_is_look_then_flip(frame, unlabelled, flips):
    axes = [axis + 1 for axis, flip in enumerate(flips) if flip]
    mirrored = region(frame.mirrored(Mirror(*flips)), unlabelled=unlabelled)
    assert torch.equal(mirrored, region(frame, unlabelled=unlabelled).flip(axes))
    assert not torch.equal(mirrored[1], region(frame, unlabelled=unlabelled)[1])


@pytest.mark.parametrize("kind", [VoxelKL, BevKL])
def test_a_wall_is_taught_and_what_is_behind_it_is_not(kind):
    """A frame without labels, of which a teacher says that there is a wall, and a camera looks at it from before."""
    semantics = torch.full((1, X, Y, Z), FREE)
    semantics[:, 2] = CAR
    sure = F.one_hot(semantics, C).float()
    # in the middle of the side of the grid, looking along x
    pose = torch.tensor([[0, 0, 1, -2], [-1, 0, 0, -0.75], [0, -1, 0, 3], [0, 0, 0, 1]]).float()
    intrinsics = torch.tensor([[24.0, 0, 24], [0, 24, 24], [0, 0, 1]])
    frame = Frame(
        token=["a" * 32],
        images=torch.zeros(1, 1, 3, 48, 48),
        intrinsics=intrinsics.view(1, 1, 3, 3),
        cam2ego=pose.view(1, 1, 4, 4),
        semantics=torch.full((1, X, Y, Z), FREE, dtype=torch.uint8),
        mask_camera=torch.zeros(1, X, Y, Z, dtype=torch.bool),
        labelled=torch.tensor([False]),
    )
    (seen,) = Seen(GRID, OCC3D_CLASSES.names).say(TeacherPrediction((0.9 * sure + 0.1 / C).log()), frame, FREE)
    bev = sure.amax(3)
    bev[..., FREE] *= (semantics == FREE).all(-1)
    told = Told(
        taught=torch.tensor([True]),
        covered=torch.ones(1, X, Y, Z, dtype=torch.bool),
        signals={
            "voxels": VoxelCodes(codes=(200 * (1 - sure)).byte(), table=torch.from_numpy(LOG_PROBS)[None]),
            "bev": BevProbs(probs=0.9 * bev + 0.1 / C),
            "seen": SeenVoxels(seen=torch.from_numpy(seen)[None]),
        },
    )
    logits = torch.randn(1, X, Y, Z, C, generator=torch.Generator().manual_seed(0)).requires_grad_()
    term = kind(2.0, "none", **listening(unlabelled="seen"))
    term(lesson(replace(frame, teachers={"stored": told}), logits)).backward()
    learnt = logits.grad.abs().sum(-1)[0]
    assert learnt[2].all()
    assert not learnt[3].any()
    assert learnt[:2].any()
