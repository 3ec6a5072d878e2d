"""Training for 8 bits: what the network computes then is what its file in 8 bits will say."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
import torch
from test_export import SMALL, TINY, frame, made, settings
from test_int8 import DATA
from torch import nn
from workshop import SMALL_STUDENT, Workshop

from student.evaluation.deployed import Deployed
from student.export.int8 import Int8
from student.export.onnx_file import write_onnx
from student.export.runtime import OnnxFile
from student.quantisation import FakeQuantisation, named

FLASHOCC = ("student.network.bev_encoder.widths=[16,24,32]", "student.network.bev_encoder.out_channels=16")
STUDENTS = {"demo": TINY, "demo_2f": TINY, "flashocc_m0": (*SMALL, *FLASHOCC)}


def measured(network: nn.Module, keep: list[str], frames: Sequence) -> FakeQuantisation:
    """With ranges of these frames; batch norms stay as in evaluation, as they are in a file."""
    int8 = FakeQuantisation(network, keep)
    network.eval().training = True
    with torch.no_grad(), int8.of(network):
        for each in frames:
            network(each)
    network.eval()
    return int8


def take_ranges(int8: FakeQuantisation, file: Int8, model: onnx.ModelProto) -> None:
    """Those that a file in 8 bits has."""
    constants = {
        each.name: onnx.numpy_helper.to_array(each).item() for each in model.graph.initializer if not each.dims
    }
    nodes = {node.name: node for node in model.graph.node}
    rounding = {node.input[0]: node for node in nodes.values() if node.op_type == "QuantizeLinear"}
    undone = {node.output[0]: node for node in nodes.values() if node.op_type == "DequantizeLinear"}
    for layer, name in enumerate(int8.layers):
        node = nodes[file.layers[name][0]]
        for place, (_, scale, zero) in enumerate([undone[node.input[0]].input, rounding[node.output[0]].input]):
            int8.lowest_2L[place, layer] = -constants[zero] * constants[scale]
            int8.highest_2L[place, layer] = (255 - constants[zero]) * constants[scale]


@pytest.mark.parametrize("student", STUDENTS)
def test_it_answers_as_the_file_in_8_bits(student: str, tmp_path: Path):
    checkpoint = made(student, *STUDENTS[student])
    past = checkpoint.config["student"]["inputs"]["history"]
    ranges, asked = ([frame(seed, 1, 2, past) for seed in seeds] for seeds in (range(3), range(7, 10)))
    write_onnx(checkpoint, settings(), tmp_path / "float.onnx")
    file, network = Int8(onnx.load(tmp_path / "float.onnx"), ranges), checkpoint.network()

    def logits(answer) -> torch.Tensor:
        return torch.cat([answer(each).voxel_logits_BXYZC for each in asked])

    assert set(FakeQuantisation(network, []).layers) == file.layers.keys()
    kept = named(file.layers, ["head"])  # the logits themselves would be rounded, which hides all else
    model, int8 = file.written(kept), FakeQuantisation(network, ["head"])
    onnx.save(model, tmp_path / "int8.onnx")
    take_ranges(int8, file, model)
    assert set(int8.layers) == file.layers.keys() - set(kept)
    with torch.no_grad():
        exact = logits(network)
        with int8.of(network):
            simulated = logits(network)
        assert torch.equal(logits(network), exact)  # it leaves nothing behind
    deployed = logits(Deployed(OnnxFile(tmp_path / "int8.onnx")))
    noise, expected = (simulated - exact).norm(), (deployed - exact).norm()
    assert 0.8 < noise / expected < 1.25
    # as far from each other as independent noise would be 1.4; a rounding that falls otherwise moves all behind it
    assert (simulated - deployed).norm() < 0.85 * expected


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
    assert (int8.highest_2L > int8.lowest_2L)[1].all()
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
