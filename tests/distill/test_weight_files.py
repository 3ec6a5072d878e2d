"""Weights as people have them: what is taken off, what is refused and how, and that no code of a file ever runs."""

import argparse
import collections
import enum
import os
import shlex
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from distill.errors import InputError
from distill.weights import fit, load_strictly, read


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def loaded(file, content, unused=None):
    """The file's weights in a network that began otherwise, and what was said."""
    torch.save(content, file)
    found = fit(file, read(file, "get it"), network(1).state_dict(), unused)
    receiver = network(1)
    load_strictly(receiver, found.state, found.origin)
    return receiver.state_dict(), found.taken


def refused(file, content, unused=None):
    with pytest.raises(InputError) as caught:
        loaded(file, content, unused)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and "\n" not in message
    return message


def run_shown_command(message, folder, monkeypatch):
    """What `python -c "..."` at the end of a message does in a folder."""
    python, option, code = shlex.split(message[message.rindex("python -c ") :])
    assert (python, option) == ("python", "-c")
    monkeypatch.chdir(folder)
    exec(code, {})


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def state():
    return network().state_dict()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "weights.pth"


@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda w: {"state_dict": w, "meta": {"epoch": 24}}, "state_dict"),
        (lambda w: {"model": w, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}}, "model"),
        (lambda w: {"network": w, "epoch": 3}, "network"),
        (lambda w: {"state_dict_ema": w}, "state_dict_ema"),
        (lambda w: {"model_state_dict": w, "loss": torch.tensor(0.5)}, "model_state_dict"),
        (lambda w: {"ema": {"module": w}}, "ema.module"),
        (
            lambda w: {"state_dict": w, "pytorch-lightning_version": "2.4", "hyper_parameters": {"lr": 1e-4}},
            "state_dict",
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_wrappings_and_prefixes_are_taken_off_and_said(state, file, wrap, place, prefix):
    found, said = loaded(file, wrap(under(prefix, state)))
    assert_same(found, state)
    assert said.startswith(f"{file}: {place}")
    assert (f"'{prefix}'" in said) == bool(prefix)


def test_nothing_is_said_where_nothing_is_taken_off(state, file):
    found, said = loaded(file, state)
    assert_same(found, state)
    assert said == ""


def test_only_the_first_rank_says_it(state, file, capsys, monkeypatch):
    found = fit(file, {"model": state}, network(1).state_dict(), None)
    for rank, said in (("1", ""), ("0", f"{file}: model: took 6 tensors\n")):
        monkeypatch.setenv("RANK", rank)
        found.tell()
        assert capsys.readouterr().out == said


@given(st.lists(st.sampled_from(["module", "model", "0", "1", "backbone", "weight"]), max_size=4), st.data())
def test_a_prefix_is_taken_off_only_when_all_that_remains_fits(parts, data):
    expected = network().state_dict()
    weights = under("".join(f"{part}." for part in parts), expected)
    assert_same(fit("w.pth", weights, expected, None).state, expected)
    name = data.draw(st.sampled_from([name for name in weights if "num_batches" not in name]))
    changed = weights.copy()
    changed[data.draw(st.sampled_from(["module.", "x."])) + name] = changed.pop(name)
    with pytest.raises(InputError, match="another architecture"):
        fit("w.pth", changed, expected, None)


def test_counters_that_old_files_lack_start_from_zero(state, file):
    old = {name: value for name, value in state.items() if name != "1.num_batches_tracked"}
    assert_same(loaded(file, old)[0], state)


def test_more_than_one_that_fits_is_not_guessed(state, file, monkeypatch):
    other = network(5).state_dict()
    message = refused(file, {"state_dict": other, "ema_state_dict": under("module.", state), "step": torch.tensor(3)})
    assert "state_dict; ema_state_dict, without the prefix 'module.'" in message
    message = refused(file, under("student.", state) | under("teacher.", other))
    assert "without the prefix 'student.'; without the prefix 'teacher.'" in message
    assert "2 times" in refused(file, state | under("ema.", other), unused=lambda name: name.startswith("fc."))
    message = refused(file, under("student.", state) | under("teacher.", other))
    # and the command it shows keeps the first
    run_shown_command(message, file.parent, monkeypatch)
    assert_same(loaded(file, torch.load(file.parent / "weights.pth"))[0], state)


def test_what_lies_beside_a_backbone_is_left_out_where_that_is_wanted(state, file):
    detector = under("img_backbone.", state) | {"head.weight": torch.zeros(2), "neck.weight": torch.zeros(2)}
    found, said = loaded(file, detector, unused=lambda name: name.startswith("fc."))
    assert_same(found, state)
    assert "left out 2 names (head.weight, neck.weight)" in said
    assert "2 differences" in refused(file, detector)
    # a deeper network has every name of a shallower one
    detector["img_backbone.2.weight"] = torch.zeros(4)
    assert "2.weight is unexpected" in refused(file, detector, unused=lambda name: name.startswith("fc."))


def test_a_message_shows_the_first_names_of_both_sides(state, file):
    state = {f"stem.{name}": value for name, value in state.items()} | {"stem.2.bias": torch.zeros(4)}
    del state["stem.1.bias"]
    message = refused(file, {"state_dict": under("module.", state)})
    assert "state_dict, without the prefix 'module.stem.'" in message
    assert "2 differences (1.bias is missing; 2.bias is unexpected)" in message
    assert "6 names (module.stem.0.weight, module.stem.1.weight, module.stem.1.running_mean, ...)" in message
    assert "6 names (0.weight, 1.weight, 1.bias, ...)" in message


def test_names_that_have_nothing_in_common_are_shown_as_they_are(file):
    message = refused(file, {"layers.1.weight": torch.zeros(1), "layers.1.extra": torch.zeros(1)})
    assert "without the prefix" not in message
    assert "the file has 2 names (layers.1.weight, layers.1.extra)" in message


def test_shapes_have_to_agree(state, file):
    message = refused(file, {"model": state | {"0.weight": torch.zeros(5, 3, 1, 1)}})
    assert f"{file}: model: weights of another architecture, 1 differences (0.weight is (5, 3, 1, 1) inst" in message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([0, float("nan"), 0, 0]), "1.bias holds NaN or infinite values"),
        (torch.zeros(4, dtype=torch.int8), "1.bias is torch.int8 instead of torch.float32"),
        (torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.quint8), "1.bias is torch.quint8 instead"),
    ],
)
def test_values_that_cannot_be_right_are_refused(state, file, value, message):
    assert message in refused(file, {"model": state | {"1.bias": value}})


@pytest.mark.parametrize("content", [{}, {"epoch": 3, "cfg": "x"}, {"state_dict": [1]}])
def test_a_file_without_weights_says_what_it_holds(file, content):
    message = refused(file, content)
    assert "holds no weights by name" in message
    assert all(key in message for key in content)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), nn.Linear(2, 2)])
def test_a_file_that_holds_no_dict_says_what_it_holds(file, content):
    assert f"holds a {type(content).__name__}, no weights by name" in refused(file, content)


class Colour(enum.Enum):
    RED = 1


class History:
    def __init__(self):
        self.values = collections.deque([np.float64(1), 2], maxlen=3)


class Config(dict):
    """A dict with another name, as configurations of training frameworks are."""


@pytest.mark.parametrize(
    "beside",
    [
        np.float64(31.5),
        np.arange(3),
        np.array([None, "a"], dtype=object),
        argparse.Namespace(lr=1e-4, colour=Colour.RED),
        collections.defaultdict(list, {"loss": [1.0]}),
        {Colour.RED: History()},
        Config(model=Config(type="x")),
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1),
    ],
)
def test_objects_beside_weights_do_not_stand_in_the_way(state, file, beside):
    for zipped in (True, False):
        torch.save({"state_dict": state, "beside": beside}, file, _use_new_zipfile_serialization=zipped)
        assert_same(fit(file, read(file, "get it"), state, None).state, state)


def test_weights_in_another_kind_of_dict_are_found(state, file):
    assert_same(loaded(file, Config(model=Config(state)))[0], state)


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, exec, subprocess.check_call])
def test_no_code_of_a_file_runs(state, file, function):
    evidence = file.parent / "ran"
    code = f"touch {evidence}" if function is os.system else f"open({str(evidence)!r}, 'w')"
    torch.save({"state_dict": state, "beside": Runs(function, code)}, file)
    try:
        content = read(file, "get it")
    except InputError as error:
        assert "posix.system" in str(error)
    else:
        assert_same(content["state_dict"], state)
    assert not evidence.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html><html>login</html>", b"version https://git-lfs\n", b"PK\x03\x04xy", b"12345678{no"],
)
def test_a_damaged_file_says_what_to_do(file, content):
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"not a file of .* incomplete .*: get it again") as caught:
        read(file, "get it again")
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_no_incomplete_file_is_read(state, tmp_path, name):
    file = tmp_path / name
    (save_file if name.endswith("s") else torch.save)(state, file)
    whole = file.read_bytes()
    for length in range(0, len(whole) - 1, len(whole) // 40):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match="incomplete"):
            read(file, "get it again")


def test_the_content_decides_the_kind(state, tmp_path):
    save_file(state, tmp_path / "weights.bin")
    torch.save(state, tmp_path / "weights.safetensors")
    for file in tmp_path.iterdir():
        found = read(file, "get it")
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_what_is_no_file_of_weights_at_all_says_what_it_is(state, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="a folder"):
        read(tmp_path, "get it")
    with pytest.raises(InputError, match="no such file: get it"):
        read(tmp_path / "none.pth", "get it")
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "whole.pt")
    with pytest.raises(InputError, match="a whole network"):
        read(tmp_path / "whole.pt", "get it")
    torch.save(nn.Linear(1, 1), tmp_path / "whole.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="a whole network"):
        read(tmp_path / "whole.pt", "get it")
    torch.save(state, tmp_path / "new.pth", pickle_protocol=4)
    with pytest.raises(InputError, match="another protocol") as caught:
        read(tmp_path / "new.pth", "get it")
    run_shown_command(str(caught.value), tmp_path, monkeypatch)
    assert_same(read(tmp_path / "weights.pth", "get it"), state)


def test_our_own_checkpoints_are_told_where_they_belong(state, file):
    message = refused(file, {"format": "occ-distill checkpoint 2", "network": state, "ema": state})
    assert "checkpoint= of occ-eval" in message and "trainer.init=" in message
