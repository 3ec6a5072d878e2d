"""Other people's weights in our networks, by the table of a made-up family."""

import pytest
import torch
from torch import nn

from distill.errors import InputError
from distill.networks.adapter import Adapter, constants

FAMILY = Adapter(
    names={
        r"trunk\.blk(\d)": r"stages.\1",
        "proj_old": "projection",
        "proj": "projection",
        "neck": "nothing.of.this.name",
    },
    layouts={r"projection\.weight": (1, 0), r"stages\.\d\.weight": (3, 2, 0, 1)},
    give="give the family's file",
)


class Network(nn.Module):
    """A network with a square matrix, a convolution, a constant and statistics."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(2, 3, 1) for _ in range(2))
        self.norm = nn.BatchNorm1d(3)
        self.projection = nn.Linear(4, 4)
        self.register_buffer("extent", torch.tensor([40.0, 6.4]))


@pytest.fixture
def expected():
    torch.manual_seed(3)
    return Network().state_dict()


@pytest.fixture
def published(expected):
    """The same weights as the family names and lays them out."""
    state = {
        name.replace("stages.", "trunk.blk").replace("projection", "proj"): value for name, value in expected.items()
    }
    for stage in range(2):
        weight = state[f"trunk.blk{stage}.weight"]
        state[f"trunk.blk{stage}.weight"] = weight.permute(2, 3, 1, 0).contiguous()
    state["proj.weight"] = state["proj.weight"].T.contiguous()
    return state


@pytest.fixture
def file(tmp_path):
    return tmp_path / "family.pth"


def loaded(file, content):
    torch.save(content, file)
    network = Network()
    FAMILY.load(network, file)
    return network.state_dict()


def refused(file, content):
    with pytest.raises(InputError) as caught:
        loaded(file, content)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and "\n" not in message
    return message


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_of_other_names_and_layouts_load(published, expected, file):
    assert_same(loaded(file, published), expected)


def test_what_wraps_them_is_taken_off_and_said(published, expected, file, capsys):
    wrapped = {f"module.{name}": value for name, value in published.items()}
    assert_same(loaded(file, {"state_dict": wrapped, "meta": {"epoch": 24}}), expected)
    said = f"{file}: state_dict, without the prefix 'module.': took {len(expected)} tensors\n"
    assert capsys.readouterr().out == said


def test_one_of_two_spellings_is_enough_and_both_are_too_many(published, expected, file):
    older = {name.replace("proj.", "proj_old."): value for name, value in published.items()}
    assert_same(loaded(file, older), expected)
    message = refused(file, {"state_dict": published | older})
    assert message == (
        f"{file}: state_dict: proj.weight and proj_old.weight are both projection.weight of the network: "
        "give the family's file"
    )


def test_only_whole_parts_of_a_name_are_replaced(published, file):
    published["reproj.weight"] = torch.zeros(4, 4)
    assert "reproj.weight is unexpected" in refused(file, published)


def test_a_missing_and_an_extra_name_are_refused(published, file):
    del published["trunk.blk1.bias"]
    published["trunk.blk2.weight"] = torch.zeros(3, 2, 1, 1)
    message = refused(file, published)
    assert "2 differences" in message
    for difference in ("stages.1.bias is missing", "stages.2.weight is unexpected"):
        assert difference in message


@pytest.mark.parametrize("shape", [(7, 4), (4,), (1, 4, 4)])
def test_a_tensor_of_another_shape_is_refused(published, file, shape):
    published["proj.weight"] = torch.zeros(shape)
    assert f"projection.weight is {shape} instead of (4, 4)" in refused(file, published)


def test_a_tensor_that_already_has_our_layout_loads(published, expected, file):
    published["trunk.blk0.weight"] = expected["stages.0.weight"]
    assert_same(loaded(file, published), expected)


def test_constants_of_another_configuration_are_refused(published, file):
    assert constants(Network()).keys() == {"extent"}
    published["extent"] = torch.tensor([51.2, 8.0])
    assert "give weights that were trained with this configuration" in refused(file, published)


def test_values_that_are_not_finite_are_refused(published, file):
    published["proj.bias"][1] = float("nan")
    assert "projection.bias holds NaN or infinite values" in refused(file, published)
