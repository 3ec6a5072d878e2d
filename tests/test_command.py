"""How the programs end: one line and an exit code for a user's mistake, a traceback for ours."""

import pytest
from hydra.errors import ConfigCompositionException, InstantiationException
from omegaconf.errors import ConfigAttributeError
from torch.utils.data import DataLoader

from distill.command import user_mistake
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


def test_an_input_error_inside_an_instantiation_is_found():
    assert user_mistake(chained(InstantiationException("Error in call"), InputError("bad grid"))) == "bad grid"


@pytest.mark.parametrize("error", [ConfigCompositionException("no group x"), ConfigAttributeError("Key 'x'")])
def test_a_wrong_override_is_a_configuration_mistake(error):
    assert user_mistake(error).startswith("configuration: ")


@pytest.mark.parametrize("error", [ValueError("ours"), chained(InstantiationException("Error"), ValueError("ours"))])
def test_our_defects_keep_their_traceback(error):
    assert user_mistake(error) is None
