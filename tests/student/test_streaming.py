"""A student that looks back, where it is scored and saved: a demo world through which the car drives."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from workshop import SMALL_STUDENT

from distill.checkpoint import export, load_checkpoint, save_training_state
from distill.classes import OCC3D_CLASSES
from distill.frame import stack
from distill.grids import OCC3D
from distill.metrics import Confusion
from distill.networks.temporal import warped
from distill.nuscenes.frames import FrameDataset
from distill.nuscenes.index import load_index
from distill.nuscenes.labels import Occ3DLabels
from student.evaluation.scorecard import ScenePoses, Scorecard
from student.evaluation.sources import CheckpointSource
from student.scoring import score_network
from teacher_dump.teachers.network import NetworkTeacher

CPU = torch.device("cpu")
LOOKS_BACK = ("student=demo_2f", "trainer.init=null")
STATIC = [OCC3D_CLASSES.names.index(name) for name in ("manmade", "vegetation")]


@pytest.fixture(scope="module")
def demo(workshop):
    """The index of three scenes of two keyframes."""
    return load_index(workshop.folder / "data/demo", "v1.0-demo", workshop.folder / "cache")


@pytest.fixture(scope="module")
def labels(demo):
    return Occ3DLabels(demo.root / "gts")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Of a network with random weights, such that it sees all kinds of things everywhere."""
    with initialize_config_module("conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides=[*SMALL_STUDENT, *LOOKS_BACK]), resolve=True)
    torch.manual_seed(0)
    network = instantiate(config["student"]["network"])
    nn.init.zeros_(network.head.logits.bias)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # else next to nothing passes through
            nn.init.uniform_(module.running_var, 0.01, 0.1)
    weights = network.state_dict()
    facts = {"epoch": 1, "step": 1, "code": "", "teachers": {}, "scores": {}, "data": {}, "files": {}}
    path = tmp_path_factory.mktemp("run") / "last.pt"
    save_training_state(path, {"config": config, "network": weights, "ema": weights, **facts})
    return path


def frames_of(keyframes, source, labels):
    return DataLoader(source.dataset(keyframes, labels), batch_size=1, collate_fn=stack)


def test_what_stands_still_lies_where_it_lay(demo, labels):
    """Houses and trees of a past keyframe's labels, in the present: to a cell by its motion, and not without it."""
    found = {name: torch.zeros(2) for name in ("moved", "left", "moved back")}
    frames = FrameDataset(demo.keyframes("all"), (64, 160), None, False, labels, None, 0, history=1)
    alone = {frame.token: frame for frame in frames}
    for frame in frames:
        (past,) = frame.past
        if past.token != frame.token:
            motion = torch.from_numpy(past.ego2present)[None]
            assert motion[0, :2, 3].norm() > 1  # the car drives
            then, now = (columns(alone[token]) for token in (past.token, frame.token))
            for name, way in zip(found, (motion, torch.eye(4)[None], torch.linalg.inv(motion)), strict=True):
                found[name] += found_again(then, now, way)
    assert found["moved"][1] > 500
    share = {name: float(again / standing) for name, (again, standing) in found.items()}
    assert share["moved"] > 0.97 and share["left"] < 0.75 and share["moved back"] < 0.6, share


def columns(frame):
    """Of a label, (1, 2, X, Y): where a house or a tree stands, and where the LiDAR observed anything."""
    stands_XY = (np.isin(frame.semantics, STATIC) & frame.mask_lidar).any(-1)
    return torch.from_numpy(np.stack([stands_XY, frame.mask_lidar.any(-1)])).float()[None]


def found_again(then, now, motion):
    """How many cells something stood in that are observed in the present: with it in them or beside, and all."""
    moved, known = warped(then, motion, OCC3D)
    stands = (moved[0, 0] > 0.5) & (moved[0, 1] > 0.99) & (known[0, 0] > 0) & (now[0, 1] > 0)
    near = F.max_pool2d(now[:, :1], 3, 1, 1)[0, 0] > 0
    return torch.tensor([(near & stands).sum(), stands.sum()])


def test_a_checkpoint_is_scored_as_its_network_answers_with_one_new_frame_a_step(demo, labels, checkpoint, monkeypatch):
    """Before the scenes begin, and from one to the other; and flicker finds the pairs."""
    source = CheckpointSource("student", load_checkpoint(str(checkpoint), "ema"), [], CPU)
    with initialize_config_module("conf", version_base="1.3"):
        card = Scorecard(OCC3D, OCC3D_CLASSES, compose("eval").metrics, ScenePoses(demo, OCC3D), CPU, True)
    keyframes, answers = demo.keyframes("all"), []
    looked = Mock(wraps=source.network.lifted)
    monkeypatch.setattr(source.network, "lifted", looked)
    for keyframe, frame in zip(keyframes, frames_of(keyframes, source, labels), strict=True):
        (prediction,) = source.predict(frame)
        answers.append(prediction.log_probs_XYZC)
        card.update(prediction, frame.semantics[0], frame.mask_camera[0], keyframe)
    assert looked.call_count == len(keyframes)
    metrics = card.compute()["metrics"]
    assert 0 < metrics["flicker"] < 100 and metrics["flicker pairs"] == 3 and metrics["flicker unpaired"] == 0
    shuffled = [4, 1, 5, 0, 2, 3]
    with torch.inference_mode():
        for place, frame in zip(
            shuffled, frames_of(demo.select([keyframes.tokens[i] for i in shuffled]), source, labels), strict=True
        ):
            expected = source.network(frame).voxel_logits_BXYZC[0].log_softmax(-1)
            assert torch.equal(answers[place], expected)
            assert torch.equal(source.predict(frame)[0].log_probs_XYZC, expected)


def test_validation_scores_the_network_itself(demo, labels, checkpoint):
    loaded = load_checkpoint(str(checkpoint), "ema")
    source, counted = CheckpointSource("student", loaded, [], CPU), Confusion(OCC3D_CLASSES)
    loader = frames_of(demo.keyframes("val"), source, labels)
    with torch.inference_mode():
        for frame in loader:
            found = source.network(frame).voxel_logits_BXYZC[0].argmax(-1).to(torch.uint8).numpy()
            counted.update(found, frame.semantics[0].numpy(), frame.mask_camera[0].numpy())
    assert (counted.counts_CC.sum(0) > 0).sum() > 3
    assert torch.equal(score_network(source.network, loader, OCC3D_CLASSES, CPU).counts_CC, counted.counts_CC)


def test_an_export_answers_as_the_checkpoint_and_teaches(demo, labels, checkpoint, tmp_path):
    trained = load_checkpoint(str(checkpoint), "ema")
    export(trained, tmp_path / "out.safetensors")
    exported = load_checkpoint(str(tmp_path / "out.safetensors"), "ema")
    source, original = (CheckpointSource("student", each, [], CPU) for each in (exported, trained))
    teacher = NetworkTeacher(str(tmp_path / "out.safetensors"), "ema").to(CPU)
    assert source.inputs == original.inputs and source.inputs["history"] == teacher.inputs["history"] == 1
    for frame in frames_of(demo.keyframes("val")[:2], source, labels):
        (found,), (expected,) = source.predict(frame), original.predict(frame)
        assert torch.equal(found.log_probs_XYZC, expected.log_probs_XYZC)
        torch.testing.assert_close(teacher.predict(frame).voxel_log_probs_BXYZC[0], expected.log_probs_XYZC)


def test_training_goes_on_bit_for_bit_and_is_scored(workshop, demo, labels):
    """kill -9 after the first checkpoint, with a teacher; occ-eval then tells the cost of a step."""
    run = (*SMALL_STUDENT, *LOOKS_BACK, "trainer.checkpoint_every=1")
    killed, straight = (workshop.folder / "runs" / name / "last.pt" for name in ("past_killed", "past_straight"))
    process = subprocess.Popen(
        workshop.command("occ-train-student", *run, "output=runs/past_killed"), cwd=workshop.folder
    )
    while not killed.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(killed, weights_only=True)["step"] < 4
    assert "going on from" in workshop.ok("occ-train-student", *run, "output=runs/past_killed")
    workshop.ok("occ-train-student", *run, "output=runs/past_straight")
    resumed, expected = (torch.load(path, weights_only=True) for path in (killed, straight))
    assert resumed["history"] == expected["history"]
    assert resumed["history"][-1]["train_kd_voxel"] > 0
    for part in ("network", "ema"):
        assert all(torch.equal(value, expected[part][name]) for name, value in resumed[part].items())
    quick = ("pictures=[]", "cost.warmup=0", "cost.runs=1", "output=past_report")
    workshop.ok("occ-eval", f"checkpoint={straight}", *quick)
    found = json.loads((workshop.folder / "past_report/metrics.json").read_text())["sources"]["student"]
    assert found["metrics"]["flicker pairs"] == 2 and found["metrics"]["flicker unpaired"] == 0
    source = CheckpointSource("student", load_checkpoint(str(straight), "ema"), [], CPU)
    (frame, *_) = frames_of(demo.keyframes("val"), source, labels)
    with torch.inference_mode(), FlopCounterMode(display=False) as both:
        source.network(frame)
    with torch.inference_mode(), FlopCounterMode(display=False) as past:
        source.network.lifted(frame.past[0], None)
    assert found["cost"]["gflop"] == pytest.approx((both.get_total_flops() - past.get_total_flops()) / 1e9)


def test_weights_of_one_frame_are_refused(workshop):
    """Those that the demo begins with."""
    line = workshop.refused("occ-train-student", *SMALL_STUDENT, "student=demo_2f", "output=runs/past_refused")
    assert "weights of another architecture, 6 differences (fusion.mix.0.weight is missing" in line
