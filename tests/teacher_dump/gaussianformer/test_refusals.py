"""What a user of occ-dump sees of a GaussianFormer that cannot work: one line."""

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from distill.networks.adapter import constants

V1 = ("teacher=gaussianformer_25600_solid", "teacher.network.lifter.gaussians=100", "teacher.image_size=[64,160]")
V2 = (
    "teacher=gaussianformer2_25600",
    "teacher.network.lifter.lifted=60",
    "teacher.network.lifter.learned=40",
    "teacher.image_size=[64,160]",
)


@pytest.fixture(scope="module")
def state_of():
    """`state_of(V1)`: names and shapes of a model's weights; all are 0, which takes no room in a file."""

    def build(overrides):
        with initialize_config_module("conf", version_base="1.3"):
            config = compose("dump", [*overrides, "teacher.checkpoint=none"])
        network = instantiate(config.teacher.network)
        zeros = {name: value.new_zeros(()).expand(value.shape) for name, value in network.state_dict().items()}
        return zeros | constants(network)

    states = {overrides: build(overrides) for overrides in (V1, V2)}
    return lambda overrides: dict(states[overrides])


@pytest.fixture
def refusal(workshop, tmp_path):
    """`refusal(state, V1)`: the line that occ-dump ends with for these weights."""

    def dump(state, overrides, cut=0):
        file = tmp_path / "state_dict.pth"
        torch.save({"state_dict": state}, file)
        file.write_bytes(file.read_bytes()[: len(file.read_bytes()) - cut])
        given = (f"teacher.checkpoint={file}", f"store.path={tmp_path}/store.zarr", "gate.min_miou=0")
        line = workshop.refused("occ-dump", *overrides, *given)
        assert not list((tmp_path / "store.zarr").glob("voxel_logits/c*"))
        return line

    return dump


def test_weights_that_are_not_numbers(refusal, state_of):
    spoilt = {"img_neck.fpn_convs.0.conv.bias": torch.full((128,), torch.nan)}
    line = refusal(state_of(V1) | spoilt, V1)
    assert "img_neck.fpn_convs.0.conv.bias holds NaN" in line


def test_an_incomplete_file(refusal, state_of):
    assert "incomplete" in refusal(state_of(V1), V1, cut=1000)


def test_weights_of_the_first_version_for_the_second(refusal, state_of):
    line = refusal(state_of(V1), V2)
    assert "weights of another architecture" in line and "lifter.random_anchors is missing" in line


def test_weights_that_were_trained_on_another_range(refusal, state_of):
    line = refusal(state_of(V1) | {"head.aggregator.pc_min": torch.tensor([[-51.2, -51.2, -5.0]])}, V1)
    assert "head.aggregator.pc_min is [-51.2" in line


def test_images_off_the_stride(refusal, state_of):
    line = refusal(state_of(V1), (*V1, "teacher.image_size=[90,160]"))
    assert "images of 90 x 160 pixels" in line and "multiples of 32" in line


def test_a_keyframe_without_a_valid_pixel(refusal, state_of):
    """The last bin means that nothing is there."""
    nothing = torch.eye(129)[128]
    line = refusal(state_of(V2) | {"lifter.projection.1.bias": nothing}, V2)
    assert "no pixel of this keyframe" in line
