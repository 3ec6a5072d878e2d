"""Object stores: leases in the place of locks, faults of a real server, and the cache beside them."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
import uuid
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from tiny_store import TOKENS, codes, everything, open_writer, write

from distill.errors import InputError, Unreachable
from distill.store import TeacherStore
from distill.store.address import place_of
from distill.store.cache import Cache
from distill.store.place import Place

obstore = pytest.importorskip("obstore", reason="no client of object stores: pip install obstore")
from object_server import FAULTS, FaultyProxy  # noqa: E402

from distill.store import client, lease  # noqa: E402

SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["distill.store.writer"])
CLAIMS = "folder/claims"


def in_memory() -> str:
    """The address of an empty place in this process."""
    return f"memory:///{uuid.uuid4().hex}"


def work_in_process(work: str, address: str, sender: Connection, environment: dict[str, str], *given: object) -> None:
    os.environ |= environment
    sys.modules[__name__].__dict__[work](address, sender, *given)


class Worker:
    """A process, no fork, that does something with a place until it is killed."""

    def __init__(self, work: str, address: str, *given: object) -> None:
        self.heard, sender = SPAWN.Pipe(duplex=False)
        arguments = work, address, sender, dict(os.environ), *given
        self.process = SPAWN.Process(target=work_in_process, args=arguments, daemon=True)
        self.process.start()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def claims(address: str, sender: Connection, number: int) -> None:
    sender.send(place_of(address).claim(CLAIMS, number))
    time.sleep(60)


def creates(address: str, sender: Connection, name: str) -> None:
    files = {f"basis/{part}": name.encode() for part in range(20)}
    place_of(address).create({"zarr.json": name.encode(), **files})
    sender.send(name)


def fills(address: str, sender: Connection) -> None:
    writer = open_writer(address)
    while True:
        for token in random.sample(TOKENS, len(TOKENS)):
            if writer.claim(token):
                write(writer, token)
                sender.send(token)


def test_two_who_create_make_one(folder_of_objects: str) -> None:
    """Whoever is first, all files are theirs; so when one is killed in between."""
    for moment in (0.0, 0.05, 5.0):
        address = f"{folder_of_objects}/{moment}"
        one, other = (Worker("creates", address, name) for name in ("one", "other"))
        one.heard.poll(moment)
        one.kill()
        other.heard.recv()
        other.kill()
        place = place_of(address)
        assert len({place.read(name) for name in ("zarr.json", *(f"basis/{part}" for part in range(20)))}) == 1


def test_a_claim_whose_owner_is_silent_for_long_is_taken_over(folder_of_objects: str, monkeypatch) -> None:
    """From another machine: nobody can ask whether the process is there."""
    monkeypatch.setattr(lease, "LEASE", 2.0)
    monkeypatch.setattr(lease, "_machine", lambda: None)
    owner, place = Worker("claims", folder_of_objects, 7), place_of(folder_of_objects)
    assert owner.heard.recv()
    assert not place.claim(CLAIMS, 7)
    owner.kill()
    assert not place.claim(CLAIMS, 7)
    time.sleep(3.5)  # the clock of the server has whole seconds
    assert place.claim(CLAIMS, 7)


def test_who_was_silent_for_long_writes_nothing_more(monkeypatch) -> None:
    place = place_of(in_memory())
    place.create({"zarr.json": b"{}"})
    assert place.claim(CLAIMS, 1)
    place.write("folder/a", b"1")
    now = lease._clock()
    monkeypatch.setattr(lease, "_clock", lambda: now + lease.LEASE - lease.SLOWEST + 1)
    with pytest.raises(Unreachable, match="could not be reached for 76 s, and others may have claimed"):
        place.write("folder/a", b"2")
    assert place.read("folder/a") == b"1"
    with pytest.raises(Unreachable):
        place.claim(CLAIMS, 1)


def test_an_object_store_without_conditions_is_refused(monkeypatch) -> None:
    put = obstore.put
    monkeypatch.setattr(obstore, "put", lambda *a, mode=None, **more: put(*a, **more))
    with pytest.raises(InputError, match="does not heed conditions"):
        open_writer(in_memory())


def test_two_writers_are_killed_again_and_again(folder_of_objects: str) -> None:
    """Both write all rows: what is present is whole, and what was said to be durable is there."""
    durable = set[str]()
    for _ in range(3):
        writers = [Worker("fills", folder_of_objects) for _ in range(2)]
        until = time.monotonic() + 2.0
        while time.monotonic() < until or not durable:
            durable |= {each.heard.recv() for each in writers if each.heard.poll(0.1)}
        for each in writers:
            each.kill()
        store = TeacherStore(folder_of_objects)
        assert len(store.present) >= len(durable) - 2  # each was rewriting one of them
        for token in store.present:
            np.testing.assert_array_equal(codes(store, token), everything_of(token))
    writer = open_writer(folder_of_objects)
    write(writer, *writer.missing(TOKENS))
    assert TeacherStore(folder_of_objects).present == set(TOKENS)


def everything_of(token: str) -> np.ndarray:
    """The codes of what is written of a keyframe."""
    writer = open_writer(in_memory())
    write(writer, token)
    return codes(writer.store, token)


@pytest.fixture
def proxied(folder_of_objects: str, monkeypatch):
    """`proxied(fault)`: a proxy, and the same folder of objects as it is seen through it."""
    opened = []

    def open_proxy(fault) -> tuple[FaultyProxy, str]:
        proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"], fault, delay=1.0).__enter__()
        opened.append(proxy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setenv("AWS_TIMEOUT", "0.5s")
        return proxy, f"{folder_of_objects}/{uuid.uuid4().hex}"

    yield open_proxy
    for proxy in opened:
        proxy.__exit__()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_ridden_out(fault: str, proxied) -> None:
    """A store is made, filled and read as if no request had failed; a stale listing may miss what was written."""
    asked, every = Counter[str](), 12 if fault == "late" else 4

    def often(method: str, _: str) -> str | None:
        asked[method] += 1
        return fault if asked[method] % every == 1 else None

    proxy, address = proxied(often)
    write(open_writer(address), TOKENS[0])
    store = TeacherStore(address)
    for token in {TOKENS[0]} & store.present:
        np.testing.assert_array_equal(codes(store, token), everything_of(token))
    assert store.present == {TOKENS[0]} or fault == "stale"
    assert proxy.counts[fault] > 1


def test_what_no_patience_mends_is_one_line(folder_of_objects: str, proxied, monkeypatch) -> None:
    monkeypatch.setattr(client, "FIRST_PATIENCE", 0.5)
    _, address = proxied(lambda method, path: "slow-down")
    with pytest.raises(Unreachable, match=r"the server answers 503 .*asked for \d+ s.*AWS_ENDPOINT_URL"):
        TeacherStore(address)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(Unreachable, match="error sending request"):
        TeacherStore(f"{folder_of_objects}/down")


def test_mistakes_are_one_line(folder_of_objects: str, monkeypatch) -> None:
    place_of(f"{folder_of_objects}/s.zarr").create({"zarr.json": b"{}"})
    with pytest.raises(InputError, match="is empty or does not exist"):
        TeacherStore(f"{folder_of_objects}/none.zarr")
    for address in ("s3://no-such-bucket/s.zarr", "s3://"):
        with pytest.raises(Unreachable, match=r"there is no such bucket|Unable to recognise"):
            TeacherStore(address)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(Unreachable, match=r"permission denied .*403.* look at the credentials"):
        TeacherStore(f"{folder_of_objects}/denied.zarr")
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(Unreachable, match="set AWS_ALLOW_HTTP=true"):
        TeacherStore(f"{folder_of_objects}/plain.zarr")


def test_a_fork_is_told_instead_of_waiting_for_ever() -> None:
    place = place_of(in_memory())
    place.create({"zarr.json": b"{}"})

    def read() -> None:
        try:
            place.read("zarr.json")
        except RuntimeError:
            os._exit(7)

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    process.join(20)
    assert process.exitcode == 7


def test_without_the_client_one_line_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "distill.store.objects", raising=False)
    with pytest.raises(InputError, match=r"pip install 'occ-distill\[objects\]'"):
        place_of("s3://bucket/name.zarr")


class Reads(Place):
    """Counts what is read of a place."""

    def __init__(self, place: Place) -> None:
        self.counts, self.address = Counter[str](), place.address
        self._place = place

    remote = True
    address = ""

    def read(self, name: str) -> bytes:
        self.counts[name.partition("/")[0]] += 1
        return self._place.read(name)


for _name in Place.__abstractmethods__ - {"read", "address"}:
    setattr(Reads, _name, lambda self, *given, _name=_name: getattr(self._place, _name)(*given))
Reads.__abstractmethods__ = frozenset()


def cached(folder: Path, gb: float = 1.0) -> TeacherStore:
    """A full store, counted and read through a cache."""
    place = place_of(in_memory())
    write(open_writer(place), *TOKENS)
    store = TeacherStore(Reads(place), Cache(str(folder), gb))
    store.place.counts.clear()
    return store


def kept(folder: Path) -> list[Path]:
    return [file for file in folder.glob("??/*") if file.is_file()]


def test_what_was_read_is_read_from_the_cache(tmp_path: Path) -> None:
    store = cached(tmp_path)
    expected = codes(store, TOKENS[0])
    assert store.place.counts == {"checksums": 1, "voxel_logits": 1}
    np.testing.assert_array_equal(codes(store, TOKENS[0]), expected)
    assert store.place.counts == {"checksums": 2, "voxel_logits": 1}

    (file,) = kept(tmp_path)
    content = bytearray(file.read_bytes())
    content[9] ^= 4
    file.write_bytes(content)
    np.testing.assert_array_equal(codes(store, TOKENS[0]), expected)
    assert store.place.counts["voxel_logits"] == 2

    # what is written again is read again
    open_writer(store.place._place).write(TOKENS[0], *everything(TOKENS[3]))
    np.testing.assert_array_equal(codes(store, TOKENS[0]), codes(store, TOKENS[3]))


def test_what_was_not_read_for_longest_makes_room(tmp_path: Path) -> None:
    store = cached(tmp_path)
    for token in TOKENS:
        codes(store, token)
    size = max(file.stat().st_size for file in kept(tmp_path))
    small = TeacherStore(store.place, Cache(str(tmp_path / "small"), 3.5 * size / 1e9))
    for token in (*TOKENS[:3], TOKENS[0], TOKENS[3], TOKENS[0], TOKENS[4], TOKENS[0]):
        codes(small, token)
        time.sleep(0.02)
        assert sum(file.stat().st_size for file in kept(tmp_path / "small")) <= 3.5 * size
    store.place.counts.clear()
    codes(small, TOKENS[0])
    assert store.place.counts == {"checksums": 1}
    codes(small, TOKENS[1])
    assert store.place.counts["voxel_logits"] == 1


def test_a_full_disk_is_said_once_and_nothing_is_kept(tmp_path: Path, monkeypatch, capfd) -> None:
    store = cached(tmp_path)
    expected = [codes(store, token) for token in TOKENS]
    full = tmp_path / "full"
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for _ in range(2):  # as two loader workers would
        through = TeacherStore(store.place, Cache(str(full), 1.0))
        for token, each in zip(TOKENS, expected, strict=True):
            np.testing.assert_array_equal(codes(through, token), each)
    assert capfd.readouterr().err.count("No space left on device: going on without keeping") == 1


def caches(folder: str, sender: Connection) -> None:
    cache, chunks = Cache(folder, 2e-6), [open_writer(in_memory()) for _ in range(1)]
    write(chunks[0], *TOKENS)
    store = TeacherStore(chunks[0].place, cache)
    sender.send(True)
    while True:
        for token in TOKENS:
            codes(store, token)


def test_processes_share_a_cache_and_may_be_killed(tmp_path: Path) -> None:
    """It is so small that they remove each other's files all the time."""
    workers = [Worker("caches", str(tmp_path)) for _ in range(2)]
    assert all(each.heard.recv() for each in workers)
    time.sleep(0.5)
    for each in workers:
        assert each.process.is_alive()
        each.kill()
    store = cached(tmp_path)
    for token in TOKENS:
        np.testing.assert_array_equal(codes(store, token), everything_of(token))
