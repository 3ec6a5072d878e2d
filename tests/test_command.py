"""How the programs end: one line and an exit code for a user's mistake, a traceback for ours."""

import shlex
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, InstantiationException, OverrideParseException
from omegaconf.errors import ConfigAttributeError
from torch.utils.data import DataLoader

from distill.command import UNREAD, distinct, user_mistake
from distill.errors import InputError


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


def test_an_input_error_is_its_own_message():
    assert user_mistake(InputError("no such file:\n  a.npz")) == "no such file: a.npz"


def test_an_input_error_from_a_loader_worker_is_its_own_message_again():
    def fail(_):
        raise InputError("labels.npz: no semantics")

    loader = DataLoader([0], num_workers=1, collate_fn=fail)
    with pytest.raises(InputError) as raised:
        list(loader)
    assert user_mistake(raised.value) == "labels.npz: no semantics"


def test_a_full_disk_is_no_defect_of_ours_wherever_it_is_met():
    with pytest.raises(OSError, match="No space") as raised, open("/dev/full", "w") as full:
        full.write("x")
    assert user_mistake(raised.value) == (
        "No space left on device: see to the disk (df), then run the same command again to go on"
    )
    assert user_mistake(FileNotFoundError(2, "No such file")) is None


def test_an_input_error_inside_an_instantiation_is_found():
    assert user_mistake(chained(InstantiationException("Error in call"), InputError("bad grid"))) == "bad grid"


@pytest.mark.parametrize("error", [ConfigCompositionException("no group x"), ConfigAttributeError("Key 'x'")])
def test_a_wrong_override_is_a_configuration_mistake(error):
    assert user_mistake(error).startswith("configuration: ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.epoch=3", "there is no trainer.epoch: did you mean trainer.epochs?"),
        (
            "objective.terms.ce.gamma=3",
            "there is no objective.terms.ce.gamma: objective.terms.ce has _target_, weight,",
        ),
        ("trainer.epochs.x=3", "there is no trainer.epochs.x: trainer.epochs is one value"),
        ("kd=nothing", "Available options in 'kd': affinity balanced balanced_pseudo bev channelwise decoupled"),
        ("teacher=fusion", "No match in the defaults list. (see"),
        ("experiment=null", "a group takes the name of an option"),
        ("trainer.epochs", "trainer.epochs: neither an option nor an override"),
    ],
)
def test_a_misspelt_override_is_met_with_what_there_is(override, said):
    with initialize_config_module("conf", version_base="1.3"), pytest.raises(Exception) as raised:
        compose("train", [override])
    assert said in (user_mistake(raised.value) or "")


@pytest.mark.parametrize("error", [ValueError("ours"), chained(InstantiationException("Error"), ValueError("ours"))])
def test_our_defects_keep_their_traceback(error):
    assert user_mistake(error) is None


def test_a_value_that_hydra_cannot_read_is_shown_as_it_must_be_quoted():
    """The shown override, put into the shell and to Hydra, is the value that was meant."""
    for value in ("/data/my data (copy)", "lr=0.1/best.pt", "~/runs/[old]"):
        with pytest.raises(OverrideParseException) as raised:
            OverridesParser.create().parse_overrides([f"output={value}"])
        message = user_mistake(raised.value)
        assert message is not None
        (quoted,) = shlex.split(message.rpartition(": ")[2])
        (override,) = OverridesParser.create().parse_overrides([quoted])
        assert override.value() == value


def test_calls_that_differ_in_a_number_have_names_that_differ():
    but = ["data", "data.", "seed", "output"]
    assert distinct(["data=nuscenes", "data.root=/d", "seed=1", "output=x"], but) == ""
    assert distinct(["trainer.learning_rate=1e-3"], but) == "-trainer.learning_rate_1e-3"
    assert distinct(["b=1", "a=2"], but) == distinct(["a=2", "b=1"], but) == "-a_2-b_1"
    assert distinct(["+robustness.x={_target_: a.B, sigma: 6}"], but) == "-robustness.x_target_a.B_sigma_6"
    assert distinct(["~robustness.blur"], but) != distinct(["+robustness.blur"], but)
    long = [distinct([f"{key}={'1' * 200}" for key in keys], but) for keys in (["a", "b"], ["a", "c"])]
    assert long[0] != long[1]
    assert all(len(name) < 140 for name in long)
    for name in (*long, distinct(["trainer.init=/a/b c/[d].pt"], but)):
        assert not set(name) & set("/=[]{}() ,~")


def test_a_reader_of_the_output_that_has_enough_is_no_error(tmp_path):
    program = tmp_path / "talks.py"
    program.write_text(
        "from distill.command import script\n@script\ndef main():\n    while True:\n        print('line')\nmain()\n"
    )
    talking = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    talking.stdout.readline()
    talking.stdout.close()
    assert (talking.wait(), talking.stderr.read()) == (UNREAD, b"")
