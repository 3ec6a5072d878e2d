"""Proposals that a network takes from a teacher while it learns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_module
from torch import nn

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame
from distill.losses.objective import Objective
from distill.losses.supervised import CrossEntropy
from distill.networks.prediction import Occupancy
from student.learner import Learner, make_objective, open_teachers, proposals_of, questions

FREE, CAR, SHAPE = OCC3D_CLASSES.free, 4, (4, 4, 2)


class Teacher(nn.Module):
    """A provider who finds a car in one voxel of each frame, and has not modelled the columns at y = 0 and 1, x = 0."""

    changes, name, weight = False, "stored", 1.0
    free = FREE

    def __init__(self, taught):
        super().__init__()
        self.taught_B = torch.tensor(taught)
        self.found_BXYZ = torch.full((2, *SHAPE), FREE)
        self.found_BXYZ[:, 3, 2, 1] = CAR

    def before_step(self, network, step):
        pass

    def taught(self, frame, prediction=None):
        return self

    def voxels(self, index_V):
        return torch.eye(18)[self.found_BXYZ.flatten()[index_V]]

    def called(self, index_V):
        return self.found_BXYZ.flatten()[index_V]

    def covered(self, index_V):
        covered = torch.ones(2, *SHAPE, dtype=torch.bool)
        covered[:, :2, :2] = False
        return covered.flatten()[index_V]


@pytest.fixture
def frame():
    everywhere = torch.ones(2, *SHAPE, dtype=torch.bool)
    return Frame(
        token=["a", "b"],
        images=torch.zeros(2, 1, 3, 2, 2, dtype=torch.uint8),
        semantics=torch.full((2, *SHAPE), FREE, dtype=torch.uint8),
        mask_camera=everywhere,
        mask_lidar=everywhere,
        labelled=torch.tensor([True, True]),
    )


def test_blocks_are_occupied_free_or_unknown(frame):
    found = proposals_of(Teacher([True, False]), frame)
    assert found.shape == (2, 2, 2, 1)
    assert found[0, ..., 0].tolist() == [[255, 0], [0, 1]]
    assert (found[1] == 255).all()


class Recorder(nn.Module):
    """Keeps what it is given."""

    def __init__(self, proposals_of):
        super().__init__()
        self.proposals_of, self.bias = proposals_of, nn.Parameter(torch.zeros(18))

    def forward(self, frame):
        self.given = frame.proposals
        return Occupancy(self.bias.expand(2, *SHAPE, 18))


@pytest.mark.parametrize("follows", ["stored", None])
def test_the_network_is_given_those_of_the_teacher_it_names(frame, follows):
    network = Recorder(follows)
    objective = Objective({"ce": CrossEntropy(1.0, "log", "all", OCC3D_CLASSES)})
    teacher = Teacher([True, True])
    Learner(network, objective, [teacher], None)(frame, 0)
    if follows is None:
        assert network.given is None
    else:
        assert torch.equal(network.given, proposals_of(teacher, frame))


def configured(*overrides):
    with initialize_config_module("conf", version_base="1.3"):
        return compose("train", overrides=["student=monoocc", "kd=none", *overrides])


def test_its_store_is_read_for_that_even_where_no_term_listens():
    network = SimpleNamespace(depth_stride=None, proposes=True, proposals_of="stored")
    objective = make_objective(configured(), network)
    assert questions(objective, network, "stored") == {"voxels"}
    assert questions(objective, network, "second") == frozenset()
    assert questions(objective, SimpleNamespace(), "stored") == frozenset()


@pytest.mark.parametrize(
    ("name", "teachers", "said"),
    [
        ("mine", "stored", r"teacher=mine: there is no such teacher, but stored: add it to teachers"),
        ("ema", "ema", r"teacher=ema says nothing before the student does: name one with a store"),
    ],
)
def test_a_teacher_who_cannot_propose_is_named(name, teachers, said):
    config = configured(f"teachers={teachers}", "teachers.ema.measured_depth=false" if name == "ema" else "seed=0")
    network = nn.Linear(1, 1)
    network.proposals_of, network.proposes = name, True
    with pytest.raises(InputError, match=said):
        open_teachers(config, make_objective(config, network), network, [], [])
