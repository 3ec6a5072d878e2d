"""What is taken from a teacher of a user's own, and what is refused with a line that helps."""

from __future__ import annotations

import dataclasses
import inspect
import sys

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame
from distill.gaussians import Gaussians
from distill.grids import OCC3D, SURROUNDOCC, VoxelGrid
from distill.nuscenes.frames import FrameDataset
from teacher_dump.border import ask, open_teacher, place
from teacher_dump.teachers import TeacherPrediction

GRID = VoxelGrid("tiny", "ego", (-2.0, -2.0, 1.0), 0.5, (6, 5, 4))
TOKENS = ["a" * 32, "b" * 32]
CPU = torch.device("cpu")
LOGITS = torch.randn(2, 6, 5, 4, 18, generator=torch.Generator().manual_seed(0)) * 3
LOG_PROBS = LOGITS.log_softmax(-1)


class Mine:
    grid, inputs, checkpoint_sha256 = GRID, {}, ""

    def __init__(self, answer):
        self.answer = answer

    def predict(self, batch):
        return self.answer(batch)


def say(*prediction):
    """What comes of a teacher that says this."""
    return ask(Mine(lambda batch: TeacherPrediction(*prediction)), Frame(token=TOKENS), OCC3D_CLASSES, CPU)


@pytest.mark.parametrize(
    ("said", "tolerance"),
    [
        (LOG_PROBS, 0),
        (LOG_PROBS.half(), 2**-8),
        (LOG_PROBS.bfloat16(), 2**-5),
        (LOGITS.double().log_softmax(-1), 1e-6),
        (LOG_PROBS.clone().requires_grad_(), 0),
        (LOG_PROBS.permute(0, 4, 1, 2, 3).contiguous().permute(0, 2, 3, 4, 1), 0),
    ],
    ids=["float32", "float16", "bfloat16", "float64", "gradients", "other strides"],
)
def test_what_is_meant_beyond_doubt_is_taken(said, tolerance):
    voxel_BXYZC = say(said).voxel_log_probs_BXYZC
    assert (voxel_BXYZC.dtype, voxel_BXYZC.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(voxel_BXYZC, LOG_PROBS, rtol=tolerance, atol=tolerance)
    voxel_BXYZC.numpy()


def test_certainty_is_a_log_probability():
    certain = torch.nn.functional.one_hot(LOGITS.argmax(-1), 18).float().log()
    assert torch.equal(say(certain).voxel_log_probs_BXYZC, certain)


def with_nan():
    broken = LOG_PROBS.clone()
    broken[1, 2, 3, 1, 4] = torch.nan
    return broken


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (LOG_PROBS.numpy(), r"is no torch\.Tensor but a ndarray: torch\.from_numpy"),
        (None, r"is no torch\.Tensor but a NoneType: give one"),
        (LOG_PROBS.argmax(-1), r"is int64, so class ids .*one_hot\(ids, 18\)"),
        (LOG_PROBS.argmax(-1).to(torch.uint8), "is uint8, so class ids"),
        (LOG_PROBS > -1, "is bool"),
        (
            LOG_PROBS.permute(0, 4, 1, 2, 3),
            r"shape \(2, 18, 6, 5, 4\), .* BCXYZ\? Then take \.permute\(0, 2, 3, 4, 1\)",
        ),
        (LOG_PROBS.permute(0, 3, 2, 1, 4), r"are its axes BZYXC\? Then take \.permute\(0, 3, 2, 1, 4\)"),
        (LOG_PROBS.permute(0, 4, 3, 2, 1), r"are its axes BCZYX\? Then take \.permute\(0, 4, 3, 2, 1\)"),
        (LOG_PROBS.permute(1, 2, 3, 0, 4), r"are its axes XYZBC\? Then take \.permute\(3, 0, 1, 2, 4\)"),
        (LOGITS[..., :17].log_softmax(-1), r"17 instead of 18 along C; .*-inf"),
        (LOG_PROBS[0], r"the axis B is missing: take \.unsqueeze\(0\)"),
        (LOG_PROBS[..., 0, :], r"shape \(2, 6, 5, 18\), not \(2, 6, 5, 4, 18\): give the axes B, X, Y, Z, C"),
        (LOGITS, r"240 of 240 voxels .* are they logits\? Then take \.log_softmax\(-1\)"),
        (LOGITS - 20, "are they logits"),
        (LOGITS * 100, r"sum to .* inf and not to 1: are they logits"),
        (torch.full_like(LOGITS, -torch.inf), "240 of 240 voxels hold a probability of 0 .* let covered_BXYZ be False"),
        (LOGITS.softmax(-1), r"hold probabilities, not their logarithms: take \.log\(\)"),
        (LOGITS.sigmoid().log(), "not to 1"),
        (with_nan(), "1 of 240 voxels hold NaN or infinity"),
    ],
)
def test_other_voxels_are_refused_with_the_likely_fix(said, expected):
    with pytest.raises(InputError, match=expected) as raised:
        say(said)
    assert str(raised.value).startswith(f"Mine.predict, keyframe {', '.join(TOKENS)}: ")


def test_the_fix_makes_it_right():
    """On a grid whose sides tell x from y: what is suggested turns what was found into what is wanted."""
    for order in ((0, 4, 1, 2, 3), (4, 3, 2, 1, 0), (1, 0, 2, 3, 4), (2, 0, 4, 1, 3)):
        wrong = LOG_PROBS.permute(order)
        with pytest.raises(InputError) as raised:
            say(wrong)
        fix = str(raised.value).rpartition(".permute(")[2].rstrip(")")
        assert torch.equal(wrong.permute(*map(int, fix.split(","))), LOG_PROBS)


def test_what_is_not_covered_is_not_looked_at():
    covered = torch.ones(2, 6, 5, 4, dtype=torch.bool)
    covered[1, 2, 3, 1] = False
    voxel_BXYZC, covered_BXYZ, *_ = say(with_nan(), covered)
    assert torch.equal(covered_BXYZ, covered)
    torch.testing.assert_close(voxel_BXYZC[1, 2, 3, 1].exp(), torch.full((18,), 1 / 18))
    assert torch.equal(voxel_BXYZC[covered], LOG_PROBS[covered])


@pytest.mark.parametrize(
    ("covered", "expected"),
    [
        (np.ones((2, 6, 5, 4), bool), "covered_BXYZ is no .* ndarray"),
        (torch.ones(2, 6, 5, 4), "covered_BXYZ is float32: give bool"),
        (torch.ones(2, 6, 5, 4, dtype=torch.uint8), "covered_BXYZ is uint8: give bool"),
        (
            torch.ones(2, 4, 5, 6, dtype=torch.bool),
            r"covered_BXYZ has the shape .* BZYX\? Then take \.permute\(0, 3, 2, 1\)",
        ),
        (torch.ones(6, 5, 4, dtype=torch.bool), "the axis B is missing"),
        (torch.arange(2).view(2, 1, 1, 1).expand(2, 6, 5, 4) > 0, "False everywhere: .* teaches nothing"),
    ],
)
def test_other_coverage_is_refused(covered, expected):
    with pytest.raises(InputError, match=expected):
        say(LOG_PROBS, covered)


def gaussians(count=3, **changed):
    tensors = {
        "means_G3": torch.zeros(count, 3, dtype=torch.float64),
        "scales_G3": torch.ones(count, 3),
        "rotations_G4": torch.ones(count, 4) / 2,
        "opacities_G": torch.ones(count).requires_grad_(),
        "semantics_GS": torch.full((count, 18), 1 / 18),
    }
    return Gaussians(**tensors | changed, form="probabilistic", reach=4.0, det="stable", space=SURROUNDOCC)


def test_gaussians_are_brought_into_form():
    said = say(LOG_PROBS, None, [gaussians(3), gaussians(2)]).gaussians
    for told, count in zip(said, (3, 2), strict=True):
        tensors = [value for value in vars(told).values() if isinstance(value, torch.Tensor)]
        assert {len(value) for value in tensors} == {count}
        assert {value.dtype for value in tensors} == {torch.float32}
        assert not any(value.requires_grad for value in tensors)
        assert (told.form, told.reach, told.det) == ("probabilistic", 4.0, "stable")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([gaussians()], "gaussians holds 1 of them for 2 keyframes"),
        (gaussians(), r"must be a list of distill\.gaussians\.Gaussians"),
        ([gaussians(), None], "must be a list"),
        ([gaussians(), gaussians(scales_G3=torch.ones(3))], r"gaussians\.scales_G3 has the shape \(3,\), not \(3, 3\)"),
        (
            [gaussians(), gaussians(rotations_G4=torch.ones(4, 3))],
            r"rotations_G4 .*are its axes 4G\? Then take \.permute\(1, 0\)",
        ),
        ([gaussians(), gaussians(semantics_GS=torch.ones(3, 17))], "17 instead of 18 along S"),
        ([gaussians(), gaussians(opacities_G=np.ones(3))], "opacities_G is no .* ndarray"),
        ([gaussians(), gaussians(opacities_G=torch.ones(2))], r"opacities_G has the shape \(2,\), not \(3,\)"),
    ],
)
def test_other_gaussians_are_refused(said, expected):
    with pytest.raises(InputError, match=expected):
        say(LOG_PROBS, None, said)


@pytest.mark.parametrize("said", [LOG_PROBS, None, {"voxel_log_probs_BXYZC": LOG_PROBS}, (LOG_PROBS, None, None)])
def test_what_is_no_prediction_is_refused(said):
    with pytest.raises(InputError, match=rf"Mine\.predict returns a {type(said).__name__}: .*TeacherPrediction"):
        ask(Mine(lambda batch: said), Frame(token=TOKENS), OCC3D_CLASSES, CPU)


def test_an_error_of_the_teachers_own_keeps_its_traceback_and_names_the_keyframe():
    def fail(batch):
        return {}["image"]

    with pytest.raises(KeyError) as raised:
        ask(Mine(fail), Frame(token=TOKENS), OCC3D_CLASSES, CPU)
    assert raised.traceback[-1].name == "fail"
    assert raised.value.__notes__ == [f"raised by Mine.predict, keyframe {', '.join(TOKENS)}"]


def test_a_teacher_may_replace_what_it_is_given():
    def greedy(batch):
        batch = dataclasses.replace(batch, images=batch["images"] / 255)
        return TeacherPrediction(LOG_PROBS.masked_fill(batch.images.sum() != 2 / 255, 1.0))

    frame = Frame(token=TOKENS, images=torch.ones(2, dtype=torch.uint8))
    ask(Mine(greedy), frame, OCC3D_CLASSES, CPU)
    assert frame.images.dtype == torch.uint8


def test_a_teacher_may_change_what_it_is_given():
    """In place: labels and picture are of the keyframe, not of what the teacher made of it."""

    def greedy(batch):
        batch["images"].zero_()
        batch["points"][0].zero_()
        batch["token"].clear()
        return TeacherPrediction(LOG_PROBS)

    frame = Frame(token=list(TOKENS), images=torch.ones(2), points=[torch.ones(3, 4)])
    ask(Mine(greedy), frame, OCC3D_CLASSES, CPU)
    assert frame.token == TOKENS
    assert frame.images.all()
    assert frame.points[0].all()


def test_a_teacher_may_answer_in_the_same_memory_again():
    """Writers still compress one answer while the next is computed."""
    voxels, covered = LOG_PROBS.clone(), torch.ones(2, 6, 5, 4, dtype=torch.bool)
    spoken = gaussians(means_G3=torch.ones(3, 3))
    heights, weights = torch.ones(2, 6, 5), [np.ones(3), torch.ones(3, requires_grad=True)]
    plain, masked = say(voxels), say(voxels, covered, [spoken] * 2, {"heights": heights, "weights": weights})
    for memory in (voxels, covered, spoken.means_G3, heights, weights[1].detach()):
        memory.zero_()
    weights[0][:] = 0
    assert all(item.all() for items in masked.more.values() for item in items)
    assert not masked.more["weights"][1].requires_grad
    assert torch.equal(plain.voxel_log_probs_BXYZC, LOG_PROBS)
    assert torch.equal(masked.voxel_log_probs_BXYZC, LOG_PROBS)
    assert masked.covered_BXYZ.all()
    assert masked.gaussians[0].means_G3.all()


def test_a_teacher_must_come_back_from_its_move():
    class Forgetful(Mine):
        def to(self, device):
            self.device = device

    with pytest.raises(InputError, match=r"Forgetful\.to returns a NoneType: let it return the teacher itself"):
        place(Forgetful(None), CPU)


SOURCE = """
import numpy as np
from distill.grids import OCC3D

class Base:
    inputs = {"image_size": [64, 160], "lidar": False, "depth_stride": None}
    checkpoint_sha256 = ""
    grid = OCC3D
    def to(self, device): return self
    def predict(self, batch): ...

class Named(Base):
    def __init__(self, name, kind="any"): self.told = (name, kind)

class Nameless(Base):
    def __init__(self, kind): self.told = kind

class Bare(Base): ...

class Anything(Base):
    def __init__(self, **told): self.told = told

class Mute(Base):
    predict = checkpoint_sha256 = property(lambda self: self.absent)

class Flat(Base):
    grid = (200, 200, 16)

class Failing(Base):
    def __init__(self): self.told = 1 / 0

class Numpy(Base):
    inputs = {"image_size": np.array([64, 160]), "lidar": np.bool_(True), "depth_stride": np.int64(16)}

class Changed(Base):
    def __init__(self, inputs):
        inputs = dict(inputs)
        self.inputs = {key: value for key, value in {**Base.inputs, **inputs}.items() if value != "absent"}

def make(kind): return Nameless(kind)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a module `beside_me` in it, which nothing else makes importable."""
    (tmp_path / "beside_me.py").write_text(SOURCE)
    (tmp_path / "wrong.py").write_text("import nothing_of_this_name")
    (tmp_path / "worse.py").write_text("import torch; torch.nothing_of_this_name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    sys.modules.pop("beside_me", None)


def open_it(target, **arguments):
    config = OmegaConf.create({"teacher": {"name": "mine", "_target_": target, **arguments}})
    OmegaConf.set_struct(config, True)
    return open_teacher(config.teacher)


def test_a_class_beside_the_user_is_found_and_told_its_name_if_it_asks(folder):
    assert open_it("beside_me.Named").told == ("mine", "any")
    assert open_it("beside_me.Named", kind=3).told == ("mine", 3)
    assert open_it("beside_me.Nameless", kind=3).told == 3
    assert open_it("beside_me.make", kind=3).told == 3
    assert open_it("beside_me.Anything", kind=3).told == {"kind": 3}
    assert open_it("beside_me.Bare").grid == OCC3D


def test_values_of_the_rest_of_the_configuration_reach_the_teacher(folder):
    config = OmegaConf.create(
        {"seed": 7, "teacher": {"name": "mine", "_target_": "beside_me.Nameless", "kind": "${seed}-${teacher.name}"}}
    )
    assert open_teacher(config.teacher).told == "7-mine"
    assert config.teacher.name == "mine"


@pytest.mark.parametrize(
    ("target", "arguments", "expected"),
    [
        ("beside_me.Nobody", {}, r"beside_me \(.*beside_me\.py\) has no Nobody"),
        ("beside_me.Bare.nobody", {}, "has no attribute 'nobody'"),
        ("beside_you.Bare", {}, "there is no module beside_you"),
        ("distill.nothing.Bare", {}, "distill .* has no nothing"),
        ("beside_me", {}, "Expected a callable target"),
        ("beside_me..Bare", {}, "invalid dotstring"),
        ("beside_me.Nameless", {}, r"missing a required argument: 'kind'; .*\+teacher\.ARGUMENT=VALUE"),
        ("beside_me.Nameless", {"knd": 3}, "missing a required argument: 'kind'"),
        ("beside_me.Bare", {"kind": 3}, "too many positional|unexpected keyword argument 'kind'"),
        ("beside_me.Mute", {}, "makes a Mute without checkpoint_sha256, predict"),
        ("beside_me.Flat", {}, "its grid is a tuple"),
        (
            "beside_me.Changed",
            {"inputs": {"radar": True}},
            "ask for 'radar', .*image_size, lidar, depth_stride, bicubic, calibration, history only",
        ),
        ("beside_me.Changed", {"inputs": {"lidar": "absent"}}, "lack 'lidar': True or False"),
        ("beside_me.Changed", {"inputs": {"lidar": 1}}, "lidar=1: let it be True or False"),
        ("beside_me.Changed", {"inputs": {"image_size": 64}}, r"image_size=64: let it be \[H, W\]"),
        ("beside_me.Changed", {"inputs": {"image_size": [64, 160, 3]}}, "image_size="),
        ("beside_me.Changed", {"inputs": {"image_size": [64, 0]}}, "image_size="),
        ("beside_me.Changed", {"inputs": {"image_size": [64.0, 160.0]}}, "image_size="),
        ("beside_me.Changed", {"inputs": {"history": False}}, "history=False: let it be a number of earlier"),
        ("beside_me.Changed", {"inputs": {"depth_stride": 0}}, "depth_stride=0: let it be pixels per cell, or None"),
    ],
)
def test_what_is_no_teacher_is_refused_by_name(folder, target, arguments, expected):
    with pytest.raises(InputError, match=expected) as raised:
        open_it(target, **arguments)
    assert str(raised.value).startswith(f"teacher._target_={target}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("beside_me.Failing", "division by zero"),
        ("wrong.A", "nothing_of_this_name"),
        ("worse.A", "nothing_of_this_name"),
    ],
)
def test_errors_in_the_users_code_are_left_to_the_user(folder, target, expected):
    with pytest.raises(Exception, match=expected) as raised:
        open_it(target)
    assert not isinstance(raised.value, InputError)


def test_all_that_may_be_asked_of_a_sample(folder):
    asked = {"image_size": [8, 16], "lidar": True, "depth_stride": 8, "bicubic": True, "history": 0}
    assert open_it("beside_me.Changed", inputs=asked).inputs == asked
    assert open_it("beside_me.Numpy").inputs["lidar"]
    assert set(asked) <= inspect.signature(FrameDataset).parameters.keys()


def test_what_else_a_teacher_knows_goes_by_names():
    with pytest.raises(InputError, match=r"keyframe a.*: more is a list: give a dict, name of a signal -> "):
        say(LOG_PROBS, None, None, [1, 2])
