from pathlib import Path

import pytest
import torch
from torch import nn

from distill import checkpoint as module
from distill.checkpoint import load_checkpoint, load_strictly, save_training_state
from distill.errors import InputError

CONFIG = {"student": {"network": {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    content = {
        "config": CONFIG,
        "network": nn.Linear(3, 2).state_dict(),
        "ema": nn.Linear(3, 2).state_dict(),
        **{key: {} for key in ("epoch", "step", "code", "stores", "scores")},
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
    module.export(original, tmp_path / "out.safetensors")
    exported = load_checkpoint(str(tmp_path / "out.safetensors"), "ema")
    assert exported.config == CONFIG
    assert torch.equal(exported.network().weight, original.network().weight)
    with pytest.raises(InputError, match="EMA weights alone"):
        load_checkpoint(str(tmp_path / "out.safetensors"), "raw")


@pytest.mark.parametrize("name", ["noise.pt", "noise.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02not a checkpoint at all")
    with pytest.raises(InputError, match=name):
        load_checkpoint(str(tmp_path / name), "ema")


def test_a_truncated_checkpoint_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[: saved.stat().st_size // 2])
    with pytest.raises(InputError, match="not a checkpoint"):
        load_checkpoint(str(saved), "ema")


def test_somebody_elses_torch_file_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match="not a checkpoint of this project"):
        load_checkpoint(str(tmp_path / "foreign.pt"), "ema")


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


def test_a_failed_write_keeps_the_previous_checkpoint(saved, monkeypatch):
    before = saved.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        save_training_state(saved, {"config": {}})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
