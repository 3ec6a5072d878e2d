"""Locks that end with their owner, however it ends; files that are whole or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from distill.errors import InputError
from distill.files import leaves, owned, write_durably

OWNER = """
import sys, time
from pathlib import Path
from distill.files import owned
with owned(Path(sys.argv[1]), "the run"):
    print("owned", flush=True)
    time.sleep(60)
"""


def start_owner(lock) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    return process


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path):
    owner = start_owner(tmp_path / ".lock")
    with (
        pytest.raises(InputError, match=f"the run is in use by process {owner.pid} on "),
        owned(tmp_path / ".lock", "the run"),
    ):
        pass
    owner.kill()
    owner.wait()


def test_a_killed_owner_leaves_nothing_behind(tmp_path):
    owner = start_owner(tmp_path / ".lock")
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with owned(tmp_path / ".lock", "the run"):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
    assert (tmp_path / ".lock").read_text() == ""


def test_an_owner_that_fails_gives_it_back(tmp_path):
    with pytest.raises(ZeroDivisionError), owned(tmp_path / ".lock", "the run"):
        raise ZeroDivisionError
    with owned(tmp_path / ".lock", "the run"):
        pass


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    path = tmp_path / "a"
    write_durably(path, b"before")
    with pytest.raises(TypeError):
        write_durably(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a"]


def test_leaves_are_named_by_their_way():
    node = {"a": 1, "b": {"c": [1, {"d": None}], "e": {}}}
    assert leaves(node) == {"a": 1, "b.c": [1, {"d": None}]}
    assert leaves(node, lists=True) == {"a": 1, "b.c.0": 1, "b.c.1.d": None}
    assert leaves({"a": (1, 2)}, lists=True) == {"a.0": 1, "a.1": 2}
