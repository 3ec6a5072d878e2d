"""OPUS as a teacher: what it says, and that it looks at each image once."""

from __future__ import annotations

import opus
import pytest
import torch
from hydra import compose, initialize_config_module

from distill.classes import OCC3D_CLASSES
from distill.errors import InputError
from distill.frame import Frame
from distill.grids import OCC3D
from distill.signals import signal_class
from teacher_dump.border import ask, open_teacher

SMALL = ("queries=20", "samples=2", "refined=[1,2,4]")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    network = opus.small(history=2)
    torch.nn.init.constant_(network.decoder.layers[-1].cls_branch[-1].bias, 0.1)  # it finds something
    return opus.saved(tmp_path_factory.mktemp("weights") / "opus.pth", network)


def opened(file, *given):
    network = [f"teacher.network.{each}" for each in SMALL]
    with initialize_config_module("conf", version_base="1.3"):
        config = compose(
            "dump", ["teacher=opus_t", f"teacher.checkpoint={file}", "teacher.inputs.history=2", *network, *given]
        )
    return open_teacher(config.teacher)


def asked(teacher, frame):
    return ask(teacher, frame, OCC3D_CLASSES, torch.device("cpu"))


def test_it_says_what_its_network_says(file):
    teacher, frame = opened(file), opus.batch(2, history=2)
    found = asked(teacher, frame)
    with torch.inference_mode():
        expected = teacher.network(frame)
    torch.testing.assert_close(
        found.voxel_log_probs_BXYZC, expected.voxel_logits_BXYZC.log_softmax(-1), atol=1e-4, rtol=1e-4
    )
    assert (found.semantics(17) != 17).any()
    signal = signal_class("points").of(teacher, OCC3D, OCC3D_CLASSES.names)
    assert signal.kind.count == 80 and signal.kind.rule is teacher.network.rule
    said = signal.say(found, frame, 17)
    for index, item in enumerate(said):
        signal.check(item, Frame(token=["t"]), found.voxel_log_probs_BXYZC[index], None)


def test_images_are_looked_at_once_and_nothing_else_comes_of_it(file, monkeypatch):
    teacher, looks = opened(file), []
    plain = teacher.network.image_features
    monkeypatch.setattr(teacher.network, "image_features", lambda *given: looks.append(1) or plain(*given))
    for number in range(6):
        looks.clear()
        cached = asked(teacher, opus.batch(1, history=2, first=number))
        assert len(looks) == (3 if number == 0 else 1)
        assert len(teacher.answer.memory.looked_at[-1]) == 3
        alone = asked(opened(file), opus.batch(1, history=2, first=number))
        assert torch.equal(cached.voxel_log_probs_BXYZC, alone.voxel_log_probs_BXYZC)
        assert torch.equal(cached.more["points"][0], alone.more["points"][0])


def test_a_batch_says_what_its_keyframes_say(file):
    together, alone = opened(file), opened(file)
    found = asked(together, opus.batch(2, history=2))
    for number in range(2):
        expected = asked(alone, opus.batch(1, history=2, first=number))
        torch.testing.assert_close(found.more["points"][number], expected.more["points"][0])


def test_its_inputs_are_those_of_the_student(file):
    inputs = opened(file).inputs
    assert inputs == {"image_size": [256, 704], "lidar": False, "history": 2, "bicubic": True, "depth_stride": None}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("teacher.network.queries=30", r"init_points is \(20, 3\) instead of \(30, 3\)"),
        ("teacher.checkpoint=/nowhere.pth", "no such file: give the .pth that upstream published for this size"),
        ("teacher.inputs.history=7", "parameter_generator.weight is"),
        ("grid=surroundocc", "the configuration says"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(file, given, said):
    with pytest.raises(Exception, match=said) as caught:
        opened(file, given)
    cause = caught.value if isinstance(caught.value, InputError) else caught.value.__cause__
    assert isinstance(cause, InputError) and "\n" not in str(cause)
