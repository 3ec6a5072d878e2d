"""Training for 8 bits: what the network computes then is what its file in 8 bits will say."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hydra import compose, initialize_config_module
from test_export import SMALL, TINY, frame, made
from test_int8 import DATA, changed
from torch import nn
from workshop import SMALL_STUDENT, Workshop

from distill.checkpoint import Checkpoint
from student.evaluation.deployed import Deployed
from student.export.int8 import Int8
from student.export.onnx_file import write_onnx
from student.export.runtime import OnnxFile
from student.quantisation import FakeQuantisation, named

FLASHOCC = ("student.network.bev_encoder.widths=[16,24,32]", "student.network.bev_encoder.out_channels=16")
KEPT = ["encoder.backbone.conv_stem", "bev_encoder.stem"]


def in_8_bits(checkpoint: Checkpoint, ranges: Sequence, file: Path) -> Int8:
    with initialize_config_module("conf", version_base="1.3"):
        write_onnx(checkpoint, compose("export", ["checkpoint=best.pt"]).onnx, file)
    return Int8(onnx.load(file), ranges)


@pytest.mark.parametrize(
    ("student", "overrides"), [("demo", TINY), ("demo_2f", TINY), ("flashocc_m0", (*SMALL, *FLASHOCC))]
)
def test_the_layers_of_the_file_are_rounded(student: str, overrides: tuple[str, ...], tmp_path: Path):
    checkpoint = made(student, *overrides)
    past = checkpoint.config["student"]["inputs"]["history"]
    file = in_8_bits(checkpoint, [frame(0, 1, 2, past)], tmp_path / "float.onnx")
    assert set(FakeQuantisation(checkpoint.network(), []).layers) == file.layers.keys()
    kept = named(file.layers, ["head", "conv_p"])
    assert kept and set(FakeQuantisation(checkpoint.network(), ["head", "conv_p"]).layers) == file.layers.keys() - kept


def measured(network: nn.Module, keep: list[str], frames: Sequence) -> FakeQuantisation:
    """With ranges of these frames; batch norms stay as in evaluation, as they are in a file."""
    int8 = FakeQuantisation(network, keep)
    network.eval().training = True
    with torch.no_grad(), int8.of(network):
        for each in frames:
            network(each)
    network.eval()
    return int8


@pytest.mark.parametrize("keep", [[], KEPT])
def test_it_answers_as_the_file_in_8_bits(keep: list[str], tmp_path: Path):
    checkpoint, ranges = made("demo", *TINY), [frame(seed, 1, 2) for seed in range(3)]
    file = in_8_bits(checkpoint, ranges, tmp_path / "float.onnx")
    onnx.save(file.written(named(file.layers, keep)), tmp_path / "int8.onnx")
    network = checkpoint.network()
    int8, of_file = measured(network, keep, ranges), Deployed(OnnxFile(tmp_path / "int8.onnx"))

    def classes(answer) -> np.ndarray:
        return np.concatenate([answer(frame(seed, 1, 2)).voxel_logits_BXYZC.argmax(-1).numpy() for seed in (7, 8, 9)])

    with torch.no_grad():
        exact = classes(network)
        with int8.of(network):
            simulated = classes(network)
        assert np.array_equal(classes(network), exact)  # it leaves nothing behind
    deployed = classes(of_file)
    assert changed(simulated, deployed) < 0.3 * changed(exact, deployed)


def test_known_roundings():
    """x becomes multiples of 1/255 of its range, 0 among them; w multiples of 1/127 of the largest of a channel."""
    network = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False))
    network[0].weight.data = torch.tensor([[1.27, 0.004], [0.0127, -0.01]])[..., None, None]
    rounded = torch.tensor([[1.27, 0.0], [0.0127, -0.01]])
    int8 = measured(network, [], [torch.tensor([-1.0, 1.55]).view(1, 2, 1, 1)])
    assert int8.layers == ["0"]
    assert (int8.lowest_2L[0].item(), int8.highest_2L[0].item()) == (-1.0, pytest.approx(1.55))
    for read, as_if in (((1, 0), (1, 0)), ((0, 1.003), (0, 1)), ((0.996, 9), (1, 1.55)), ((-5, 0), (-1, 0))):
        with torch.no_grad(), int8.of(network):
            found = network(torch.tensor(read, dtype=torch.float32).view(1, 2, 1, 1))
        assert torch.allclose(found.flatten(), rounded @ torch.tensor(as_if, dtype=torch.float32), atol=1e-6)


def test_gradients_pass_and_reach_every_weight():
    network = made("demo", *TINY, "student.network.encoder.frozen_levels=0").network().train()
    int8 = FakeQuantisation(network, [])
    with int8.of(network):
        network(frame(0, 2, 2)).voxel_logits_BXYZC.square().mean().backward()
    weights = {name: network.get_submodule(name).weight for name in int8.layers}
    assert [name for name, weight in weights.items() if weight.grad is None or not weight.grad.any()] == []
    assert (int8.highest_2L > int8.lowest_2L).all()
    before = int8.highest_2L.clone()
    network.eval()
    with torch.no_grad(), int8.of(network):
        network(frame(1, 1, 3))
    assert torch.equal(int8.highest_2L, before)


def test_training_for_8_bits_resumes_bit_for_bit_and_gives_an_ordinary_checkpoint(workshop: Workshop):
    run = ("trainer=int8", *SMALL_STUDENT, "trainer.checkpoint_every=1")
    assert "layers" in workshop.ok("occ-train-student", *run, "output=runs/int8")
    killed = workshop.folder / "runs/int8_killed"
    process = subprocess.Popen(workshop.command("occ-train-student", *run, f"output={killed}"), cwd=workshop.folder)
    while not (killed / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert "going on from" in workshop.ok("occ-train-student", *run, f"output={killed}")
    straight, resumed = (torch.load(each / "last.pt", weights_only=True) for each in (killed.with_name("int8"), killed))
    assert resumed["history"] == straight["history"]
    for part in ("network", "ema", "int8"):
        assert all(torch.equal(value, straight[part][name]) for name, value in resumed[part].items())
    found = workshop.ok("occ-export", f"checkpoint={killed / 'last.pt'}", "onnx=int8", "onnx.int8.frames=2", *DATA)
    assert "last.onnx: demo" in found


def test_a_network_without_an_onnx_file_is_refused(workshop: Workshop):
    line = workshop.refused("occ-train-student", *SMALL_STUDENT, "student=fusion", "trainer=int8", "trainer.init=null")
    assert "no ONNX graph" in line
