"""The student's own average as a teacher: upstream's schedule, whom it teaches, and what it answers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made import FREE, GRID, B, C, X, Y, Z, listening, taught_frame
from torch import nn

from distill.bev import bev_log_probs
from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Mirror, stack
from distill.losses.logits import VoxelKL
from distill.losses.objective import Lesson
from distill.networks.prediction import Occupancy
from distill.signals import TeacherPrediction
from distill.signals.seen import Seen
from distill.teaching import Pupil
from distill.teaching.ema import Ema, average, momentum_at, ramped

SETTINGS = {
    "default": {},
    "interval5": {"interval": 5, "warmup": 10},
    "nowarm": {"momentum": 0.99, "warmup": 0},
    "decay": {"momentum": 0.9, "warmup": 0, "milestones": [200, 350]},
}


class Bright(nn.Module):
    """Logits from how bright the images are, with statistics of its own; brighter by what the LiDAR measured."""

    depth_stride = 2

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.logits = nn.Parameter(torch.linspace(-1, 1, X * Y * Z * C).view(X, Y, Z, C))

    def forward(self, frame, measured=0.0):
        bright_B1 = frame.images.float().mean((1, 2, 3, 4)).unsqueeze(1) + measured
        return Occupancy(self.norm(bright_B1).view(-1, 1, 1, 1, 1) * self.logits)

    def with_measured_depth(self, frame):
        return self(frame, frame.depth.mean((1, 2, 3)).unsqueeze(1))


def make_ema(network: nn.Module, asked=("voxels",), unlabelled=("b" * 32,), **values) -> Ema:
    given = {"frames": "unlabelled", "measured_depth": False, "momentum": 0.999, "warmup": 100}
    given |= {"milestones": [], "decay": 0.1, "interval": 1, "ramp": 0, **values}
    pupil = Pupil(network, GRID, OCC3D_CLASSES, asked, (), (False, False), (), unlabelled)
    return Ema("ema", 1.0, **given, pupil=pupil)


def frame_of(teacher: Ema):
    """Two frames, of which the second has no label."""
    frame, random = taught_frame(), torch.Generator().manual_seed(3)
    return replace(
        frame,
        images=torch.randint(0, 256, frame.images.shape, dtype=torch.uint8, generator=random),
        depth=torch.rand(B, 1, 3, 4, generator=random),
        labelled=torch.tensor([True, False]),
        teachers={"ema": stack([teacher.told(token) for token in frame.token])},
    )


@pytest.fixture(scope="module")
def upstream(shared, inputs):
    """Upstream's numbers, and what they were made from."""
    golden = np.load(shared / "fixtures/signals/ema.npz")
    return golden, inputs.case_ema(int(golden["seed"]))


class TestSchedule:
    @pytest.mark.parametrize("setting", SETTINGS)
    def test_upstreams_501_steps(self, upstream, setting):
        golden, case = upstream
        student = nn.Linear(3, 1, bias=False).double()
        student.weight.data[0] = torch.tensor(case["teacher"])
        ema = make_ema(student, **SETTINGS[setting])
        found = []
        for step, weights in enumerate(case["student"]):
            student.weight.data[0] = torch.tensor(weights)
            ema.before_step(student, step)
            found.append(ema.network.weight.data[0].clone())
        np.testing.assert_allclose(torch.stack(found[::10]), golden[f"{setting}_teacher"], rtol=1e-9, atol=1e-14)

    @pytest.mark.parametrize("setting", SETTINGS)
    def test_upstreams_momentum(self, upstream, setting):
        golden, _ = upstream
        values = {"momentum": 0.999, "warmup": 100, "milestones": [], "interval": 1, **SETTINGS[setting]}
        found = [momentum_at(k, values["momentum"], values["warmup"], values["milestones"], 0.1) for k in range(501)]
        expected = golden[f"{setting}_momentum"]
        asked = np.arange(501) % values["interval"] == 0
        assert np.isnan(expected[~asked]).all()
        np.testing.assert_allclose(np.array(found)[asked], expected[asked], rtol=1e-14, atol=1e-15)

    def test_the_whole_state_is_averaged(self):
        """Batch-norm statistics like weights; how many batches there were is copied."""
        teacher, student = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
        for name, value in student.state_dict().items():
            value += 4 if name == "num_batches_tracked" else 8.0
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        average(teacher, student, 0.75)
        for name, value in teacher.state_dict().items():
            assert torch.equal(value, before[name] + (4 if name == "num_batches_tracked" else 2.0)), name

    def test_weights_are_paired_by_name_whatever_their_order(self):
        teacher, student = (nn.ModuleDict({name: nn.Linear(1, 1) for name in names}) for names in ("ab", "ba"))
        average(teacher, student, 0.0)
        assert all(torch.equal(value, student.state_dict()[name]) for name, value in teacher.state_dict().items())


class TestTeaching:
    def test_it_teaches_frames_without_labels_and_is_no_part_of_the_gradient(self):
        student = Bright()
        ema = make_ema(student)
        frame = frame_of(ema)
        prediction = student(frame)
        ema.before_step(student, 0)
        with torch.no_grad():
            ema.network.logits += 1  # else both say the same
        before = {name: value.clone() for name, value in ema.state_dict().items()}
        taught = ema.taught(frame, prediction)
        assert taught.taught_B.tolist() == [ema.holds(token) for token in frame.token] == [False, True]
        value = VoxelKL(temperature=2.0, confidence="none", **listening())(
            Lesson(frame, prediction, {"ema": taught}, step=0)
        )
        (gradient,) = torch.autograd.grad(value, prediction.voxel_logits_BXYZC)
        assert gradient[1].any()
        assert not gradient[0].any()
        assert not any(parameter.requires_grad for parameter in ema.parameters())
        assert all(torch.equal(value, before[name]) for name, value in ema.state_dict().items())

    def test_what_it_says_counts_more_from_step_to_step(self):
        """exp(-5), exp(-5/4), 1 and 1 of what it counts without a ramp."""
        student, values = Bright(), []
        ema = make_ema(student, ramp=4)
        frame = frame_of(ema)
        for step in (0, 2, 4, 9):
            ema.before_step(student, step)
            taught = ema.taught(frame, student.eval()(frame))
            values.append(taught.weight)
        np.testing.assert_allclose(values, [math.exp(-5), math.exp(-1.25), 1, 1], rtol=1e-12)
        assert ramped(0, 0) == 1

    def test_frames_all(self):
        assert all(make_ema(Bright(), frames="all").holds(token) for token in ("a" * 32, "b" * 32))

    def test_its_lift_alone_is_given_what_the_lidar_measured(self):
        student = Bright().eval()
        for measured_depth in (True, False):
            ema = make_ema(student, measured_depth=measured_depth)
            assert ema.needs_depth == measured_depth
            frame = frame_of(ema)
            index_V = torch.arange(B * X * Y * Z)
            said = ema.taught(frame, student(frame)).voxels(index_V)
            expected = (student.with_measured_depth(frame) if measured_depth else student(frame)).voxel_logits_BXYZC
            torch.testing.assert_close(said, expected.flatten(0, -2).log_softmax(-1))
        assert not torch.equal(student(frame).voxel_logits_BXYZC, student.with_measured_depth(frame).voxel_logits_BXYZC)

    def test_a_batch_that_it_does_not_teach_costs_nothing(self):
        student = Bright()
        ema = make_ema(student, unlabelled=())
        frame = frame_of(ema)
        ema.network.forward = None
        prediction = student(frame)
        taught = ema.taught(frame, prediction)
        value = VoxelKL(temperature=2.0, confidence="none", **listening())(
            Lesson(frame, prediction, {"ema": taught}, step=0)
        )
        assert value.item() == 0
        assert not torch.autograd.grad(value, prediction.voxel_logits_BXYZC)[0].any()


@pytest.mark.parametrize("mirror", [Mirror(), Mirror(x=True), Mirror(x=True, y=True)])
def test_answers_are_those_of_a_dump_of_it(mirror):
    """Of voxels, columns, and what cameras see through what it finds, in mirrored worlds, too."""
    student, random = Bright().eval(), torch.Generator().manual_seed(0)
    student.logits.data = torch.randn(X, Y, Z, C, generator=random)
    student.logits.data[..., FREE] += 4 * (torch.rand(X, Y, Z, generator=random) < 0.7)
    ema = make_ema(student, asked=("voxels", "columns", "seen"))
    frame = frame_of(ema).mirrored(mirror)
    prediction = student(frame)
    log_probs_BXYZC = prediction.voxel_logits_BXYZC.log_softmax(-1)
    taught = ema.taught(frame, prediction)
    index_V, index_K = torch.arange(B * X * Y * Z), torch.arange(B * X * Y)
    torch.testing.assert_close(taught.voxels(index_V), log_probs_BXYZC.flatten(0, -2))
    torch.testing.assert_close(taught.columns(index_K), bev_log_probs(log_probs_BXYZC, FREE).flatten(0, -2))
    assert taught.covered(index_V).all()
    seen = Seen(GRID, OCC3D_CLASSES.names).say(TeacherPrediction(log_probs_BXYZC.detach()), frame, FREE)
    assert np.array_equal(taught.seen(index_V).view(B, X, Y, Z), np.stack(seen))
    assert 0 < taught.seen(index_V).float().mean() < 1


class TestRefusals:
    def test_a_network_without_a_lift(self):
        with pytest.raises(InputError, match=r"Linear has no lift .* set teachers.ema.measured_depth=false"):
            make_ema(nn.Linear(1, 1), measured_depth=True)

    def test_a_question_that_no_network_answers(self):
        with pytest.raises(InputError, match="not for heights: let the terms that ask listen to other teachers"):
            make_ema(Bright(), asked=("voxels", "heights"))

    def test_no_keyframe_without_labels(self):
        digests = dict.fromkeys(["a", "c"], np.zeros(1))
        with pytest.raises(InputError, match=r"all 2 training keyframes have some: set teachers.ema.frames=all"):
            make_ema(Bright()).check(digests)
        make_ema(Bright(), frames="all").check(digests)
