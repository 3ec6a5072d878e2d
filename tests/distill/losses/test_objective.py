"""The objective: named terms with weights of their own, several teachers, and what is loaded for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from made import B, C, X, Y, Z, lesson, listening, taught_frame

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.losses.logits import BevKL, VoxelKL
from distill.losses.objective import Needs, Objective, Term
from distill.losses.supervised import CrossEntropy, LidarDepth


class Scaled(Term):
    """The mean logit times a weight that is learned."""

    def __init__(self, weight):
        super().__init__(weight)
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, lesson):
        return self.scale * lesson.prediction.voxel_logits_BXYZC.mean()


@pytest.fixture
def logits():
    return torch.randn(B, X, Y, Z, C, generator=torch.Generator().manual_seed(1)).requires_grad_()


def kd(kind, weight=1.0, teachers=None, mask="camera"):
    return kind(temperature=2.0, confidence="none", **listening(mask, weight, teachers=teachers))


def test_terms_come_raw_and_weighted_in_their_order(logits):
    objective = Objective({"b": Scaled(0.5), "a": CrossEntropy(2.0, "log", "camera", OCC3D_CLASSES)})
    found = objective(lesson(taught_frame(), logits))
    assert list(found) == ["b", "a"]
    for (raw, weighted), weight in zip(found.values(), (0.5, 2.0), strict=True):
        assert weighted == weight * raw


def test_listening_terms_warm_up_and_others_do_not(logits):
    terms = {"ce": CrossEntropy(2.0, "log", "camera", OCC3D_CLASSES), "kd": kd(VoxelKL, weight=3.0)}
    frame = taught_frame()
    for step, risen in ((0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (1000, 1.0)):
        found = Objective(terms, warmup_steps=4)(lesson(frame, logits, step=step))
        assert found["ce"][1] == 2.0 * found["ce"][0]
        assert found["kd"][1] == 3.0 * risen * found["kd"][0]
        assert found["kd"][0] > 0
    assert Objective(terms)(lesson(frame, logits, step=0))["kd"][1] == found["kd"][1]


def test_a_term_owns_weights_that_are_learned_and_saved(logits):
    objective = Objective({"scaled": Scaled(0.5)})
    assert [name for name, _ in objective.named_parameters()] == ["terms.scaled.scale"]
    objective(lesson(taught_frame(), logits))["scaled"][1].backward()
    torch.testing.assert_close(objective.terms["scaled"].scale.grad, 0.5 * logits.detach().mean())
    assert objective.state_dict().keys() == {"terms.scaled.scale"}


def test_what_is_needed_is_what_the_terms_need():
    assert not Objective({"ce": CrossEntropy(1.0, "log", "all", OCC3D_CLASSES)}).needs_depth
    assert Objective({"depth": LidarDepth(1.0)}).needs_depth
    assert Objective({"kd": kd(VoxelKL)}).asked("anyone") == {"voxels"}
    assert Objective({"kd": kd(BevKL)}).asked("anyone") == {"columns"}
    assert Objective({"kd": kd(BevKL, mask="occupied")}).asked("anyone") == {"columns", "voxels"}
    assert Objective({"kd": kd(BevKL, teachers=["first"])}).asked("second") == frozenset()
    assert Objective({"mine": Scaled(1.0)}).asked("anyone") == frozenset()


def test_two_teachers_add_up_by_their_weights(logits):
    frame = taught_frame()
    told = frame.teachers["stored"]
    other = replace(
        told,
        signals={**told.signals, "voxels": replace(told.signals["voxels"], codes=255 - told.signals["voxels"].codes)},
    )
    frame = replace(frame, teachers={"one": told, "two": other})
    alone = {
        name: Objective({"kd": kd(VoxelKL, teachers=[name])})(lesson(frame, logits))["kd"][0] for name in ["one", "two"]
    }
    assert alone["one"] != alone["two"]
    both = Objective({"kd": kd(VoxelKL)})(lesson(frame, logits, one=0.25, two=2.0))["kd"][0]
    torch.testing.assert_close(both, 0.25 * alone["one"] + 2.0 * alone["two"])


def test_a_term_that_listens_to_nobody_is_refused():
    listening = Objective({"kd": kd(VoxelKL, teachers=["stored", "other"])})
    with pytest.raises(InputError, match=r"kd listens to other, but there are stored"):
        listening.check_teachers(["stored"])
    listening.check_teachers(["stored", "other"])
    with pytest.raises(InputError, match="there is none"):
        Objective({"kd": kd(VoxelKL)}).check_teachers([])
    Objective({"ce": CrossEntropy(1.0, "log", "all", OCC3D_CLASSES)}).check_teachers([])


def test_gradient_norms_are_those_of_each_term_and_of_all_supervised_ones(logits):
    weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, C))
    terms = {
        "ce": CrossEntropy(2.0, "log", "camera", OCC3D_CLASSES),
        "mine": Scaled(0.5),
        "kd": kd(VoxelKL, weight=3.0),
    }
    objective = Objective(terms)
    found = objective(lesson(taught_frame(), weight * logits.detach()))
    weighted = {name: value for name, (_, value) in found.items()}
    norms = objective.gradient_norms(weighted, [weight])
    gradients = {name: torch.autograd.grad(value, weight, retain_graph=True)[0] for name, value in weighted.items()}
    assert norms.keys() == {"ce", "mine", "kd", "supervised"}
    for name, gradient in gradients.items():
        assert norms[name] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert norms["supervised"] == pytest.approx(float((gradients["ce"] + gradients["mine"]).norm()), rel=1e-5)


def test_what_several_terms_need_is_worked_out_once(logits):
    """And is the same for each as when it is alone."""
    frame = taught_frame()
    alone = {
        "voxel": Objective({"voxel": kd(VoxelKL, mask="occupied")})(lesson(frame, logits))["voxel"][0],
        "bev": Objective({"bev": kd(BevKL, mask="occupied")})(lesson(frame, logits))["bev"][0],
    }
    together = Objective({"voxel": kd(VoxelKL, mask="occupied"), "bev": kd(BevKL, mask="occupied")})
    calls = []
    asked = lesson(frame, logits)
    stored = asked.teachers["stored"]
    listened = stored.covered
    stored.covered = lambda index: calls.append(len(index)) or listened(index)
    for name, (raw, _) in together(asked).items():
        assert raw == alone[name]
    assert len(calls) == 2  # the region, and the columns of one of them


def test_needs_are_nothing_unless_said():
    assert Scaled(1.0).needs == Needs()
