"""Upstream's files: what is accepted, what is refused and how."""

import pytest
import torch
from torch import nn

from distill.errors import InputError
from distill.networks.adapter import constants
from teacher_dump.teachers.gaussianformer.deform_conv import DeformConv2d
from teacher_dump.teachers.gaussianformer.weights import OFFICIAL


class Network(nn.Module):
    """One of everything that files spell in more than one way."""

    def __init__(self):
        super().__init__()
        self.layer3 = nn.Sequential(nn.Module())
        self.layer3[0].conv2 = DeformConv2d(2)
        self.spconv = nn.Module()
        self.spconv.weight = nn.Parameter(torch.zeros(4, 3, 3, 3, 2))
        self.spconv.register_buffer("grid_size", torch.tensor([0.5, 0.5, 0.5]))
        self.spconv.register_buffer("offsets", torch.ones(2), persistent=False)
        self.norm = nn.BatchNorm2d(4)


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    state = Network().state_dict()
    return {
        name: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value + 7
        for name, value in state.items()
    } | {"spconv.grid_size": state["spconv.grid_size"]}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state_dict.pth"


def loaded(file):
    network = Network()
    OFFICIAL.load(network, file)
    return network.state_dict()


def refused(file):
    network = Network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(InputError) as caught:
        OFFICIAL.load(network, file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and "\n" not in message
    assert_same(network.state_dict(), before)
    return message


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("nested", [False, True])
def test_bare_and_nested_files_load(state, file, nested):
    torch.save({"state_dict": state, "epoch": 20} if nested else state, file)
    assert_same(loaded(file), state)


def test_what_training_frameworks_wrap_around_it_is_taken_off_and_said(state, file, capsys):
    old = {name.replace("conv2.conv_offset", "conv2_offset"): value for name, value in state.items()}
    old["spconv.weight"] = old["spconv.weight"].permute(1, 2, 3, 0, 4).contiguous()
    wrapped = {f"module.{name}": value for name, value in old.items()}
    torch.save({"state_dict": wrapped, "optimizer": {"state": {}}, "global_iter": 9}, file)
    assert_same(loaded(file), state)
    assert capsys.readouterr().out == f"{file}: state_dict, without the prefix 'module.': took {len(state)} tensors\n"


def test_nothing_beside_its_weights_is_left_out(state, file):
    torch.save({f"module.{name}": value for name, value in state.items()} | {"extra.weight": torch.zeros(1)}, file)
    assert "extra.weight is unexpected" in refused(file)


def test_the_other_layout_of_sparse_convolutions_loads(state, file):
    torch.save(state | {"spconv.weight": state["spconv.weight"].permute(1, 2, 3, 0, 4).contiguous()}, file)
    assert_same(loaded(file), state)


def test_names_of_old_deformable_convolutions_load(state, file):
    torch.save({name.replace("conv2.conv_offset", "conv2_offset"): value for name, value in state.items()}, file)
    assert_same(loaded(file), state)


def test_half_precision_loads_as_float32(state, file):
    halved = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    torch.save(halved, file)
    found = loaded(file)
    assert all(found[name].dtype == state[name].dtype for name in state)
    assert_same(found, {name: value.to(state[name].dtype) for name, value in halved.items()})


def test_differences_are_named(state, file):
    del state["norm.weight"]
    state |= {"head.bias": torch.zeros(3)}
    torch.save(state, file)
    message = refused(file)
    assert "2 differences" in message
    for difference in ("norm.weight is missing", "head.bias is unexpected"):
        assert difference in message


def test_a_sparse_convolution_of_another_size_is_a_difference(state, file):
    torch.save(state | {"spconv.weight": torch.zeros(5, 5, 5, 4, 2)}, file)
    assert "spconv.weight is (5, 5, 5, 4, 2) instead of (4, 3, 3, 3, 2)" in refused(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(state, file, value):
    state["norm.running_var"][2] = value
    torch.save(state, file)
    assert "norm.running_var holds NaN or infinite values" in refused(file)


def test_constants_of_another_configuration_are_refused(state, file):
    assert constants(Network()).keys() == {"spconv.grid_size"}
    torch.save(state | {"spconv.grid_size": torch.tensor([0.5, 0.5, 1.0])}, file)
    message = "spconv.grid_size is [0.5, 0.5, 1.0], the configuration says [0.5, 0.5, 0.5]"
    assert message in refused(file)


def test_quantised_weights_are_refused(state, file):
    torch.save(state | {"norm.weight": torch.ones(4, dtype=torch.int8)}, file)
    assert "norm.weight is torch.int8 instead of torch.float32" in refused(file)


def test_a_missing_file_is_refused(file):
    assert "no such file: give the state_dict.pth that upstream published" in refused(file)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>login</html>", b"version https://git-lfs\n"])
def test_a_file_that_is_no_checkpoint_is_refused(file, content):
    file.write_bytes(content)
    assert "not a file of PyTorch weights" in refused(file)


def test_an_incomplete_download_is_refused(state, file):
    torch.save(state, file)
    file.write_bytes(file.read_bytes()[:-500])
    assert "incomplete" in refused(file)


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, {"state_dict": [1]}])
def test_a_file_without_weights_is_refused(file, content):
    torch.save(content, file)
    assert "no weights by name" in refused(file)
