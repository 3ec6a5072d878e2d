"""What a store asks of a place, the same for every place."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_store import IDENTITY, TOKENS, codes, digests, everything, open_writer, write

from distill.errors import InputError
from distill.store import DamagedSample, TeacherStore
from distill.store.address import place_of, stores_in
from distill.store.place import Local, Memory, Place

if TYPE_CHECKING:
    from distill.store.objects import Objects

FORK = multiprocessing.get_context("fork")
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["distill.store"])
CLAIMS = "folder/claims"


def claim_and_wait(address: str, number: int, sender: Connection, environment: dict[str, str]) -> None:
    os.environ |= environment
    sender.send(place_of(address).claim(CLAIMS, number))
    time.sleep(60)


@contextmanager
def local_owner(place: Local, number: int) -> Iterator[bool]:
    """Another process that claims a number and is killed at the end; whether it got it."""
    receiver, sender = FORK.Pipe(duplex=False)

    def claim() -> None:
        sender.send(Local(place.root).claim(CLAIMS, number))
        time.sleep(60)

    process = FORK.Process(target=claim, daemon=True)
    process.start()
    yield receiver.recv()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()


@contextmanager
def memory_owner(place: Memory, number: int) -> Iterator[bool]:
    """Another user of the same files, who is gone at the end; whether it got the number."""
    other = Memory(place)
    yield other.claim(CLAIMS, number)
    del other


@contextmanager
def objects_owner(place: Objects, number: int) -> Iterator[bool]:
    """Another process, no fork, that claims a number and is killed at the end; whether it got it."""
    receiver, sender = SPAWN.Pipe(duplex=False)
    arguments = place.address, number, sender, dict(os.environ)
    process = SPAWN.Process(target=claim_and_wait, args=arguments, daemon=True)
    process.start()
    yield receiver.recv()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()


OWNERS = {"Local": local_owner, "Memory": memory_owner, "Objects": objects_owner}


@pytest.fixture(params=OWNERS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """One with nothing in it."""
    if request.param == "Objects":
        return place_of(f"{request.getfixturevalue('folder_of_objects')}/place")
    return Local(tmp_path / "parent" / "place") if request.param == "Local" else Memory()


@pytest.fixture
def filled(place: Place) -> Place:
    place.create({"zarr.json": b"{}", "folder/a": b"1", "folder/deeper/b": b"22", CLAIMS: b""})
    return place


def test_it_is_empty_until_something_is_made_of_it(place: Place) -> None:
    assert place.empty()
    assert place.names("folder") == []
    place.create({"zarr.json": b"{}", "folder/a": b"1"})
    assert not place.empty()
    assert (place.read("zarr.json"), place.read("folder/a")) == (b"{}", b"1")


def test_who_comes_second_makes_nothing(filled: Place) -> None:
    filled.create({"zarr.json": b"other", "folder/c": b"new"})
    assert filled.read("zarr.json") == b"{}"
    assert not filled.exists("folder/c")


def test_bytes_are_those_that_were_written(filled: Place) -> None:
    for content in (b"", b"\x00\xff" * 100_000, bytes(1)):
        filled.write("folder/a", content)
        assert filled.read("folder/a") == content
        assert filled.sizes("folder")["a"] == len(content)
    filled.write("folder/new", memoryview(b"view"))
    assert filled.read("folder/new") == b"view"


def test_a_part_of_a_file(filled: Place) -> None:
    filled.write("folder/a", bytes(range(100)))
    assert filled.read_part("folder/a", 10, 20) == bytes(range(10, 30))
    assert filled.read_part("folder/a", 0, 100) == bytes(range(100))
    assert filled.read_part("folder/a", 90, 20) == bytes(range(90, 100))
    assert filled.read_part("folder/a", 200, 20) == b""
    with pytest.raises(FileNotFoundError):
        filled.read_part("folder/nothing", 0, 1)


def test_a_folder_begins_with_its_first_file(filled: Place) -> None:
    filled.write("new/a", b"1")
    assert filled.names("new") == ["a"]


def test_what_is_absent_is_said_to_be(filled: Place) -> None:
    with pytest.raises(FileNotFoundError):
        filled.read("folder/nothing")
    assert not filled.exists("folder/nothing")
    assert not filled.exists("folder")
    assert (filled.sizes("folder/nothing"), filled.version("folder/nothing")) == ({}, None)
    filled.delete("folder/nothing")
    filled.delete("folder/a")
    assert not filled.exists("folder/a")
    assert filled.exists("folder/deeper/b")


def test_listing(filled: Place) -> None:
    assert sorted(filled.names("folder")) == ["a", "claims", "deeper/b"]
    assert filled.names("folder/deeper") == ["b"]
    assert list(filled.leftovers("folder")) == []


def test_folders(place: Place) -> None:
    assert place.folders() == []
    place.create({"zarr.json": b"{}", "one/zarr.json": b"1", "two/deeper/b": b"22"})
    assert sorted(place.folders()) == ["one", "two"]


def test_versions_tell_writes_apart(filled: Place) -> None:
    first = filled.version("folder/a")
    assert first == filled.version("folder/a")
    time.sleep(0.02)  # longer than the clock of a file system takes for a tick
    filled.write("folder/a", b"1")
    assert filled.version("folder/a") not in (None, first)


def test_a_reader_sees_a_file_whole(filled: Place) -> None:
    contents = [bytes([number]) * 200_000 for number in range(2)]
    filled.write("folder/a", contents[0])
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(filled.read("folder/a"))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        filled.write("folder/a", contents[number % 2])
    done.set()
    reader.join()
    assert seen <= set(contents)


def test_claims_are_exclusive_and_end_with_their_owner(filled: Place) -> None:
    owner = OWNERS[type(filled).__name__]
    assert filled.claim(CLAIMS, 3)
    assert filled.claim(CLAIMS, 3)
    with owner(filled, 3) as got:
        assert not got
    filled.release(CLAIMS, 3)
    with owner(filled, 3) as got:
        assert got
        assert not filled.claim(CLAIMS, 3)
        assert filled.claim(CLAIMS, 2)
        filled.release(CLAIMS, 3)  # not ours to give
        assert not filled.claim(CLAIMS, 3)
    assert filled.claim(CLAIMS, 3)


def test_a_file_of_claims_need_not_be_there(filled: Place) -> None:
    filled.delete(CLAIMS)
    assert filled.claim(CLAIMS, 0)


def test_it_may_be_sent_to_another_process(filled: Place) -> None:
    filled.claim(CLAIMS, 1)
    sent = pickle.loads(pickle.dumps(filled))
    assert sent.read("folder/a") == b"1"
    assert sorted(sent.names("folder")) == sorted(filled.names("folder"))


def test_a_store_there_and_back(place: Place) -> None:
    writer = open_writer(place)
    write(writer, *TOKENS[:3])
    store = TeacherStore(place)
    assert store.identity == IDENTITY
    assert store.present == set(TOKENS[:3])
    for token in store.present:
        store.verify(token)
        np.testing.assert_array_equal(store.frame_digests(token), digests(token))
    assert "3 of 5 keyframes" in store.summary()
    assert writer.version(TOKENS[3]) is None

    open_writer(place).write(TOKENS[0], *everything(TOKENS[4]))
    np.testing.assert_array_equal(codes(store, TOKENS[0]), codes(pickle.loads(pickle.dumps(store)), TOKENS[0]))
    assert not np.array_equal(codes(store, TOKENS[0]), codes(store, TOKENS[1]))

    name = store.arrays["bev_probs"].chunk(1)
    place.write(name, place.read(name)[:-1] + b"\x00")
    with pytest.raises(DamagedSample, match=TOKENS[1]):
        store.verify(TOKENS[1])
    assert open_writer(place).discard_damaged(TOKENS) == 1
    assert open_writer(place).missing(TOKENS) == [TOKENS[1], *TOKENS[3:]]
    with pytest.raises(InputError, match="dump it with occ-dump"):
        store.verify(TOKENS[1])


def test_a_sample_that_another_is_writing_is_refused(place: Place) -> None:
    writer = open_writer(place)
    if isinstance(place, Memory):
        other = open_writer(Memory(place))
        assert other.claim(TOKENS[2])
        assert not writer.claim(TOKENS[2])
        with pytest.raises(InputError, match=f"another process is writing sample {TOKENS[2]}"):
            write(writer, TOKENS[2])
        del other
    write(writer, TOKENS[2])
    assert writer.missing(TOKENS) == [*TOKENS[:2], *TOKENS[3:]]


def test_a_local_write_that_was_interrupted_leaves_something_to_tidy_away(tmp_path: Path) -> None:
    place = Local(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.4711.partial").touch()
    (tmp_path / "folder" / "a.partial").touch()
    assert list(place.leftovers("folder")) == [("folder/a", "folder/a.4711.partial")]


def test_the_stores_in_a_folder(place: Place) -> None:
    """Zarr groups, each by an address that means it."""
    if isinstance(place, Memory):
        pytest.skip("it has no address")
    place.create({"zarr.json": b"{}", "b.zarr/zarr.json": b"1", "a.zarr/zarr.json": b"2", "other/file": b"3"})
    found = stores_in(place.address)
    assert [place_of(address).read("zarr.json") for address in found] == [b"2", b"1"]
    assert stores_in(f"{place.address}/nothing") == []
