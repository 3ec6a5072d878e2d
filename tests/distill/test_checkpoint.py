from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distill import files
from distill.checkpoint import export, load_checkpoint, load_training_state, save_training_state
from distill.errors import InputError
from distill.weights import load_strictly

CONFIG = {"student": {"network": {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}}}
FACTS = {
    "epoch": 3,
    "step": 60,
    "code": "0.1.0 abc",
    "teachers": {"stored": {"weight": 1.0, "stores": [{"teacher": "t"}], "paths": ["s"], "terms": ["kd_bev"]}},
    "scores": {"val_miou": 1.5},
    "data": {"train": "1f"},
    "files": {"trainer.init": "2e"},
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    content = {
        "config": CONFIG,
        "network": nn.Linear(3, 2).state_dict(),
        "ema": nn.Linear(3, 2).state_dict(),
        "objective": {},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        **FACTS,
    }
    save_training_state(tmp_path / "last.pt", content)
    return tmp_path / "last.pt"


def test_network_is_rebuilt_from_its_own_configuration(saved):
    for weights, key in (("ema", "ema"), ("raw", "network")):
        network = load_checkpoint(str(saved), weights).network()
        expected = torch.load(saved, weights_only=True)[key]
        assert torch.equal(network.weight, expected["weight"])
        assert not network.training


def test_export_holds_the_ema_weights(saved, tmp_path):
    original = load_checkpoint(str(saved), "ema")
    export(original, tmp_path / "out.safetensors")
    exported = load_checkpoint(str(tmp_path / "out.safetensors"), "ema")
    assert exported.config == CONFIG
    assert exported.facts == original.facts == FACTS
    assert torch.equal(exported.network().weight, original.network().weight)
    with pytest.raises(InputError, match="EMA weights alone"):
        load_checkpoint(str(tmp_path / "out.safetensors"), "raw")


def test_a_damaged_training_state_says_how_the_run_goes_on(saved):
    """Nobody gave that file: there is none to give in its place."""
    saved.write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"incomplete .*: remove it to begin the run anew, or copy the run's best.pt"):
        load_training_state(saved)
    with pytest.raises(InputError, match=r"incomplete .*: give the best.pt or last.pt of a run"):
        load_checkpoint(str(saved), "ema")


@pytest.mark.parametrize("name", ["noise.pt", "noise.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02not a checkpoint at all")
    with pytest.raises(InputError, match=name):
        load_checkpoint(str(tmp_path / name), "ema")


def test_a_truncated_checkpoint_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[: saved.stat().st_size // 2])
    with pytest.raises(InputError, match=r"incomplete .* give the best.pt"):
        load_checkpoint(str(saved), "ema")


def test_a_checkpoint_with_a_flipped_bit_is_refused(saved):
    """PyTorch itself would load it."""
    weight = torch.load(saved, weights_only=True)["ema"]["weight"]
    content = bytearray(saved.read_bytes())
    content[content.index(weight.numpy().tobytes())] ^= 1
    saved.write_bytes(content)
    assert not torch.equal(torch.load(saved, weights_only=True)["ema"]["weight"], weight)
    with pytest.raises(InputError, match=r"last\.pt: damaged at \w+/data/\d+, its checksum is another"):
        load_checkpoint(str(saved), "ema")


def test_a_checkpoint_that_was_stripped_says_what_it_lacks(saved):
    content = torch.load(saved, weights_only=True)
    torch.save({key: value for key, value in content.items() if key not in ("config", "teachers")}, saved)
    with pytest.raises(InputError, match=r"without its config, teachers: give the best\.pt"):
        load_checkpoint(str(saved), "ema")


def test_weights_that_have_diverged_are_refused(saved):
    content = torch.load(saved, weights_only=True)
    content["ema"]["weight"][1, 2] = float("nan")
    torch.save(content, saved)
    with pytest.raises(InputError, match=r"last\.pt: weight holds NaN or infinite values: .* has diverged"):
        load_checkpoint(str(saved), "ema").network()


def test_somebody_elses_torch_file_is_refused(tmp_path):
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}, "meta": {}}, tmp_path / "foreign.pt")
    held = r"not a checkpoint of this project but 1 name \(backbone.conv1.weight\) of weights under state_dict"
    with pytest.raises(InputError, match=f"{held}.*student.network.encoder.weights="):
        load_checkpoint(str(tmp_path / "foreign.pt"), "ema")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "foreign.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"but 1 name \(conv1.weight\) of weights: "):
        load_checkpoint(str(tmp_path / "foreign.safetensors"), "ema")


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"a folder, not a file: give the best\.pt"):
        load_checkpoint(str(tmp_path), "ema")


def test_a_later_format_is_said_to_be_later(saved):
    torch.save(torch.load(saved) | {"format": "occ-distill checkpoint 4"}, saved)
    with pytest.raises(InputError, match=r"checkpoint 4' is later than .*checkpoint 3'.*: update"):
        load_checkpoint(str(saved), "ema")


def test_no_training_goes_on_from_an_export(saved, tmp_path):
    assert torch.equal(load_training_state(saved)["optimizer"]["state"][0]["exp_avg"], torch.zeros(3))
    export(load_checkpoint(str(saved), "ema"), tmp_path / "out.safetensors")
    with pytest.raises(InputError, match="an export"):
        load_training_state(tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"_target_": "student.network.nothing.Network"}, "student.network.nothing.Network"),
        ({"_target_": "torch.nn.Linear", "in_features": 3, "width": 2}, "width"),
        ({"_target_": "distill.grids.named_grid", "name": "mars"}, "mars"),
    ],
)
def test_a_network_that_cannot_be_built_here_is_one_line(saved, network, message):
    torch.save(torch.load(saved) | {"config": {"student": {"network": network}}}, saved)
    with pytest.raises(
        InputError, match=f"{saved}: the network it describes cannot be built here .*{message}"
    ) as caught:
        load_checkpoint(str(saved), "ema").network()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out.pt", "name it out.safetensors"),
        ("nowhere/out.safetensors", "No such file or directory"),
        ("folder.safetensors", "directory"),
    ],
)
def test_an_export_that_cannot_be_written_leaves_nothing(saved, tmp_path, output, message):
    (tmp_path / "folder.safetensors").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"{output}: .*{message}"):
        export(load_checkpoint(str(saved), "ema"), tmp_path / output)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("bias"), "bias is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra is unexpected"),
        (lambda state: state.update(weight=torch.zeros(5, 3)), r"weight is \(5, 3\) instead of \(2, 3\)"),
    ],
)
def test_weights_of_another_architecture_are_refused(change, message):
    network = nn.Linear(3, 2)
    before = network.weight.clone()
    state = dict(nn.Linear(3, 2).state_dict())
    change(state)
    with pytest.raises(InputError, match=message):
        load_strictly(network, state, "best.pt")
    assert torch.equal(network.weight, before)


def test_both_sides_are_shown():
    with pytest.raises(InputError, match=r"the file has 1 name \(conv.bias\), the network 2 names \(weight, bias\)"):
        load_strictly(nn.Linear(3, 2), {"conv.bias": torch.zeros(2)}, "best.pt")


def test_a_failed_write_keeps_the_previous_checkpoint(saved, monkeypatch):
    before = saved.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        save_training_state(saved, {"config": {}})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
